"""Signals that ask a run to stop: SIGINT (Ctrl-C), heard by a thread of its own, and SIGTERM."""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10.0  # seconds to end after a second SIGINT
ECHO = 5.0  # seconds; Slurm sends SIGTERM to every process, and the launcher passes its own on: that is one
asked: list[int] = []  # signals by which this process ends: native code may turn the exception into another


def listen() -> None:
    """From now on a signal ends this process by KeyboardInterrupt or SystemExit(143), or calls what else is set for it.

    MindSpore takes SIGINT over while it runs a graph and passes it on as SIGTERM, and while it compiles no handler of
    Python's may run for minutes. So SIGINT is blocked here and in child processes, and a thread takes it: it has the main
    thread's handler called, and ends a process that is still there GRACE seconds after a second one. To be called before
    there are other threads.
    """
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as under nohup
            signal.signal(each, _stop)
    signal.signal(signal.SIGURG, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_hear, args=(threading.main_thread().ident,), daemon=True).start()


def _hear(main: int) -> None:
    before = False
    while True:
        signal.sigwait({signal.SIGINT})
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            continue
        _thread.interrupt_main(signal.SIGINT)
        signal.pthread_kill(main, signal.SIGURG)  # wakes it where it waits: what is set for SIGINT is called then
        if before and "MS_ROLE" not in os.environ:  # ranks are ended by their launcher
            time.sleep(GRACE)
            os._exit(128 + signal.SIGINT)
        before = True


def _stop(signum: int, frame: FrameType | None) -> None:
    if _compiles(frame):  # MindSpore would print a page about it and leave files of what it had: later
        threading.Timer(0.05, _thread.interrupt_main, (signum,)).start()
        return
    if "MS_ROLE" in os.environ:
        signal.signal(signum, _but_echoes(time.monotonic()))
    _end(signum)


def _end(signum: int) -> None:
    asked.append(signum)
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + signum)


def _but_echoes(first: float) -> Callable[[int, FrameType | None], None]:
    """A handler that ends a process which has ended itself since `first`, unless that is the same signal once more."""

    def again(signum: int, _: FrameType | None) -> None:
        if time.monotonic() - first > ECHO:
            _end(signum)

    return again


def _compiles(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "compile" and frame.f_globals.get("__name__", "").startswith("mindspore."):
            return True
        frame = frame.f_back
    return False
