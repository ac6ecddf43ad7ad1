"""Files that a data set of the world holds too: each with what is wrong with it."""

import struct
from pathlib import Path

import av
import numpy as np

from moviegen.data import video
from tests.data import odd

# name -> a part of the reason for which it cannot be used as 8 frames, or "" where it can
FILES = {
    "whole.mp4": "",
    "odd.avi": "",
    "rotated.mp4": "",
    "variable.mkv": "",
    "ten_bit.mkv": "",
    "one_frame.mp4": "1 frames",
    "zero_frames.mkv": "no decodable video frame|damaged",
    "truncated.mp4": "damaged",
    "header_lies.avi": "5 frames",
    "audio.wav": "no video stream",
    "text.mp4": "damaged",
    "missing.mp4": "no such file",
}


def pixels(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    rng = np.random.default_rng(frames)
    return (
        rng.integers(0, 256, (frames, height // 4 + 1, width // 4 + 1, 3), np.uint8)
        .repeat(4, 1)
        .repeat(4, 2)[:, :height, :width]
    )


def encode(path, frames, codec, fmt, times=None, rate=8):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], fmt
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = i if times is None else times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write(folder: Path) -> Path:
    """All of FILES but the missing one, and files.csv that names every one."""
    folder.mkdir(parents=True, exist_ok=True)
    video.write_mp4(folder / "whole.mp4", pixels(12), 8)
    encode(folder / "odd.avi", pixels(12, 35, 51), "ffv1", "bgr0")
    (folder / "rotated.mp4").write_bytes(odd.turned((folder / "whole.mp4").read_bytes()))
    encode(folder / "variable.mkv", pixels(12), "ffv1", "bgr0", [0, 1, 2, 3, 8, 9, 10, 11, 20, 21, 22, 23])
    encode(folder / "ten_bit.mkv", pixels(12), "ffv1", "yuv420p10le")
    video.write_mp4(folder / "one_frame.mp4", pixels(1), 8)
    with av.open(str(folder / "zero_frames.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "bgr0"
        container.start_encoding()
    content = (folder / "whole.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(content[: len(content) // 2])
    encode(folder / "short.avi", pixels(5), "mpeg4", "yuv420p")
    content = bytearray((folder / "short.avi").read_bytes())
    (folder / "short.avi").unlink()
    struct.pack_into("<I", content, content.index(b"avih") + 8 + 16, 444)  # frames in all, and in the stream
    struct.pack_into("<I", content, content.index(b"strh") + 8 + 32, 444)
    (folder / "header_lies.avi").write_bytes(content)
    with av.open(str(folder / "audio.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    (folder / "text.mp4").write_text("not a video")
    table = folder / "files.csv"
    table.write_text("video\n" + "".join(f"{name}\n" for name in FILES))
    return table
