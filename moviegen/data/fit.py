"""Which bucket a clip goes to, at which rate it is shown, and what of it is cut off: told from its file's header alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from moviegen.errors import DataError
from moviegen.parallel.buckets import Bucket


class Metadata(NamedTuple):
    """What `video.probe` says of a file: frames, frames a second (0: an image), height and width, seconds."""

    frames: int
    fps: float
    height: int
    width: int
    seconds: float


class Fit(NamedTuple):
    """How a file becomes a sample of `bucket`.

    Args:
        fps: rate at which its frames are taken and shown; 0: an image, or as they are stored.
        start: first frame, counted at that rate.
        scale: factor of its sides.
        rows, columns: share of its height and width that is cut off, half at each end.
        seconds: of its duration that are cut off.
    """

    bucket: Bucket
    fps: float
    start: int
    scale: float
    rows: float
    columns: float
    seconds: float


class Lost(DataError):
    """A file that no bucket takes."""

    reason = "no bucket of its kind"


class TooShort(Lost):
    """A clip that does not fill the shortest bucket."""

    reason = "too short"


class TooSmall(Lost):
    """A file that would be enlarged more than `data.buckets.max_upscale`."""

    reason = "too small"


def fit(table: Sequence[Bucket], meta: Metadata, max_upscale: float = 0.0, rate: float = 0.0) -> Fit:
    """The bucket of the nearest ratio, and of those the longest that the clip fills; never stretched, cut at the centre.

    rate: that the table of clips or `data.fps` states; 0: the slowest of the bucket's at which the clip fills it. Where all
    buckets are of images a video is one too, its first frame. Raises Lost, which says why.
    """
    image = not meta.fps or all(each.kind == "image" for each in table)
    own = [each for each in table if (each.kind == "image") == image]
    if not own:
        raise Lost(
            f"is {'an image' if image else 'a video'}, and there is no bucket of {'images' if image else 'videos'}"
        )
    shape = math.log(meta.width / meta.height)
    _, height, width = min((abs(math.log(b.width / b.height) - shape), b.height, b.width) for b in own)
    scale = max(height / meta.height, width / meta.width)
    if 0 < max_upscale < scale - 1e-6:
        raise TooSmall(
            f"is {meta.width}x{meta.height}, which {width}x{height} enlarges {scale:.2f} times: "
            f"data.buckets.max_upscale is {max_upscale:g}"
        )
    rows, columns = (max(0.0, 1 - want / (scale * have)) for want, have in ((height, meta.height), (width, meta.width)))
    lengths = sorted((b for b in own if (b.height, b.width) == (height, width)), key=lambda b: -b.frames)
    if image:
        return Fit(lengths[0], 0.0, 0, scale, rows, columns, 0.0)
    for bucket in lengths:
        for fps in (rate,) if rate else bucket.rates or (0.0,):
            there = math.ceil(meta.seconds * fps - 1e-6) if fps else meta.frames
            if there >= bucket.frames:
                start = (there - bucket.frames) // 2 if bucket.rates else 0
                cut = max(0.0, meta.seconds - bucket.frames / (fps or meta.fps))
                return Fit(bucket, fps, start, scale, rows, columns, cut)
    at = f" at {rate:g} a second" if rate else f" up to {lengths[-1].rates[-1]:g} a second" if lengths[-1].rates else ""
    raise TooShort(
        f"has {meta.seconds:.2f} s, {meta.frames} frames: the shortest bucket takes {lengths[-1].frames} frames{at}"
    )
