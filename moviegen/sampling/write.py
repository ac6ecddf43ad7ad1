"""The files of a sample: a video with a contact sheet, or a picture."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from moviegen.data import video
from moviegen.sampling.sampler import Request

SHEET_FRAMES = 8


def write(folder: Path, request: Request, pieces: Iterable[np.ndarray], count: int, fps: float) -> Path:
    """Writes `count` frames, in pieces uint8 (n h w c), as `NN-prompt.mp4` with a contact sheet `.png`.

    A single frame is a PNG alone. Returns the path without suffix.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:60].rstrip("-") or "empty"
    base = folder / f"{request.index:02d}-{slug}"
    wanted = set(np.linspace(0, count - 1, min(count, SHEET_FRAMES)).round().astype(int))
    sheet: list[np.ndarray] = []
    passing = _collecting(pieces, wanted, sheet)
    if count > 1:
        video.write_mp4(base.with_suffix(".mp4"), passing, fps)
    else:
        list(passing)
    video.write_sheet(base.with_suffix(".png"), np.stack(sheet), columns=len(sheet))
    return base


def _collecting(pieces: Iterable[np.ndarray], wanted: set[int], into: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the pieces, and copies the frames with the numbers `wanted` as they pass."""
    numbers = itertools.count()
    for piece in pieces:
        into.extend(frame.copy() for frame in piece if next(numbers) in wanted)
        yield piece
