"""`python -m benchmarks.long_video [FRAMES [TILE]]`: peak memory (VmHWM) and time of --job=encode_video on one long film.

The film is noise that moves, FRAMES (default 5000) of 256x448, written by PyAV; the autoencoder is the one that ships, with
`tae.spatial_tile`=TILE (default 0: pictures are encoded whole).
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments import common

SIZE = 256, 448


def main(frames: int = 5000, tile: int = 0) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_film(Path(folder) / "videos" / "film.mp4", frames)
        begun = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.long_video", "--encode", folder, str(tile)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds, peak = time.monotonic() - begun, int(re.findall(r"measured (\d+)", done.stdout)[-1])
    print(
        f"{frames} frames of {SIZE[0]}x{SIZE[1]}, spatial_tile={tile}: {peak / 1e9:.2f} GB at its peak, {seconds:.0f} s"
    )


def write_film(path: Path, frames: int) -> None:
    """A film at 16 frames a second."""
    from moviegen.data import video

    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)

    def pieces() -> Iterator[np.ndarray]:
        for at in range(frames):
            yield np.roll(still, at, 1)[None]

    video.write_mp4(path, pieces(), 16)


def encode(folder: Path, tile: int) -> None:
    """The job on a folder's videos, which says this process's peak."""
    import moviegen

    config = common.shrink(common.stage("1b", 2))
    config.data.update(source="csv", video_folder=str(folder / "videos"), latent_folder=str(folder / "latents"))
    config.data.update(height=SIZE[0], width=SIZE[1], num_frames=0)
    config.tae.spatial_tile = tile
    moviegen.run(config, "encode_video", folder / "run")
    print("measured", int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--encode"]:
        encode(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]))
