"""Pieces of videos: a table's columns `start` and `end`, in seconds, make a sample of a part of a file."""

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from moviegen.errors import DataError

_MOST = 1e6  # seconds, eleven days: what is above is a mistake, such as frames or milliseconds


class Piece(NamedTuple):
    """The frames of the file `video` from second `start` on and before second `end` (inf: all), its first being at 0."""

    video: str
    start: float
    end: float

    def holds(self, seconds: Any) -> Any:
        """Whether a frame of this time, or of each of an array, is in the piece; to the microsecond, as times are sums."""
        return (self.start - 1e-6 <= seconds) & (seconds < self.end - 1e-6)

    @property
    def name(self) -> str:
        """What the piece is called, in caches as well: "film#3.2-7.84.mp4"."""
        stem, suffix = os.path.splitext(self.video)  # kept last, for it tells a picture from a video
        return f"{stem}#{text(self.start)}-{text(self.end)}{suffix}"


def of(row: Mapping[str, str | None]) -> Piece | None:
    """The piece that a csv's row names; None where its `start` and `end` are empty or no columns. Raises DataError."""
    cells = [(row.get(key) or "").strip() for key in ("start", "end")]
    if not any(cells):
        return None
    try:
        start, end = float(cells[0] or 0), float(cells[1] or math.inf)
    except ValueError:
        start = end = math.nan
    if not (0 <= start < end and start <= _MOST and (end <= _MOST or not cells[1])):
        raise DataError(
            f"start is {cells[0][:40]!r} and end {cells[1][:40]!r}, expected seconds, the end above the start, such as "
            "3.2 and 7.84; both empty for the whole file"
        )
    return Piece(row["video"] or "", start, end)


def name(row: Mapping[str, str | None]) -> str:
    """What a csv's row is called: its cell `video`, or the name of its piece. Raises DataError."""
    piece = of(row)
    return piece.name if piece else row["video"] or ""


def text(seconds: float) -> str:
    """Seconds to the millisecond as a cell or a name has them; "" for the end of a file."""
    return "" if math.isinf(seconds) else f"{seconds:.3f}".rstrip("0").rstrip(".")
