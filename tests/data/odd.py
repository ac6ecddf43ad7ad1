"""Pictures and clips as the world has them. All that can be read show one scene: red on the left, white on the right."""

import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

RED, FRAMES, HEIGHT, WIDTH = (220, 30, 40), 8, 48, 64

# name -> a part of the reason for which it is refused, or "" where it shows the scene
FILES = {
    "rgba.png": "",
    "palette.png": "",
    "rgba.webp": "",
    "turned.jpg": "",
    "rgba.mov": "",
    "argb.mov": "",
    "yuva.mkv": "",
    "palette.avi": "",
    "untold.mp4": "",
    "bt601.mp4": "",
    "bt709.mp4": "",
    "full.mp4": "",
    "wide_pixels.mp4": "",
    "high_pixels_turned.mp4": "",
    "cut.mp4": "",
    "open.mkv": "",
    "late.avi": "",
    "skipped.avi": "",
    "latin1.avi": "",
    "eps.png": "not one of PNG, JPEG, WEBP, BMP",
    "bomb.png": "decompression bomb",
    "bomb.avi": "not a video of a kind that is read",
    "foreign.mkv": "the installed FFmpeg does not decode",
    "layers.webm": "transparent",
    "interlaced.mp4": "interlaced",
    "pq.mkv": r"HDR .*PQ",
    "hlg.mkv": r"HDR .*HLG",
    "ycgco.mkv": "colour matrix, 8",
    "needles.mp4": "0.05 times as wide as high",
    "hls.m3u8": "not a video of a kind that is read",
    "concat.mp4": "not a video of a kind that is read",
    "folder.mp4": "is a folder, a pipe or a device",
    "pipe.mp4": "is a folder, a pipe or a device",
    "n" * 300: "cannot be (read|the name of a file)",
}


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    frame = np.full((height, width, 3), 255, np.uint8)
    frame[:, : width // 2] = RED
    return frame


def transparent() -> np.ndarray:
    """The scene (h w 4) with blue hidden in its right half."""
    frame = np.full((HEIGHT, WIDTH, 4), (0, 0, 255, 0), np.uint8)
    frame[:, : WIDTH // 2] = (*RED, 255)
    return frame


def encode(path, codec, fmt, frames, first=0, matrix=None, full=False, pixel=None, title=None, options=None, **tags):
    """Writes frames (h w 3 or 4), of a palette indices and colours; converted by `matrix` (PyAV's name), tagged as `tags`."""
    with av.open(str(path), "w", metadata_encoding="latin-1") as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=8, options={"crf": "6"} | (options or {}))
        stream.pix_fmt = fmt
        for key, value in tags.items():
            setattr(stream, key, value)
        if pixel:
            stream.codec_context.sample_aspect_ratio = Fraction(*pixel)
        for i, array in enumerate(frames, first):
            kind = fmt if fmt == "pal8" else "rgba" if array.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(array, format=kind)
            if kind != fmt:
                frame = frame.reformat(format=fmt, dst_colorspace=matrix, dst_color_range=2 if full else 1)
            if i == first:
                stream.height, stream.width = frame.height, frame.width
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def cut(source, path, first, replaced=()):
    """Copies a file from frame `first` on without encoding anew, so from the key frame before it; some packets replaced."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = list(old.demux(stream))[:-1]
        start = sorted(packet.pts for packet in packets)[first]
        key = max(i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= start)
        for i, packet in enumerate(packets[key:]):
            pts, dts, base = packet.pts - start, packet.dts - start, packet.time_base
            packet = av.Packet(replaced[i]) if i in replaced else packet
            packet.pts, packet.dts, packet.time_base, packet.stream = pts, dts, base, copy
            new.mux(packet)


def turned(content: bytes, a: int = 0, b: int = 1, c: int = -1, d: int = 0) -> bytes:
    """An MP4 file whose pixels are shown at x = a x + c y, y = b x + d y: turned by 90 degrees clockwise."""
    at = content.index(b"tkhd") + 4 + 40  # version 0: after times, ids, layer and volume
    return (
        content[:at] + struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30) + content[at + 36 :]
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """One of a PNG file's parts."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write(folder: Path) -> Path:
    """Makes all of FILES in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    clear = transparent()
    Image.fromarray(clear).save(folder / "rgba.png")
    palette = Image.fromarray((clear[..., 3] == 0).astype(np.uint8), "P")
    palette.putpalette([*RED, 0, 0, 255])
    palette.save(folder / "palette.png", transparency=1)
    Image.fromarray(clear).save(folder / "rgba.webp", lossless=True, exact=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn 90 degrees clockwise to show"
    Image.fromarray(np.rot90(scene()).copy()).save(folder / "turned.jpg", exif=exif, quality=98, subsampling=0)
    encode(folder / "rgba.mov", "png", "rgba", [clear] * FRAMES)
    encode(folder / "argb.mov", "qtrle", "argb", [clear] * FRAMES)
    encode(folder / "yuva.mkv", "ffv1", "yuva420p", [clear] * FRAMES)
    colours = np.zeros((256, 4), np.uint8)
    colours[:2] = (255, *RED), (0, 0, 0, 255)  # opacity first
    encode(folder / "palette.avi", "png", "pal8", [((clear[..., 3] == 0).astype(np.uint8), colours)] * FRAMES)
    shots, x264 = [scene()] * FRAMES, ("libx264", "yuv420p")
    encode(folder / "untold.mp4", *x264, shots, matrix="ITU601")
    encode(folder / "bt601.mp4", *x264, shots, matrix="ITU601", colorspace=5)
    encode(folder / "bt709.mp4", *x264, shots, matrix="ITU709", colorspace=1)
    encode(folder / "full.mp4", *x264, shots, matrix="ITU709", full=True, colorspace=1, color_range=2)
    encode(folder / "wide_pixels.mp4", *x264, [scene(HEIGHT, WIDTH // 2)] * FRAMES, pixel=(2, 1))
    lying = np.rot90(
        scene(HEIGHT, WIDTH // 2)
    )  # its pixels are twice as high as wide, and once it is turned twice as wide
    encode(folder / "lying.mp4", *x264, [lying] * FRAMES, pixel=(1, 2))
    (folder / "high_pixels_turned.mp4").write_bytes(turned((folder / "lying.mp4").read_bytes()))
    green = np.full((HEIGHT, WIDTH, 3), (0, 255, 0), np.uint8)
    groups = {"g": "8", "bf": "2", "sc_threshold": "0"}
    leading = {"x265-params": "log-level=none:open-gop=1:keyint=8:min-keyint=8:scenecut=0:bframes=3"}
    encode(folder / "uncut.mp4", *x264, [green] * 11 + shots, options=groups)
    cut(folder / "uncut.mp4", folder / "cut.mp4", 11)
    encode(folder / "closed.mkv", "libx265", "yuv420p", [green] * 8 + shots, options=leading)
    cut(folder / "closed.mkv", folder / "open.mkv", 8)
    mpeg4 = ("mpeg4", "yuv420p")
    encode(folder / "late.avi", *mpeg4, shots, first=40, options={"qmin": "1", "qmax": "1"})
    encode(folder / "unskipped.avi", *mpeg4, [*shots, scene()], options={"qmin": "1", "qmax": "1"})
    cut(folder / "unskipped.avi", folder / "skipped.avi", 0, {3: b"\0\0\1\xb6\x57\x3f"})  # a P-VOP that is not coded
    encode(folder / "latin1.avi", "ffv1", "bgr0", shots, title="Ärger")
    (folder / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    bomb = (
        chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bomb)
    small, huge = struct.pack("<2I", WIDTH, HEIGHT), struct.pack("<2I", 40000, 40000)
    (folder / "bomb.avi").write_bytes((folder / "latin1.avi").read_bytes().replace(small, huge))
    known = (folder / "yuva.mkv").read_bytes()
    (folder / "foreign.mkv").write_bytes(known.replace(b"V_FFV1", b"V_XXX1"))
    encode(folder / "layers.webm", "libvpx-vp9", "yuva420p", [clear] * 2)
    encode(folder / "interlaced.mp4", *x264, shots, options={"x264-params": "tff=1"})
    encode(folder / "pq.mkv", "ffv1", "yuv420p10le", shots, colorspace=9, color_trc=16)
    encode(folder / "hlg.mkv", "ffv1", "yuv420p10le", shots, colorspace=9, color_trc=18)
    encode(folder / "ycgco.mkv", "ffv1", "yuv420p", shots, colorspace=8)
    encode(folder / "needles.mp4", *x264, shots, pixel=(1, 20))
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nbt709.mp4\n#EXT-X-ENDLIST\n"
    (folder / "hls.m3u8").write_text(playlist)
    (folder / "concat.mp4").write_text("ffconcat version 1.0\nfile bt709.mp4\n")
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    return folder
