"""Small pictures of what a sample shows, for contact sheets: frames of its file, what is cut off them darkened."""

import io

import numpy as np

from moviegen.data import video
from moviegen.data.findings import Sample

HEIGHT, WIDTH = 100, 176  # at most, of a frame on a sheet
_DARK = 0.3


def strip(sample: Sample) -> bytes:
    """A JPEG of the first, middle and last frame that are taken of a video, or of an image. Raises DataError."""
    meta, own = sample.meta, sample.fit
    scale = min(HEIGHT / meta.height, WIDTH / meta.width)
    size = max(1, round(meta.height * scale)), max(1, round(meta.width * scale))
    if own.bucket.frames == 1:
        chosen = [0]
    else:
        step = meta.fps / own.fps if own.fps else 1.0  # stored frames for one that is shown
        last = min(meta.frames - 1, int((own.start + own.bucket.frames - 1) * step))
        first = min(last, int(own.start * step))
        chosen = [first, (first + last) // 2, last]
    frames = [_dimmed(video.read(sample.file.path, at, 1, size=size)[0][0], own.rows, own.columns) for at in chosen]
    gap = np.full((size[0], 2, 3), 255, np.uint8)
    parts = [part for frame in frames for part in (gap, frame)][1:]
    return _jpeg(np.concatenate(parts, 1))


def _dimmed(frame: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """The frame with what is cut off at its borders darkened."""
    top, left = (int(share / 2 * size + 0.5) for share, size in zip((rows, columns), frame.shape, strict=False))
    inside = slice(top, frame.shape[0] - top), slice(left, frame.shape[1] - left)
    shown = (frame * _DARK).astype(np.uint8)
    shown[inside] = frame[inside]
    return shown


def _jpeg(frame: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=85)
    return content.getvalue()
