"""Ranks notice that another one is gone, on whatever machine, and end with a line that says which.

Its peers would hang in native code, in a collective that never comes back. So a thread of every rank touches a file in
the shared workdir and looks at that of the next rank: each is watched by one, at three file operations a beat however
many ranks there are. Who finds its neighbour silent, or fails itself, says so in a file that all of them look at.
"""

import contextlib
import itertools
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from moviegen.errors import Stopped
from moviegen.parallel.mesh import rank, ranks
from moviegen.storage import files

OVER = "over.json"
GRACE = 60  # seconds
_beats_in: list[Path] = []  # the folder, while this process beats
_meetings = itertools.count(1)


@contextlib.contextmanager
def beating(folder: Path, timeout: float) -> Iterator[None]:
    """Within it, this process ends with exit code 1 when another rank failed, or was not heard of for `timeout` seconds.

    What is raised within ends the other ranks in the same way. To be entered before MindSpore's communication is set up.
    """
    # What MindSpore and HCCL do by themselves comes later: it names nobody. They count in whole seconds, and it is how
    # long a collective waits for a rank that comes late, on CPU and on Ascend.
    for name in ("MS_NODE_TIMEOUT", "HCCL_EXEC_TIMEOUT"):
        os.environ.setdefault(name, f"{timeout + GRACE:.0f}")
    if os.environ.get("MS_ROLE") == "MS_SCHED":  # no rank: it holds the interpreter's lock, and ends by MS_NODE_TIMEOUT
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"alive_{rank()}"
    own.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    (folder / f"met_{rank()}").write_text("0", encoding="utf-8")  # whatever an earlier run has left
    _beats_in.append(folder)
    before, done, failure = _changed(folder / OVER), threading.Event(), ""
    watching = threading.Thread(target=_watch, args=(folder, own, timeout, before, done), daemon=True)
    watching.start()
    try:
        yield
    except Stopped:  # every rank is asked to, and may still be saving
        raise
    except BaseException as error:
        failure = f"failed ({type(error).__name__}: {error})"
        raise
    finally:
        done.set()
        watching.join()
        own.unlink(missing_ok=True)  # a rank that is done is not silent
        _beats_in.remove(folder)
        if failure:
            _tell(folder, before, rank(), failure)


def meet() -> bool:
    """Returns when every rank has called it, however far apart; False, at once, where this process does not beat.

    A collective gives up on a rank that comes minutes late; a dead one is noticed here as anywhere else.
    """
    if not _beats_in:
        return False
    folder, number = _beats_in[-1], next(_meetings)
    own = folder / f"met_{rank()}"
    if rank() == 0:
        for other in range(1, ranks()):
            _until(folder / f"met_{other}", number)
    own.write_text(f"{number}", encoding="utf-8")  # in place: a shared file system may show a new file late
    if rank():
        _until(folder / "met_0", number)
    return True


def _until(path: Path, number: int) -> None:
    pause = 0.02
    while not path.is_file() or int(path.read_text(encoding="utf-8") or 0) < number:
        time.sleep(pause * (0.5 + random.random()))  # a thousand ranks do not look all at once
        pause = min(1.0, pause * 1.5)


def over(folder: Path) -> dict | None:
    """Why the run in this folder is over, {"rank": which rank, "why": what it did}, if a rank has said so."""
    path = folder / OVER
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _watch(folder: Path, own: Path, timeout: float, before: int | None, done: threading.Event) -> None:
    watched = (rank() + 1) % ranks()
    every, silent, seen = min(5.0, timeout / 10), 0.0, None
    while not done.is_set():
        with contextlib.suppress(OSError):  # a shared file system may be away for a moment: nobody is judged then
            own.touch()
            if _changed(folder / OVER) != before:
                _end(over(folder))
            now = _changed(folder / f"alive_{watched}")
            # Silence is counted in beats of this rank's own: one that was itself stopped for a while blames nobody.
            silent = silent + every if now == seen else 0.0
            if silent >= timeout:
                _tell(folder, before, watched, f"has not been heard of for {timeout:.0f} s (train.rank_timeout)")
            seen = now or seen  # a file that is gone again is that of a rank that is done
        done.wait(every)


def _tell(folder: Path, before: int | None, which: int, why: str) -> None:
    """Says that the run is over, unless another rank was first: what fails then only follows from it."""
    if _changed(folder / OVER) == before:
        files.write_json({"rank": which, "why": why}, folder / OVER)


def _end(reason: dict) -> None:
    # Not through the interpreter: the main thread is in native code, and the checkpoint's writer may wait for that rank.
    os.write(2, f"the run is over: rank {reason['rank']} {reason['why']}\n".encode())
    os._exit(1)


def _changed(path: Path) -> int | None:
    """When a file last changed, by the clock of whoever keeps it; None if it is not there."""
    return path.stat().st_mtime_ns if path.is_file() else None
