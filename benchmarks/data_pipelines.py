"""What training reads, as it reads it, and the bare reading of the same: (ours, bare), to be called in turns."""

import atexit
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def videos(clips: int, frames: int, height: int, width: int, threads: int) -> tuple[Callable, Callable]:
    """Random clips of a real video of 1280x720 and 132 frames, H.264 with one key frame: seek, decode, scale, crop.

    Bare: PyAV seeks and decodes to each clip's last frame, each thread one file with one decoder's thread, and nothing else.
    """
    import av
    from ml_collections import ConfigDict

    from moviegen.data import clips as real, crops, demux, feeding

    path = next(clip.path for clip in real.real_clips() if clip.path.name == "bigbuckbunny.mp4")
    folder = _temporary()
    (folder / "a.mp4").symlink_to(path)
    data = ConfigDict(dict(source="csv", csv="", video_folder=str(folder), allow_outside=True, image_fraction=0.0))
    data.update(num_frames=frames, height=height, width=width, workers=threads, prefetch=2 * threads)
    source, times = crops.source(data), demux.index(folder / "a.mp4").times

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
