"""Starts this program again as N ranks on this machine; when one of them fails, it ends the others."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from moviegen.parallel import heartbeat
from moviegen.parallel.signals import SIGNALS

SCHEDULER = "scheduler"
# Seconds. MindSpore's scheduler often aborts when the first ranks leave, a moment before the last ones do.
PATIENCE = 20
STOPPING = 120  # seconds in which ranks that were asked to stop finish their step and save


def is_rank() -> bool:
    """Whether this process is one of several: a rank, or the scheduler at which MindSpore's ranks meet."""
    return "MS_ROLE" in os.environ


def run(command: list[str], ranks: int, workdir: Path, logs: Path | None = None, lock: int | None = None) -> int:
    """Runs `python *command` as ranks on the loopback device and returns the exit code of the first rank that failed.

    Rank 0's output is shown as it comes; that of every rank stays in `logs/worker_N.log`, by default `workdir/ranks`.
    A signal that asks this process to stop is passed on to the ranks; a second one ends them. The ranks keep the
    descriptor `lock` open, so that it is held for as long as one of them lives.
    """
    logs = logs or workdir / "ranks"
    logs.mkdir(parents=True, exist_ok=True)
    for old in (*logs.glob("*.log"), logs / heartbeat.OVER):
        old.unlink(missing_ok=True)
    print(f"starting {ranks} ranks; each writes its output to {logs}/worker_RANK.log, rank 0's follows", flush=True)
    processes, shown, last, until = {}, 0, time.monotonic(), 0.0
    with _hearing() as signals, _port() as port:
        place = _place(ranks, port)
        try:
            for name in (SCHEDULER, *range(ranks)):
                processes[name] = _start(command, logs, name, place, lock)
            while any(processes[rank].poll() is None for rank in range(ranks)):
                failed = _failed(processes)
                if SCHEDULER not in failed:
                    last = time.monotonic()  # when the scheduler was last seen well
                if signals and not until:
                    until = time.monotonic() + STOPPING
                    print("the ranks stop after this step; again: at once", file=sys.stderr)
                    for rank in range(ranks):
                        processes[rank].send_signal(signals[0])
                if len(signals) > 1 or (signals and time.monotonic() > until):
                    break
                if not signals and (failed.keys() - {SCHEDULER} or time.monotonic() - last > PATIENCE):
                    break
                time.sleep(0.2)
                shown = _show(logs / "worker_0.log", shown)
            failed = _failed(processes)
            done = all(processes[rank].poll() == 0 for rank in range(ranks))  # whatever the scheduler did after that
        finally:
            for process in processes.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # a run continues after a kill at any instant
                    process.wait()
    _show(logs / "worker_0.log", shown)
    if done or not (failed or signals):
        return 0
    return 128 + signals[0] if signals else _report(failed, logs)


@contextlib.contextmanager
def _hearing() -> Iterator[list[int]]:
    """Within it, signals that ask this process to stop are noted in the list that it yields, and do nothing else."""
    heard: list[int] = []
    before = {signum: signal.signal(signum, lambda signum, _: heard.append(signum)) for signum in SIGNALS}
    try:
        yield heard
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _report(failed: dict[str | int, int], logs: Path) -> int:
    """Says which rank failed first, with the last line of each; returns its exit code."""
    first = _first(failed, heartbeat.over(logs))
    code = failed[first]
    how = f"was ended by signal {-code}{' (out of memory?)' if code == -9 else ''}" if code < 0 else f"failed ({code})"
    who = "MindSpore's scheduler" if first == SCHEDULER else f"rank {first}"
    print(f"{who} {how}, so the others were ended; the last line of each, the rest in {logs}:", file=sys.stderr)
    for log in sorted(logs.glob("worker_*.log")):
        text = log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if _worth_showing(line)]
        print(f"  {log.stem}: {lines[-1] if lines else '(no output)'}", file=sys.stderr)
    return code if code > 0 else 128 - code


@contextlib.contextmanager
def _port() -> Iterator[int]:
    """A free port for MindSpore's scheduler, which nobody else is given as long as this lasts."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        # Set after `bind`: the scheduler, which sets it too, may then listen there, and the system gives it to nobody else.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield held.getsockname()[1]


def _place(ranks: int, port: int) -> dict[str, str]:
    """What MindSpore reads to find the other ranks; msrun would say the same."""
    count = f"{ranks}"
    return {"MS_WORKER_NUM": count, "RANK_SIZE": count, "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": f"{port}"}


def _start(
    command: list[str], logs: Path, name: str | int, place: dict[str, str], lock: int | None = None
) -> subprocess.Popen:
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
            start_new_session=True,  # an interrupt at the terminal is for this process, which passes it on
            pass_fds=() if lock is None else (lock,),
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
