"""A folder has one owner: a lock that says whose it is and that a killed run does not leave behind for ever."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from moviegen.errors import ConfigError
from moviegen.storage import files

BEAT, SILENCE = 5.0, 300.0  # seconds; MindSpore may hold Python's lock for minutes while it compiles


@contextlib.contextmanager
def held(path: Path) -> Iterator[int | None]:
    """Holds the lock `path` within the block, which gets its descriptor, or None where the parent process holds it.

    The kernel frees it when the last process with the descriptor is gone. Not every shared file system shows one host
    the locks of another, so the owner also touches the file, and that of another host is gone after SILENCE seconds
    without. Raises ConfigError naming the other's host, process and start.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        locked, owner = _lock(descriptor), _owner(path)
        here = owner.get("host") == socket.gethostname()
        if locked is False and here and owner["process"] == os.getppid():
            yield None
            return
        if locked is False or (owner and not (locked and here) and not _gone(path)):
            raise _refusal(path, owner)
        own = {"host": socket.gethostname(), "process": os.getpid(), "ranks": _meeting_place()}
        own["since"] = datetime.now().isoformat(sep=" ", timespec="seconds")
        with files.naming(path):
            _write(descriptor, json.dumps(own))
        done = threading.Event()
        threading.Thread(target=_beat, args=(path, done), daemon=True).start()
        try:
            yield descriptor
        finally:
            done.set()
            _write(descriptor, "")  # not removed: who has it open by now would lock a file that nobody sees
    finally:
        os.close(descriptor)


def joined(path: Path) -> None:
    """For ranks other than 0: returns when rank 0 of this run, or the parent, holds the lock; ConfigError if it never does."""
    deadline = time.monotonic() + SILENCE + 60
    while (owner := _owner(path)).get("ranks") != _meeting_place() and owner.get("process") != os.getppid():
        if time.monotonic() > deadline:
            raise _refusal(path, owner)
        time.sleep(0.2)


def _meeting_place() -> str:
    """Where the ranks of this run meet, which tells them from those of another run."""
    place = f"{os.environ.get('MS_SCHED_HOST')}:{os.environ.get('MS_SCHED_PORT')}"
    return place.replace("0.0.0.0", "127.0.0.1")  # two names of this machine


def _refusal(path: Path, owner: dict) -> ConfigError:
    whose = "process {process} on {host}, since {since}".format(**owner) if owner else "one that has just begun"
    return ConfigError(
        f"{path.parent} belongs to another run ({path.name}): {whose}; wait for it, end it, or take another --workdir"
    )


def _lock(descriptor: int) -> bool | None:
    """Whether the kernel gave the lock; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _owner(path: Path) -> dict:
    """What the owner has written, {} where there is none."""
    try:
        return {"host": "?", "process": "?", "since": "?", **json.loads(path.read_text(encoding="utf-8"))}
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):  # a shared file system may be away for a moment
            os.utime(path)


def _gone(path: Path) -> bool:
    """Whether the owner has not touched the file for SILENCE seconds; waits for as long as that cannot be told."""
    seen, clock = path.stat().st_mtime, path.with_name(f".{files.unique()}.tmp")
    clock.touch()  # what time it is for whoever keeps the files
    left = SILENCE - (clock.stat().st_mtime - seen)
    clock.unlink()
    if left > 0:
        print(f"{path} is that of a run on another host: waiting up to {left:.0f} s for a sign of life", flush=True)
    deadline = time.monotonic() + left
    while time.monotonic() < deadline:
        time.sleep(min(1.0, left))
        if path.stat().st_mtime != seen:
            return False
    return True
