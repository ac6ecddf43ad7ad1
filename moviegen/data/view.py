"""One stored frame as a viewer sees it: its colours, its pixels' shape, its transparency, which way is up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.errors import DataError

# Values of ISO/IEC 23091-2 (H.273), as files and FFmpeg have them.
BT709, BT601 = 1, 6
_MATRICES = (BT709, 4, 5, BT601, 7, 9)  # FCC, BT.601 twice, SMPTE 240M, BT.2020 beside them: what swscale converts
_UNTOLD = (0, 2, 3)  # RGB's (on frames that are not RGB), unspecified, reserved
_NOT_SDR = {8: "linear", 9: "logarithmic", 10: "logarithmic", 16: "PQ", 17: "SMPTE 428", 18: "HLG"}
_WHITE = 255  # what is under transparency
# swscale's flags: bicubic, colour at every pixel, exact rounding. Without the last two a picture is up to three levels darker.
_SCALER = 0x4 | 0x2000 | 0x40000


class Box(NamedTuple):
    """A frame is scaled to cover `cover`, of which `size` is cut out at the place `at`."""

    size: tuple[int, int]
    cover: tuple[int, int]
    at: tuple[float, float]


def viewer(path: Path, stream: Any, box: Box | None) -> Callable[[Any], np.ndarray]:
    """Returns the function from a stream's decoded frame to uint8 (h w 3) RGB, or raises DataError.

    The function raises it for a frame that is HDR or interlaced, or whose colours cannot be converted. It keeps a scaler, so
    it is one thread's.
    """
    from av.video.reformatter import VideoReformatter

    pixel = float(stream.sample_aspect_ratio or 1)
    if not 0.1 <= pixel <= 10:
        raise DataError(f"{path}: its pixels are {pixel:.4g} times as wide as high, expected 0.1 to 10")
    if stream.metadata.get("alpha_mode") == "1":  # of WebM, in a layer beside the frames, which is not decoded
        way = "make a copy that is not: ffmpeg -c:v libvpx-vp9 -i IN -pix_fmt yuv420p OUT"
        raise DataError(f"{path}: is transparent, which is not read in VP8 and VP9; {way}")

    scaler = VideoReformatter()

    def seen(frame: Any) -> np.ndarray:
        if frame.interlaced_frame:
            raise DataError(
                f"{path}: is interlaced, which is not read; make a copy that is not: ffmpeg -i IN -vf bwdif=send_frame OUT"
            )
        if frame.color_trc in _NOT_SDR:
            curve = _NOT_SDR[frame.color_trc]
            raise DataError(
                f"{path}: is HDR or raw ({curve} light), which is not read: tone-map it to BT.709 (docs/data.md)"
            )
        colours = {}
        if not frame.format.is_rgb and frame.colorspace not in _MATRICES:
            if frame.colorspace not in _UNTOLD:
                raise DataError(
                    f"{path}: its colour matrix, {frame.colorspace} of H.273, is not read: convert it to BT.709"
                )
            colours["src_colorspace"] = "ITU709" if frame.width >= 1280 or frame.height > 576 else "ITU601"  # as mpv
        turns, mirrored = round(frame.rotation / 90) % 4, _mirrored(frame)  # counter-clockwise, as numpy turns
        if frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components):
            # Before any scaling, which would mix hidden colours into what is at their border.
            opaque, colours = over_white(frame.to_ndarray(format="rgba", **colours)), {}
            frame = type(frame).from_ndarray(opaque, format="rgb24")
        return fitted(frame, scaler, box, pixel, turns, mirrored, **colours)

    return seen


def fitted(
    frame: Any,
    scaler: Any,
    box: Box | None,
    pixel: float = 1.0,
    turns: int = 0,
    mirrored: bool = False,
    **colours: str,
) -> np.ndarray:
    """av.VideoFrame -> uint8 (h w 3): scaled to square pixels that cover, turned upright, cropped.

    `scaler`: an av.VideoReformatter, for all frames of a video. `pixel`: how wide one is for its height. `turns`: quarters,
    counter-clockwise, after top and bottom have changed places if `mirrored`. Without a box only as large as its pixels
    need to be square, none of them smaller.
    """
    height, width = (frame.height, frame.width * pixel) if pixel >= 1 else (frame.height / pixel, frame.width)
    if box:
        cover = box.cover if turns % 2 == 0 else box.cover[::-1]
        scale = max(cover[0] / height, cover[1] / width)
        height, width = max(cover[0], round(height * scale)), max(cover[1], round(width * scale))
    size = {"height": round(height), "width": round(width)}
    # Colour by colour is what swscale is fast at, from YUV: half the time, and the same to the bit. Its own threads, as many
    # as there are cores, would take longer to start than they work.
    form = "rgb24" if frame.format.is_rgb else "gbrp"
    frame = scaler.reformat(frame, format=form, interpolation=_SCALER, threads=1, **size, **colours)
    if form == "rgb24":
        planes = list(np.moveaxis(frame.to_ndarray(), -1, 0))
    else:
        rows = (np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes)
        green, blue, red = (plane[: frame.height, : frame.width] for plane in rows)
        planes = [red, green, blue]
    planes = [np.rot90(plane[::-1] if mirrored else plane, turns) for plane in planes]
    if box:
        height, width = box.size
        top, left = (int(at * (have - want)) for at, have, want in zip(box.at, planes[0].shape, box.size, strict=True))
        planes = [plane[top : top + height, left : left + width] for plane in planes]
    return np.moveaxis(np.stack(planes), 0, -1)


def _mirrored(frame: Any) -> bool:
    """Whether the matrix by which a frame is shown has a negative determinant: its rotation does not tell."""
    from av.sidedata.sidedata import SideDataContainer

    try:
        # Not frame.side_data: frame and container would hold each other, so that decoders wait for the garbage collector.
        a, b, _, c, d = np.frombuffer(SideDataContainer(frame)["DISPLAYMATRIX"], np.int32)[:5].astype(np.float64)
    except (KeyError, ValueError):  # it has none, or has beside it what PyAV does not know
        return False
    return a * d < b * c


def over_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 (h w 4), colours not multiplied by their opacity -> uint8 (h w 3) over white, rounded to nearest."""
    opacity = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * opacity + _WHITE * (255 - opacity) + 127) // 255).astype(np.uint8)
