"""SIGINT and SIGTERM ask a training to end after its step; the second one ends the process at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def requests() -> Iterator[dict[str, float]]:
    """Yields {name of each signal: 0.0}, in which 1.0 says that it came; outside of the main thread none does."""
    asked = {each.name: 0.0 for each in SIGNALS}

    def note(signum, frame):
        if any(asked.values()):
            os._exit(128 + signum)
        asked[signal.Signals(signum).name] = 1.0
        # Not through print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping: this step is finished and saved; a second signal ends at once\n")

    main = threading.current_thread() is threading.main_thread()
    # What was started to ignore a signal, as by nohup, goes on ignoring it.
    before = {each: old for each in SIGNALS if main and (old := signal.getsignal(each)) is not signal.SIG_IGN}
    for each in before:
        signal.signal(each, note)
    try:
        yield asked
    finally:
        for each, old in before.items():
            signal.signal(each, old or signal.SIG_DFL)
