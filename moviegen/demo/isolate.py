"""Calls a function in a child process: what MindSpore compiled and allocated goes away with the child."""

import contextlib
import importlib
import multiprocessing
import os
import resource
import sys
import threading
import types
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from moviegen.errors import ConfigError, Stopped
from moviegen.parallel import signals


def call(function: str, *args: Any) -> tuple[Any, float]:
    """Returns the result of `package.module:name`, called with `args` in a child, and the child's peak memory in GB.

    Arguments and result cross by pickle; what the child prints is shown as it comes. The child ends with its parent,
    even by SIGKILL, and is asked to stop where its parent is. A ConfigError, DataError or OSError in the child is raised
    here as itself; after anything else its traceback has been printed and RuntimeError is raised.
    """
    context = multiprocessing.get_context("spawn")
    answers, child_end = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(function, args, child_end))
    with _without_script():
        child.start()
    child_end.close()
    answer = None
    try:
        with contextlib.suppress(EOFError):  # the child ended before it had an answer
            answer = answers.recv()
        child.join()
    finally:
        if child.is_alive():
            child.terminate()
            child.join()
    if answer is None:
        code = child.exitcode
        reason = f"was ended by signal {-code}{' (out of memory?)' if code == -9 else ''}" if code < 0 else "failed"
        raise RuntimeError(f"{function} {reason}; started again, it continues from its last checkpoint")
    if isinstance(answer, ConfigError | OSError):
        raise answer
    return answer


def own_peak_memory_gb() -> float:
    """Returns the largest resident memory of this process so far, in GB (10^9 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent had before this program was started in its place
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    """Keeps a child started inside from running the user's script again, which may have no main guard."""
    script, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _run(function: str, args: tuple, answers: Connection) -> None:
    os.setsid()  # an interrupt at the terminal is for the parent, which ends this process
    signals.listen()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, name = function.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(*args)
        answers.send((result, own_peak_memory_gb()))
    except (ConfigError, OSError) as error:
        answers.send(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Stopped as stopped:
        sys.exit(stopped.code)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
