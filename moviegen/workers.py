"""Starts this program again as N ranks on this machine, under MindSpore's msrun."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
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
    finished = threading.Event()
    follower = threading.Thread(target=_follow, args=(logs / "worker_0.log", finished))
    follower.start()
    try:
        process.wait()
    except KeyboardInterrupt:
        print(f"\ninterrupted: the same command again continues from {workdir}", file=sys.stderr)
        return 130
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # msrun then ends the ranks
            process.wait()
        finished.set()
        follower.join()
    return _exit_code(process.returncode, logs)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _follow(path: Path, finished: threading.Event) -> None:
    """Prints what is appended to a file until told that no more will come."""
    position, last = 0, False
    while not last:
        last = finished.wait(0.2)
        if path.is_file():
            with open(path, "rb") as f:
                f.seek(position)
                sys.stdout.write(f.read().decode(errors="replace"))
                sys.stdout.flush()
                position = f.tell()


def _exit_code(code: int, logs: Path) -> int:
    """msrun itself returns 1 for any failure; its log holds the rank's own code."""
    if code == 0:
        return 0
    found = re.search(r"exit with exception\. Error code: (-?\d+)", (logs / "msrun.log").read_text(errors="replace"))
    code = int(found[1]) if found else 1
    print(f"a rank failed with exit code {code}; last line of each rank:", file=sys.stderr)
    for log in sorted(logs.glob("worker_*.log")):
        lines = log.read_text(errors="replace").strip().splitlines() or ["(no output)"]
        print(f"  {log}: {lines[-1]}", file=sys.stderr)
    return code if code > 0 else 128 - code
