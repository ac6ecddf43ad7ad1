"""Progress lines on the terminal."""

import math
import time

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Prints "label done/total, numbers, rate, time left" at most every five seconds, and always the last line.

    Ranks other than 0 print nothing.
    """

    def __init__(self, label: str, total: int, rank: int = 0):
        self.label, self.total, self._silent = label, total, rank != 0
        self._begun, self._first, self._printed = 0.0, None, -math.inf

    def update(self, done: int, **numbers: float) -> None:
        """Notes that `done` of `total` are done; `numbers` are shown beside it."""
        if self._silent:
            return
        now = time.monotonic()
        if self._first is None:
            # The first call starts the clock: it comes after the first step, whose compilation tells nothing of the rest.
            self._begun, self._first = now, done
        if done < self.total and now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        parts = [f"{self.label} {done}/{self.total}"] + [f"{key} {_short(value)}" for key, value in numbers.items()]
        spent = now - self._begun
        if done > self._first and spent > 0:
            rate = (done - self._first) / spent
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
            left = (self.total - done) / rate
            parts.append(f"{_clock(left)} left" if done < self.total else f"took {_clock(spent)}")
        print("  ".join(parts), flush=True)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
