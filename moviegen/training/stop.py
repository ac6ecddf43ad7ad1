"""SIGINT and SIGTERM ask a training to end after its step; the second one ends the process at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from moviegen.parallel import signals


@contextlib.contextmanager
def requests() -> Iterator[dict[str, float]]:
    """Yields {name of each signal: 0.0}, in which 1.0 says that it came; outside of the main thread none does."""
    asked, first = {each.name: 0.0 for each in signals.SIGNALS}, 0.0

    def note(signum, frame):
        nonlocal first
        if first:
            if "MS_ROLE" not in os.environ or time.monotonic() - first > signals.ECHO:
                os._exit(128 + signum)
            return
        first = time.monotonic()
        asked[signal.Signals(signum).name] = 1.0
        # Not through print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping: this step is finished and saved; a second signal ends at once\n")

    main = threading.current_thread() is threading.main_thread()
    # What was started to ignore a signal, as by nohup, goes on ignoring it.
    before = {each: old for each in signals.SIGNALS if main and (old := signal.getsignal(each)) is not signal.SIG_IGN}
    for each in before:
        signal.signal(each, note)
    try:
        yield asked
    finally:
        for each, old in before.items():
            signal.signal(each, old or signal.SIG_DFL)
