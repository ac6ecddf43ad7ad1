"""What curation measures of a video, in one pass over its frames, and of each of its shots."""

import math
from typing import Any, NamedTuple

import numpy as np

from moviegen.data import cuts, demux, duplicates, video, view
from moviegen.data.files import File
from moviegen.data.pieces import Piece
from moviegen.errors import DataError

NAMES = ("border", "cuts", "sharpness", "motion", "duplicates")
STILL = 0.5  # levels of 255: a picture that differs less from the one before is static; coding alone makes 0.1 to 0.3
_DARK, _FLAT = 40, 16  # levels: a border is nowhere lighter, and of one colour up to what coding adds
_LONG, _SMALL = 512, 64  # longest sides at which pictures are measured, and at which all frames are looked at for cuts
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Shot(NamedTuple):
    """What was measured of a clip; None what does not apply or was not to be measured.

    Args:
        start, end: seconds of the file; start None: all of the file, or of the table's piece of it.
        seconds: of the clip; 0: an image.
        border: share of the picture that is a dark border of one colour in all pictures.
        sharpness: variance of the Laplacian of luma at a longest side of 512, the median over pictures.
        motion: mean difference of luma between pictures, in levels of 255.
        static: share of pictures that hardly differ from the one before.
        hashes: of pictures at 1/4, 1/2 and 3/4 of its time.
    """

    start: float | None
    end: float | None
    seconds: float
    border: float | None = None
    sharpness: float | None = None
    motion: float | None = None
    static: float | None = None
    hashes: tuple[int, ...] = ()


class Clip(NamedTuple):
    """A file of the table, or one of its shots: what its header says (0 seconds: an image), how many shots, what was measured.

    `shot` is None where the header alone settled it.
    """

    file: File
    seconds: float
    height: int
    width: int
    shots: int = 1
    shot: Shot | None = None

    @property
    def length(self) -> float:
        """Seconds of the clip itself."""
        return self.shot.seconds if self.shot else self.seconds

    @property
    def piece(self) -> Piece | None:
        """What of the file it is; None: all of it."""
        if self.shot is None or self.shot.start is None:
            return self.file.piece
        return Piece(self.file.piece.video if self.file.piece else self.file.name, self.shot.start, self.shot.end)


class _Picture(NamedTuple):
    frame: int
    rows: np.ndarray  # (h 2): the darkest and the lightest of each row
    columns: np.ndarray
    sharpness: float
    motion: float  # from the picture before
    hash: int


def measure(file: File, size: tuple[int, int], settings: Any) -> list[Shot]:
    """The shots of a file whose pictures are (height, width), `curate.rate` of them a second; one where cuts are not told.

    Raises DataError where it cannot be read.
    """
    wanted, path = settings.scores, file.path
    long = _box(size, min(_LONG, max(size)))
    if file.image:
        picture = _picture(0, video.read(path, size=long.size, piece=file.piece)[0][0], None)[0]
        return [_shot([picture], None, None, 0.0, wanted)]
    times, tiny, pictures, before, newest = [], [], [], None, -1
    with demux.opened(path) as (container, stream):
        see, glance = (view.viewer(path, stream, box) for box in (long, _box(size, _SMALL)))
        for seconds, frame in demux.timed(path, container, stream, file.piece):
            if "cuts" in wanted:
                tiny.append(np.rint(cuts.tiny(glance(frame))).astype(np.uint8))
            times.append(seconds)
            now = int((seconds - times[0]) * settings.rate + 1e-6)
            if now > newest:
                newest, (picture, before) = now, _picture(len(times) - 1, see(frame), before)
                pictures.append(picture)
        last = 1 / float(stream.average_rate or 25)
    if not times:
        raise DataError(f"{path}: no frame of it can be decoded")
    edges = [0, *cuts.find(np.stack(tiny), settings.cut_levels), len(times)] if tiny else [0, len(times)]
    times.append(times[-1] + last)
    whole, shots = file.piece or Piece(file.name, 0.0, math.inf), []
    for first, end in zip(edges, edges[1:], strict=False):
        own = [picture for picture in pictures if first <= picture.frame < end]
        own = own or [min(pictures, key=lambda picture: abs(picture.frame - first))]  # a shot between two pictures
        # Half way between two frames, so that no rounding puts a frame on the other side.
        start = (times[first - 1] + times[first]) / 2 if first else whole.start
        stop = (times[end - 1] + times[end]) / 2 if end < len(times) - 1 else whole.end
        place = (start, stop) if len(edges) > 2 else (None, None)
        shots.append(_shot(own, *place, times[end] - times[first], wanted))
    return shots


def _box(size: tuple[int, int], longest: int) -> view.Box:
    """Frames of a longest side, no side below what `duplicates` and `cuts` divide them into."""
    scale = longest / max(size)
    fitted = tuple(max(duplicates.SIDE, round(side * scale)) for side in size)
    return view.Box(fitted, fitted, (0.5, 0.5))


def _picture(frame: int, rgb: np.ndarray, before: np.ndarray | None) -> tuple[_Picture, np.ndarray]:
    """What is measured of one picture (h w 3), and what the next one's motion is measured against."""
    luma = rgb.astype(np.float32) @ _LUMA
    smooth = _quarter(luma)
    motion = float("nan") if before is None else float(np.abs(smooth - before).mean())
    inner = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    rows, columns = (np.stack([luma.min(axis), luma.max(axis)], 1) for axis in (1, 0))
    return _Picture(frame, rows, columns, float(laplacian.var()), motion, duplicates.phash(luma)), smooth


def _quarter(luma: np.ndarray) -> np.ndarray:
    """Means over 4 x 4: coding and grain are no motion."""
    height, width = (side // 4 * 4 for side in luma.shape)
    return luma[:height, :width].reshape(height // 4, 4, width // 4, 4).mean((1, 3))


def _shot(own: list[_Picture], start: float | None, end: float | None, seconds: float, wanted: tuple[str, ...]) -> Shot:
    moved = [picture.motion for picture in own[1:]]
    at = [own[(len(own) - 1) * quarter // 4] for quarter in (1, 2, 3)]
    return Shot(
        start,
        end,
        seconds,
        border=_border(own) if "border" in wanted else None,
        sharpness=float(np.median([picture.sharpness for picture in own])) if "sharpness" in wanted else None,
        motion=float(np.mean(moved)) if "motion" in wanted and moved else None,
        static=float(np.mean(np.array(moved) < STILL)) if "motion" in wanted and moved else None,
        hashes=tuple(picture.hash for picture in at) if "duplicates" in wanted else (),
    )


def _border(own: list[_Picture]) -> float:
    """The share of the picture outside the largest rectangle that is no border, of all pictures together."""
    left = []
    for sides in ([picture.rows for picture in own], [picture.columns for picture in own]):
        darkest, lightest = np.min(sides, 0)[:, 0], np.max(sides, 0)[:, 1]
        shown = np.flatnonzero((lightest > _DARK) | (lightest - darkest > _FLAT))
        left.append((shown[-1] + 1 - shown[0]) / len(darkest) if len(shown) else 0.0)
    return 1 - left[0] * left[1]
