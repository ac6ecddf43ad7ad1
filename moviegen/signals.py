"""Signals that ask a run to stop, SIGINT (Ctrl-C) and SIGTERM, heard by a thread of their own."""

import _thread
import os
import signal
import sys
import threading
import time
from types import FrameType

GRACE = 10.0  # seconds to end after a second signal
ECHO = 5.0  # seconds; Slurm signals every process, and the launcher of ranks passes its own signal on: that is one
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen() -> None:
    """From now on a signal ends this process by KeyboardInterrupt or SystemExit(143), or calls what else is set for it.

    MindSpore takes SIGINT over while it runs a graph and passes it on as SIGTERM, and for minutes no handler of Python's
    runs while it compiles. So both signals are blocked here and in child processes, which have to call this themselves, and a
    thread takes them: it has the main thread's handlers called, and ends a process that is still there GRACE seconds after
    a second signal. To be called before there are other threads.
    """
    heard = {each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN}  # nohup has them ignored
    for each in heard:
        signal.signal(each, _stop)
    signal.signal(signal.SIGURG, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    if heard:
        threading.Thread(target=_hear, args=(heard, threading.main_thread().ident), daemon=True).start()


def _stop(signum: int, frame: FrameType | None) -> None:
    if _compiles(frame):  # MindSpore would print a page about it and leave files of what it had: later
        threading.Timer(0.05, _thread.interrupt_main, (signum,)).start()
        return
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + signum)


def _compiles(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "compile" and frame.f_globals.get("__name__", "").startswith("mindspore."):
            return True
        frame = frame.f_back
    return False


def _hear(heard: set[signal.Signals], main: int) -> None:
    first = 0.0
    while True:
        signum = signal.sigwait(heard)
        if first and "MS_ROLE" in os.environ and time.monotonic() - first < ECHO:
            continue
        _thread.interrupt_main(signum)
        signal.pthread_kill(main, signal.SIGURG)  # wakes it where it waits: what is set for `signum` is called then
        if first:
            time.sleep(GRACE)
            os._exit(128 + signum)
        first = time.monotonic()
