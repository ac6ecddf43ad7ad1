"""Video and image files in and out: PyAV for MP4 and the like, Pillow for PNG and JPEG.

Frames are uint8 `(t h w c)` RGB everywhere outside a model; `to_model` and `to_uint8` cross that border.
"""

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import einops
import numpy as np

from moviegen.data import demux, image, view
from moviegen.data.pieces import Piece
from moviegen.errors import DataError
from moviegen.storage import files

IMAGE_SUFFIXES = image.SUFFIXES
PIECE = 32  # frames of a film that are in memory at a time, and that the autoencoder encodes together


def read(
    path: str | Path,
    start: int = 0,
    num_frames: int | None = None,
    stride: int = 1,
    size: int | tuple[int, int] | None = None,
    cover: tuple[int, int] | None = None,
    at: tuple[float, float] = (0.5, 0.5),
    fps: float = 0.0,
    threads: int = 0,
    piece: Piece | None = None,
) -> tuple[np.ndarray, float]:
    """Decodes frames start, start + stride, ... exactly, counted in display order from the first decodable frame.

    Args:
        num_frames: None for all up to the end of the file.
        size: (height, width) or a square's side, which frames are scaled to cover, keeping their aspect as shown, and
            cropped to. None keeps the stored size, but for pixels that are not square.
        cover: what they are scaled to cover instead, where that is larger than size.
        at: where the crop lies, from (0, 0), top left, to (1, 1), bottom right.
        fps: frames are those on show at times 0, 1/fps, 2/fps, ... of the file's clock, and start and stride count these;
            0 takes the frames as stored.
        threads: that decode; 0: as many as there are cores.
        piece: of the file; frames are counted, and times told, from its first frame, and nothing outside it is there.
    Returns uint8 (t h w c) RGB as a viewer shows it (docs/data.md), and the frames per second of the result (0 for an image,
    which is one frame). Raises DataError for a missing, damaged or truncated file, no video in it or too few frames.
    """
    return next(stream(path, start, num_frames, stride, size, cover, at, fps, None, threads, piece))


def stream(
    path: str | Path,
    start: int = 0,
    num_frames: int | None = None,
    stride: int = 1,
    size: int | tuple[int, int] | None = None,
    cover: tuple[int, int] | None = None,
    at: tuple[float, float] = (0.5, 0.5),
    fps: float = 0.0,
    most: int | None = PIECE,
    threads: int = 0,
    piece: Piece | None = None,
) -> Iterator[tuple[np.ndarray, float]]:
    """What `read` gives in pieces of `most` frames, the last of fewer, each with the rate: a long film is never in memory.

    None: in one piece. What is wrong with the end of a file is raised when that is reached.
    """
    if start < 0 or stride < 1 or (num_frames is not None and num_frames < 1):
        raise ValueError(f"start {start}, num_frames {num_frames}, stride {stride}: expected start >= 0, others >= 1")
    path = files.existing(path)
    box = None if size is None else view.Box(height_width(size), cover or height_width(size), at)
    if is_image(path):
        _no_piece(path, piece)
        if start or (num_frames or 1) != 1:
            raise DataError(f"{path}: an image has one frame, {num_frames} from frame {start} were asked for")
        yield _picture(path, box)[None], 0.0
        return
    stop = None if num_frames is None else start + (num_frames - 1) * stride + 1
    at_once = start and stop and not fps and not piece and num_frames <= (most or num_frames)
    if at_once and (sought := _sought(path, range(start, stop, stride), box, threads)):
        yield _stacked(path, sought[0], set()), sought[1] / stride
        return
    with demux.opened(path, threads) as (container, coded):
        frames, decoded, seen, sizes = [], 0, view.viewer(path, coded, box), set()
        rate = (fps or float(coded.average_rate or 0)) / stride
        timed = demux.timed(path, container, coded, piece, fps)
        shown = itertools.islice(_at_rate(timed, fps, float(coded.average_rate or fps)), stop)
        for decoded, frame in enumerate(shown, 1):
            if decoded > start and (decoded - 1 - start) % stride == 0:
                if len(frames) == most:
                    yield _stacked(path, frames, sizes), rate
                    frames = []
                frames.append(seen(frame))
    if decoded == 0:
        raise DataError(_none_there(path, piece))
    path = path if piece is None else Path(piece.name)  # in what is told
    if stop is not None and decoded < stop:
        raise DataError(f"{path}: {decoded} frames, but frames {start} to {stop - 1} were asked for")
    if stop is None and piece is None:
        _check_whole(path, None if fps else decoded)
    if not frames:
        raise DataError(f"{path}: {decoded} frames, but frames from {start} were asked for")
    yield _stacked(path, frames, sizes), rate


def is_image(path: Path) -> bool:
    """Whether a file is a picture, by its name."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def probe(path: str | Path, piece: Piece | None = None) -> dict[str, float]:
    """Frames (counted, not the header's word), fps, height and width as `read` returns them, and seconds; or of a piece.

    Raises DataError.
    """
    path = files.existing(path)
    if is_image(path):
        _no_piece(path, piece)
        height, width = _picture(path, None).shape[:2]
        return {"frames": 1, "fps": 0.0, "height": height, "width": width, "seconds": 0.0}
    with demux.opened(path) as (container, stream):
        stream.thread_type = "NONE"  # of one frame: a dozen threads would read a dozen more first
        first = next(container.decode(stream), None)
        if first is None:
            raise DataError(f"{path}: holds no decodable video frame")
        height, width = view.viewer(path, stream, None)(first).shape[:2]
        fps = stream.average_rate or 0
    frames, seconds = demux.extent(path, piece)
    if not frames:
        raise DataError(_none_there(path, piece))
    if fps:  # of the file's clock, by which `read` takes frames at a rate
        seconds = frames / fps if seconds is None else seconds + 1 / fps
    return {"frames": frames, "fps": float(fps), "height": height, "width": width, "seconds": float(seconds or 0)}


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

    Colours are converted by BT.709 to the limited range, and the file says so. Raises ValueError when height or width is odd
    (4:2:0 has one chroma sample per 2x2 pixels), or fps <= 0; DataError when it cannot be written, and nothing is left.
    """
    import av

    pieces = (_checked(piece) for piece in ([frames] if isinstance(frames, np.ndarray) else frames))
    first = next(pieces)
    height, width = first.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 yuv420p needs an even height and width, got {height}x{width}")
    if not fps > 0:
        raise ValueError(f"{path}: frames per second must be above 0, got {fps}")
    rate = Fraction(float(fps)).limit_denominator(1001)
    matrix, limited = view.BT709, 1  # of H.273, as are primaries and transfer; FFmpeg's number of the range
    refused = files.refused(f"{path}: cannot be written", av.FFmpegError)
    with files.aside(path) as temporary, refused, av.open(f"file:{temporary}", "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.colorspace = stream.color_primaries = stream.color_trc = matrix
        stream.color_range = limited
        for index, array in enumerate(array for piece in itertools.chain([first], pieces) for array in piece):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range=limited)
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_png(path: str | Path, frame: np.ndarray) -> None:
    """Writes one uint8 (h w c) frame, without loss. DataError when it cannot be written, and nothing is left."""
    from PIL import Image

    picture = Image.fromarray(_checked(frame[None])[0])
    with files.aside(path) as temporary, files.refused(f"{path}: cannot be written", OSError):
        picture.save(temporary, format="PNG")


def write_sheet(path: str | Path, frames: np.ndarray, columns: int) -> None:
    """Writes uint8 (t h w c) frames as one PNG, row by row in `columns` columns, two white pixels between them."""
    gap = 2
    padding = ((0, -len(frames) % columns), (0, gap), (0, gap), (0, 0))
    padded = np.pad(_checked(frames), padding, constant_values=255)
    sheet = einops.rearrange(padded, "(row column) h w c -> (row h) (column w) c", column=columns)
    write_png(path, sheet[:-gap, :-gap])


def _checked(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"expected uint8 frames (t h w 3), got {frames.dtype} {frames.shape}")
    return np.ascontiguousarray(frames)


def _picture(path: Path, box: view.Box | None) -> np.ndarray:
    import av

    scaler = av.video.reformatter.VideoReformatter()
    return view.fitted(av.VideoFrame.from_ndarray(image.read(path), format="rgb24"), scaler, box)


def _no_piece(path: Path, piece: Piece | None) -> None:
    if piece:
        raise DataError(f"{path}: an image has no start and no end: leave the two empty")


def _none_there(path: Path, piece: Piece | None) -> str:
    if piece is None:
        return f"{path}: holds no decodable video frame"
    return f"{path}: shows no frame from {piece.start:g} to {piece.end:g} s (columns start and end)"


def _check_whole(path: Path, decoded: int | None) -> None:
    """Raises DataError where a file promises more than it holds, or than were decoded of it (None: not counted)."""
    index = demux.index(path)
    promised, decoded = index.frames + index.lost, index.frames if decoded is None else decoded
    if decoded < promised:
        raise DataError(f"{path}: truncated or damaged, its header promises {promised} frames but {decoded} decode")


def _stacked(path: Path, frames: list[np.ndarray], seen: set[tuple[int, ...]]) -> np.ndarray:
    """One piece; its frames' sizes come to those `seen` in the pieces before."""
    seen |= {frame.shape[:2] for frame in frames}
    if len(seen) > 1:
        raise DataError(f"{path}: its size changes, from {min(seen)} to {max(seen)}: read it at one size")
    return np.stack(frames)


def _sought(path: Path, wanted: range, box: view.Box | None, threads: int) -> tuple[list[np.ndarray], float] | None:
    """Some frames, decoded from the last key frame before them on, and the file's rate; None if its times do not tell them."""
    times = demux.index(path).times
    if times is None or wanted[-1] >= len(times):
        return None
    chosen, found = {int(times[i]) for i in wanted}, []
    with demux.opened(path, threads) as (container, stream):
        seen = view.viewer(path, stream, box)
        container.seek(min(chosen), stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts in chosen:
                found.append(seen(frame))
            if frame.pts is None or frame.pts >= max(chosen):
                break
        rate = float(stream.average_rate or 0)
    return (found, rate) if len(found) == len(wanted) else None


def _at_rate(timed: Iterator[tuple[float, Any]], fps: float, average: float) -> Iterator[Any]:
    """The frame on show at each time k / fps, from the first frame to the end of the last, `average` frames a second."""
    if not fps:
        yield from (frame for _, frame in timed)
        return
    shown, first, now, emitted = None, 0.0, 0.0, 0
    for time, frame in itertools.chain(timed, [(None, None)]):
        now = now + 1 / average if time is None else time
        if shown is None:
            first = now
        while shown is not None and first + emitted / fps < now - 1e-6:
            yield shown
            emitted += 1
        shown = frame
