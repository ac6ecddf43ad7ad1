"""Video and image files in and out: PyAV for MP4 and the like, Pillow for PNG and JPEG.

Frames are uint8 `(t h w c)` RGB everywhere outside a model; `to_model` and `to_uint8` cross that border.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import einops
import numpy as np

from moviegen.errors import DataError
from moviegen.storage import files

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Box(NamedTuple):
    """A frame is scaled to cover `cover`, of which `size` is cut out at the place `at`."""

    size: tuple[int, int]
    cover: tuple[int, int]
    at: tuple[float, float]


def read(
    path: str | Path,
    start: int = 0,
    num_frames: int | None = None,
    stride: int = 1,
    size: int | tuple[int, int] | None = None,
    cover: tuple[int, int] | None = None,
    at: tuple[float, float] = (0.5, 0.5),
    fps: float = 0.0,
) -> tuple[np.ndarray, float]:
    """Decodes frames start, start + stride, ... exactly, counted in display order from the first decodable frame.

    Args:
        num_frames: None for all up to the end of the file.
        size: (height, width) or a square's side, which frames are scaled to cover, keeping their aspect in stored pixels,
            and cropped to. None keeps the stored size.
        cover: what they are scaled to cover instead, where that is larger than size.
        at: where the crop lies, from (0, 0), top left, to (1, 1), bottom right.
        fps: frames are those on show at times 0, 1/fps, 2/fps, ... of the file's clock, and start and stride count these;
            0 takes the frames as stored.
    Returns uint8 (t h w c) RGB with the file's rotation applied, and the frames per second of the result (0 for an image,
    which is one frame). Raises DataError for a missing, damaged or truncated file, no video in it or too few frames.
    """
    if start < 0 or stride < 1 or (num_frames is not None and num_frames < 1):
        raise ValueError(f"start {start}, num_frames {num_frames}, stride {stride}: expected start >= 0, others >= 1")
    path = _existing(path)
    box = None if size is None else Box(height_width(size), cover or height_width(size), at)
    if is_image(path):
        if start or (num_frames or 1) != 1:
            raise DataError(f"{path}: an image has one frame, {num_frames} from frame {start} were asked for")
        return _read_image(path, box)[None], 0.0
    stop = None if num_frames is None else start + (num_frames - 1) * stride + 1
    if start and stop and not fps and (sought := _sought(path, range(start, stop, stride), box)):
        return np.stack(sought[0]), sought[1] / stride
    with _opened(path) as (container, stream):
        frames, decoded = [], 0
        shown = itertools.islice(_at_rate(container.decode(stream), fps, stream.average_rate), stop)
        for decoded, frame in enumerate(shown, 1):
            if decoded > start and (decoded - 1 - start) % stride == 0:
                frames.append(_to_array(frame, box))
        rate = (fps or float(stream.average_rate or 0)) / stride
        promised = 0 if fps else stream.frames
    if decoded == 0:
        raise DataError(f"{path}: holds no decodable video frame")
    if stop is not None and decoded < stop:
        raise DataError(f"{path}: {decoded} frames, but frames {start} to {stop - 1} were asked for")
    if stop is None and decoded < promised:
        raise DataError(f"{path}: truncated or damaged, its header promises {promised} frames but {decoded} decode")
    if not frames:
        raise DataError(f"{path}: {decoded} frames, but frames from {start} were asked for")
    return np.stack(frames), rate


def is_image(path: Path) -> bool:
    """Whether a file is a picture, by its name."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def probe(path: str | Path) -> dict[str, float]:
    """Frames (counted, not the header's word), fps, height and width as `read` returns them, seconds. Raises DataError."""
    path = _existing(path)
    if is_image(path):
        height, width = _read_image(path, None).shape[:2]
        return {"frames": 1, "fps": 0.0, "height": height, "width": width, "seconds": 0.0}
    with _opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise DataError(f"{path}: holds no decodable video frame")
        height, width = _to_array(first, None).shape[:2]
        fps = float(stream.average_rate or 0)
    frames, _ = _index(path)
    return {"frames": frames, "fps": fps, "height": height, "width": width, "seconds": frames / fps if fps else 0.0}


def height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of a size given as that pair or as the side of a square, in pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def to_model(frames: np.ndarray) -> np.ndarray:
    """uint8 (t h w c) -> float32 (c t h w) in [-1, 1]."""
    return np.ascontiguousarray(einops.rearrange(frames, "t h w c -> c t h w"), np.float32) / 127.5 - 1.0


def to_uint8(video: np.ndarray) -> np.ndarray:
    """float (c t h w) in [-1, 1], clipped to it -> uint8 (t h w c), rounded to nearest."""
    levels = np.rint((np.clip(np.asarray(video, np.float32), -1.0, 1.0) + 1.0) * 127.5)
    return np.ascontiguousarray(einops.rearrange(levels.astype(np.uint8), "c t h w -> t h w c"))


def write_mp4(path: str | Path, frames: np.ndarray | Iterable[np.ndarray], fps: float) -> None:
    """Writes uint8 (t h w c), or one such piece after another, as H.264 yuv420p at constant quality 18, for any browser.

    Raises ValueError when height or width is odd (4:2:0 has one chroma sample per 2x2 pixels), or fps <= 0.
    """
    import av

    pieces = (_checked(piece) for piece in ([frames] if isinstance(frames, np.ndarray) else frames))
    first = next(pieces)
    height, width = first.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 yuv420p needs an even height and width, got {height}x{width}")
    if not fps > 0:
        raise ValueError(f"{path}: frames per second must be above 0, got {fps}")
    with files.aside(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        rate = Fraction(float(fps)).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index, array in enumerate(array for piece in itertools.chain([first], pieces) for array in piece):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_png(path: str | Path, frame: np.ndarray) -> None:
    """Writes one uint8 (h w c) frame, without loss."""
    from PIL import Image

    image = Image.fromarray(_checked(frame[None])[0])
    with files.aside(path) as temporary:
        image.save(temporary, format="PNG")


def write_sheet(path: str | Path, frames: np.ndarray, columns: int) -> None:
    """Writes uint8 (t h w c) frames as one PNG, row by row in `columns` columns, two white pixels between them."""
    gap = 2
    padding = ((0, -len(frames) % columns), (0, gap), (0, gap), (0, 0))
    padded = np.pad(_checked(frames), padding, constant_values=255)
    sheet = einops.rearrange(padded, "(row column) h w c -> (row h) (column w) c", column=columns)
    write_png(path, sheet[:-gap, :-gap])


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return path


def _checked(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"expected uint8 frames (t h w 3), got {frames.dtype} {frames.shape}")
    return np.ascontiguousarray(frames)


@contextlib.contextmanager
def _opened(path: Path):
    """Opens the file's first moving-picture stream; every failure of the decoder inside becomes a DataError."""
    import av

    try:
        with av.open(str(path)) as container:
            cover = av.stream.Disposition.attached_pic  # an audio file's cover picture is no video
            streams = [s for s in container.streams.video if not s.disposition & cover]
            if not streams:
                raise DataError(f"{path}: holds no video stream (audio only?)")
            streams[0].thread_type = "AUTO"
            yield container, streams[0]
    except av.FFmpegError as error:
        raise DataError(f"{path}: damaged, truncated or not a video ({error.strerror})") from error


def _sought(path: Path, wanted: range, box: Box | None) -> tuple[list[np.ndarray], float] | None:
    """Some frames, decoded from the last key frame before them on, and the file's rate; None if its times do not tell them."""
    _, times = _index(path)
    if times is None or wanted[-1] >= len(times):
        return None
    chosen, frames = {int(times[i]) for i in wanted}, []
    with _opened(path) as (container, stream):
        container.seek(min(chosen), stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts in chosen:
                frames.append(_to_array(frame, box))
            if frame.pts is None or frame.pts >= max(chosen):
                break
        rate = float(stream.average_rate or 0)
    return (frames, rate) if len(frames) == len(wanted) else None


def _index(path: Path) -> tuple[int, np.ndarray | None]:
    """How many frames a file has, and when each is shown, in the stream's units, rising; None if the file does not say it."""
    status = path.stat()
    return _indexed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1024)
def _indexed(path: Path, changed: int, size: int) -> tuple[int, np.ndarray | None]:
    with _opened(path) as (container, stream):
        # One packet is one frame in every codec that we read; the flush packet at the end has no size.
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        times, whole = [packet.pts for packet in packets], bool(packets) and packets[0].is_keyframe
    told = whole and None not in times and len(set(times)) == len(times)
    return len(times), np.sort(np.array(times)) if told else None


def _at_rate(frames: Iterator[Any], fps: float, average: Any) -> Iterator[Any]:
    """The frame on show at each time k / fps, from the first frame to the end of the last."""
    if not fps:
        yield from frames
        return
    shown, first, now, emitted = None, 0.0, 0.0, 0
    for index, frame in enumerate(itertools.chain(frames, [None])):
        if frame is None:
            now += 1 / float(average or fps)
        else:
            now = index / float(average or fps) if frame.time is None else frame.time
        if shown is None:
            first = now
        while shown is not None and first + emitted / fps < now - 1e-6:
            yield shown
            emitted += 1
        shown = frame


def _read_image(path: Path, box: Box | None) -> np.ndarray:
    import av
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            array = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{path}: damaged, truncated or not an image ({error})") from error
    return _to_array(av.VideoFrame.from_ndarray(array, format="rgb24"), box)


def _to_array(frame, box: Box | None) -> np.ndarray:
    """av.VideoFrame -> uint8 (h w c): scaled to cover, cropped, turned upright."""
    turns = round(frame.rotation / 90) % 4  # counter-clockwise, as numpy turns
    if box is None:
        return np.rot90(frame.to_ndarray(format="rgb24"), turns)
    cover = box.cover if turns % 2 == 0 else box.cover[::-1]
    scale = max(cover[0] / frame.height, cover[1] / frame.width)
    height, width = max(cover[0], round(frame.height * scale)), max(cover[1], round(frame.width * scale))
    array = frame.to_ndarray(format="rgb24", height=height, width=width, interpolation="BICUBIC")
    array = np.rot90(array, turns)
    height, width = box.size
    top, left = (int(where * (have - want)) for where, have, want in zip(box.at, array.shape, box.size, strict=False))
    return array[top : top + height, left : left + width]
