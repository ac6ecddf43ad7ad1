"""Starts this program again as N ranks on this machine; when one of them fails, it ends the others."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from moviegen.parallel import heartbeat

SCHEDULER = "scheduler"
# Seconds. MindSpore's scheduler often aborts when the first ranks leave, a moment before the last ones do.
PATIENCE = 20


def is_rank() -> bool:
    """Whether this process is one of several: a rank, or the scheduler at which MindSpore's ranks meet."""
    return "MS_ROLE" in os.environ


def run(command: list[str], ranks: int, workdir: Path) -> int:
    """Runs `python *command` as ranks on the loopback device and returns the exit code of the first rank that failed.

    Rank 0's output is shown as it comes; that of every rank stays in `workdir/ranks/worker_N.log`.
    """
    logs = workdir / "ranks"
    logs.mkdir(parents=True, exist_ok=True)
    for old in (*logs.glob("*.log"), logs / heartbeat.OVER):
        old.unlink(missing_ok=True)
    print(f"starting {ranks} ranks; each writes its output to {logs}/worker_RANK.log, rank 0's follows", flush=True)
    processes, shown, place = {}, 0, _place(ranks)
    try:
        for name in (SCHEDULER, *range(ranks)):
            processes[name] = _start(command, logs, name, place)
        last = time.monotonic()  # when the scheduler was last seen well
        while any(processes[rank].poll() is None for rank in range(ranks)):
            failed = _failed(processes)
            if SCHEDULER not in failed:
                last = time.monotonic()
            if failed.keys() - {SCHEDULER} or time.monotonic() - last > PATIENCE:
                break
            time.sleep(0.2)
            shown = _show(logs / "worker_0.log", shown)
        failed = _failed(processes)
        if all(processes[rank].poll() == 0 for rank in range(ranks)):
            failed = {}  # whatever the scheduler did after it had served them
    except KeyboardInterrupt:
        print(f"\ninterrupted: the same command again continues from {workdir}", file=sys.stderr)
        return 130
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # a run continues after a kill at any instant
                process.wait()
    _show(logs / "worker_0.log", shown)
    if not failed:
        return 0
    first = _first(failed, heartbeat.over(logs))
    code = failed[first]
    how = f"was ended by signal {-code}{' (out of memory?)' if code == -9 else ''}" if code < 0 else f"failed ({code})"
    who = "MindSpore's scheduler" if first == SCHEDULER else f"rank {first}"
    print(f"{who} {how}, so the others were ended; the last line of each, the rest in {logs}:", file=sys.stderr)
    for log in sorted(logs.glob("worker_*.log")):
        lines = [line for line in log.read_text(errors="replace").splitlines() if _worth_showing(line)]
        print(f"  {log.stem}: {lines[-1] if lines else '(no output)'}", file=sys.stderr)
    return code if code > 0 else 128 - code


def _place(ranks: int) -> dict[str, str]:
    """What MindSpore reads to find the other ranks; msrun would say the same."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port, count = f"{s.getsockname()[1]}", f"{ranks}"
    return {"MS_WORKER_NUM": count, "RANK_SIZE": count, "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": port}


def _start(command: list[str], logs: Path, name: str | int, place: dict[str, str]) -> subprocess.Popen:
    own = {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
    if name != SCHEDULER:
        own = {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": f"{name}", "RANK_ID": f"{name}", "DEVICE_ID": f"{name}"}
    with open(logs / (f"{name}.log" if name == SCHEDULER else f"worker_{name}.log"), "wb") as log:
        return subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **place, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt at the terminal is for this process, which ends them
        )


def _failed(processes: dict[str | int, subprocess.Popen]) -> dict[str | int, int]:
    """Exit codes of the processes that have failed."""
    return {name: process.returncode for name, process in processes.items() if process.poll()}


def _first(failed: dict[str | int, int], over: dict | None) -> str | int:
    """Which of several failed by itself: the one that said so, else one that was killed, else any."""
    return min(failed, key=lambda name: (over is None or name != over["rank"], failed[name] >= 0))


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
