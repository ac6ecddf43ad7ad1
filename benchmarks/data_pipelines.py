"""What training reads, as it reads it, and the bare reading of the same: (ours, bare), to be called in turns."""

import atexit
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


def videos(stored: Any, clips: int, frames: int, height: int, width: int, threads: int) -> tuple[Callable, Callable]:
    """Random clips of a video: seek, decode, scale, crop. `stored`: a real clip's name, or (frames, height, width) to make up.

    Bare: PyAV seeks and decodes to each clip's last frame, each thread one file with one decoder's thread, and nothing else.
    """
    import av
    from ml_collections import ConfigDict

    from moviegen.data import clips as real, crops, demux, feeding, video

    folder = _temporary()
    path = folder / "a.mp4"
    if isinstance(stored, str):
        path.write_bytes(next(clip.path for clip in real.real_clips() if clip.path.name == stored).read_bytes())
    else:
        video.write_mp4(path, _filmed(*stored), 24)
    data = ConfigDict(dict(source="csv", csv="", video_folder=str(folder), image_fraction=0.0))
    data.update(num_frames=frames, height=height, width=width, workers=threads, prefetch=2 * threads)
    source, times = crops.source(data), demux.index(path).times

    def ours() -> None:
        def make(step: int) -> list[np.ndarray]:
            return [source(np.random.default_rng(step), frames, height, width)]

        with feeding.Feed(make, clips, *feeding.of(data)) as feed:
            for step in range(clips):
                feed.take(step)

    def decode(step: int) -> None:
        rng = np.random.default_rng(step)  # drawn as crops._files draws it
        rng.integers(1), rng.random(2)
        start = int(rng.integers(len(times) - frames + 1))
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            container.seek(int(times[start]), stream=stream)
            for frame in container.decode(stream):
                if frame.pts >= times[start + frames - 1]:
                    break

    return ours, lambda: _all(decode, clips, threads)


def _filmed(frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """A camera that moves over a soft picture, with grain."""
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 3, width // 3, 3), np.uint8))
    picture = np.asarray(coarse.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)).astype(np.int16)
    for i in range(frames):
        top, left = height * i // (2 * frames), width * i // (2 * frames)
        grain = rng.integers(-4, 5, (height, width, 1), np.int16)
        yield np.clip(picture[top : top + height, left : left + width] + grain, 0, 255).astype(np.uint8)[None]


def latents(count: int, shape: tuple[int, ...], threads: int) -> tuple[Callable, Callable]:
    """Cached posteriors (c t h w): mean and std in float32, their checksums compared. Bare: the same bytes by np.fromfile."""
    from moviegen.data import latent_cache

    folder, rng = _temporary(), np.random.default_rng(0)
    writer = latent_cache.ShardWriter(folder, "float32", 0)
    for i in range(count):
        mean, std = rng.standard_normal((2, *shape), np.float32)
        writer.add(f"{i}.mp4", mean, std, "video")
    writer.flush()
    cache, size = latent_cache.open_cache(folder), mean.nbytes + std.nbytes
    files = sorted(folder.glob("*.safetensors"))
    places = [(file, at) for file in files for at in range(0, file.stat().st_size - size, size)]
    order = rng.permutation(count)  # of the samples in an epoch

    def ours() -> None:
        _forget(files)
        _all(lambda i: cache.find(f"{order[i]}.mp4").read(), count, threads)

    def bare() -> None:
        _forget(files)
        _all(lambda i: np.fromfile(places[order[i]][0], np.uint8, size, offset=places[order[i]][1]), count, threads)

    return ours, bare


def _all(do: Callable[[int], object], count: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(do, i) for i in range(count)]:
            done.result()


def _forget(files: list[Path]) -> None:
    """Has nothing of them in the page cache."""
    for file in files:
        with open(file, "rb") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _temporary() -> Path:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)
