"""Starts this program again as N ranks on this machine, under MindSpore's msrun."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def is_rank() -> bool:
    """Whether this process is one that msrun started (a rank, or msrun's scheduler)."""
    return "MS_ROLE" in os.environ


def run(command: list[str], ranks: int, workdir: Path) -> int:
    """Runs `python *command` as ranks on the loopback device and returns the exit code of the first rank that failed.

    Rank 0's output is shown as it comes; that of every rank stays in `workdir/ranks/worker_N.log`.
    """
    logs = workdir / "ranks"
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    print(f"starting {ranks} ranks; each writes its output to {logs}/worker_RANK.log, rank 0's follows", flush=True)
    msrun = [sys.executable, "-m", "mindspore.parallel.cluster.run", f"--worker_num={ranks}"]
    msrun += [f"--local_worker_num={ranks}", "--master_addr=127.0.0.1", f"--master_port={_free_port()}"]
    # A rank number that does not exist keeps msrun from showing any log by itself.
    msrun += ["--join=True", f"--tail_worker_log={ranks}", f"--log_dir={logs}", *command]
    # msrun starts whichever `python` comes first on the path.
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    with open(logs / "msrun.log", "wb") as log:
        process = subprocess.Popen(msrun, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    shown = 0
    try:
        # msrun would wait long for its scheduler after a rank has failed, so the failure is looked for here.
        while (code := process.poll()) is None and (code := _failure(logs)) is None:
            time.sleep(0.2)
            shown = _show(logs / "worker_0.log", shown)
    except KeyboardInterrupt:
        print(f"\ninterrupted: the same command again continues from {workdir}", file=sys.stderr)
        return 130
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # msrun then ends the ranks
            process.wait()
    _show(logs / "worker_0.log", shown)
    if code == 0:
        return 0
    print(f"a rank failed; the last line of each, the rest in {logs}:", file=sys.stderr)
    for log in sorted(logs.glob("worker_*.log")):
        lines = [line for line in log.read_text(errors="replace").splitlines() if _worth_showing(line)]
        print(f"  {log.stem}: {lines[-1] if lines else '(no output)'}", file=sys.stderr)
    code = _failure(logs) or code
    return code if code > 0 else 128 - code


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _show(path: Path, position: int) -> int:
    """Prints the whole lines of a file after `position`, without MindSpore's own, and returns where they end."""
    if not path.is_file():
        return position
    with open(path, "rb") as f:
        f.seek(position)
        new = f.read()
    new = new[: new.rfind(b"\n") + 1]
    for line in new.decode(errors="replace").splitlines():
        if _worth_showing(line):
            print(line, flush=True)
    return position + len(new)


def _worth_showing(line: str) -> bool:
    """Whether a line is there and is none of MindSpore's own log below an error."""
    return bool(line) and not re.match(r"\[(DEBUG|INFO|WARNING)\] [A-Z_]+\(\d+", line)


def _failure(logs: Path) -> int | None:
    """Exit code of the first rank that failed, from msrun's log: msrun itself returns 1 for any failure."""
    found = re.search(r"exit with exception\. Error code: (-?\d+)", (logs / "msrun.log").read_text(errors="replace"))
    return int(found[1]) if found else None
