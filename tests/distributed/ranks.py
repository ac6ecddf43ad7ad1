"""Runs a script of this folder as several ranks and shows what went wrong when one of them fails."""

from pathlib import Path

from moviegen.parallel import launcher


def run(script: str, ranks: int, workdir: Path, *args: str) -> None:
    code = launcher.run([str(Path(__file__).with_name(script)), *args], ranks, workdir)
    logs = "\n".join(log.read_text()[-2000:] for log in sorted((workdir / "ranks").glob("worker_*.log")))
    assert code == 0, logs
