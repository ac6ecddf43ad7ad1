"""Video files opened, and which frames are in them: one count for probing, reading and caching."""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.data.pieces import Piece
from moviegen.errors import DataError

# Containers that hold their frames themselves: a playlist (HLS, concat, DASH) would open whatever it names. Those of sound
# are there to be told as such.
_FORMATS = "asf,avi,flv,gif,h264,hevc,ivf,matroska,webm,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,ogg,yuv4mpegpipe,mp3,wav,flac,aac"
_MAX_PIXELS = 1 << 28  # of one frame: more is a broken or hostile header, and gigabytes
# One packet is one frame in these. Elsewhere there are packets that show nothing (VP8's references, MPEG-4's skipped frames).
_ONE_EACH = ("av1", "ffv1", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "prores", "vp9")
_REACH = 64  # packets: one that is shown before another that comes first in the file is no further from it; H.264's reach is 16


class Index(NamedTuple):
    """What a file shows: frames, when each in the stream's units, rising (None: it does not tell), and how many it lacks.

    `unit`: seconds of one of these units.
    """

    frames: int
    times: np.ndarray | None
    lost: int
    unit: float = 0.0

    def within(self, piece: Piece) -> np.ndarray:
        """The times of a piece's frames, where the file tells them."""
        return self.times[piece.holds((self.times - self.times[0]) * self.unit)]


@contextlib.contextmanager
def opened(path: Path, threads: int = 0) -> Iterator[tuple[Any, Any]]:
    """Opens the file's first moving-picture stream; every failure of the decoder inside becomes a DataError.

    `threads`: that decode, 0: as many as there are cores.
    """
    import av

    try:
        limit = {"max_pixels": str(_MAX_PIXELS)}
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"} | limit
        # "file:", or a name such as "concat:a" would be more than a name. Tags may be in any encoding.
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
            cover = av.stream.Disposition.attached_pic  # an audio file's cover picture is no video
            streams = [s for s in container.streams.video if not s.disposition & cover]
            if not streams:
                raise DataError(f"{path}: holds no video stream (audio only?)")
            stream = streams[0]
            if stream.codec_context is None:
                raise DataError(f"{path}: its video is coded in a way that the installed FFmpeg does not decode")
            stream.thread_type, stream.thread_count, stream.options = "AUTO", threads, limit
            yield container, stream
    except av.FFmpegError as error:
        raise DataError(
            f"{path}: damaged, truncated or not a video of a kind that is read ({error.strerror})"
        ) from error


def extent(path: Path, piece: Piece | None = None) -> tuple[int, Fraction | float | None]:
    """Frames of `index`, or of a piece, and seconds from the first to the last, where the file tells.

    An MP4 or MOV file's header and its first and last packets say so, where they leave no doubt; others are looked through.
    Raises DataError.
    """
    if piece is not None:
        found = index(path)
        if found.times is not None:
            times = found.within(piece)
            return len(times), float(np.ptp(times) * found.unit) if len(times) else None
        with opened(path) as (container, stream):
            return sum(1 for _ in timed(path, container, stream, piece)), None
    with opened(path) as (container, stream):
        unit = stream.time_base
        if "mov" in container.format.name and stream.frames and stream.codec_context.codec.canonical_name in _ONE_EACH:
            entries, size = list(stream.index_entries), path.stat().st_size
            first = [packet.pts for packet in itertools.islice(container.demux(stream), _REACH) if packet.size]
            clear = entries and entries[0].is_keyframe and first and None not in first and first[0] == min(first)
            if clear and all(0 < each.size <= size - each.pos and not each.is_discard for each in entries):
                container.seek(entries[-min(_REACH, len(entries))].timestamp, stream=stream, any_frame=True)
                last = [packet.pts for packet in container.demux(stream) if packet.size]
                if last and None not in last:
                    return len(entries), (max(last) - first[0]) * unit
    found = index(path)
    return found.frames, None if found.times is None else int(found.times[-1] - found.times[0]) * unit


def index(path: Path) -> Index:
    """Looks through a whole file, once while it does not change. Raises DataError."""
    status = path.stat()
    return _index(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1024)
def _index(path: Path, changed: int, size: int) -> Index:
    with opened(path) as (container, stream):
        kind, promised, held, packets = container.format.name, stream.frames, -1, []
        unit = float(stream.time_base or 0)
        if "mov" in kind:
            promised = len(stream.index_entries)  # without what an edit list leaves out
        for packet in container.demux(stream):  # one at a time: together they are the file
            held += 1  # of the file's, so without the last one, which ends the decoder's
            if packet.size:
                packets.append((packet.pts, packet.is_keyframe, packet.is_discard))
        times = [time for time, _, _ in packets]
        if kind == "avi" and None not in times:
            held = max(times, default=-1) + 1  # with the empty ones, which are numbered and not handed out
        first_key = bool(packets) and packets[0][1]
        # What is shown before the first key frame lacks what it refers to: whether it decodes is up to the decoder.
        clear = first_key and None not in times and times[0] == min(times)
        clear = clear and stream.codec_context.codec.canonical_name in _ONE_EACH
    if clear:
        shown = [time for time, _, unseen in packets if not unseen]
    else:
        with opened(path) as (container, stream):
            shown = [frame.pts for frame in container.decode(stream)]
    told = first_key and None not in shown and len(set(shown)) == len(shown)
    return Index(len(shown), np.sort(np.array(shown)) if told else None, max(0, promised - held), unit)


def timed(
    path: Path, container: Any, stream: Any, piece: Piece | None = None, rate: float = 0.0
) -> Iterator[tuple[float, Any]]:
    """Frames in display order, of a piece those in it, with the seconds since the file's first.

    rate: of frames that do not tell their time, where the file has none either.
    """
    rate = float(stream.average_rate or rate or 1)
    if piece is None or index(path).times is None:
        yield from _told(container.decode(stream), None, piece, rate)
        return
    times, inside = index(path).times, index(path).within(piece)
    if len(inside):
        container.seek(int(inside[0]), stream=stream, backward=True)  # to the key frame before
        frames = container.decode(stream)
        key = next(frames, None)
        if key is not None and key.pts is not None and key.pts <= inside[0]:
            yield from _told(itertools.chain([key], frames), float(times[0] * stream.time_base), piece, rate)
        else:  # MPEG's containers miss at times
            with opened(path) as (again, stream):
                yield from _told(again.decode(stream), None, piece, rate)


def _told(frames: Iterator[Any], first: float | None, piece: Piece | None, rate: float) -> Iterator[tuple[float, Any]]:
    for number, frame in enumerate(frames):
        now = number / rate if frame.time is None else frame.time
        first = now if first is None else first
        if piece and now - first >= piece.end:
            return
        if not piece or piece.holds(now - first):
            yield now - first, frame
