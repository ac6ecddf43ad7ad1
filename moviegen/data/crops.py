"""Random crops of videos and images for the autoencoder, a pure function of (seed, sample index)."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moviegen import streams
from moviegen.data import clips, feeding, files, synthetic, video
from moviegen.errors import ConfigError, DataError
from moviegen.parallel.buckets import image_steps
from moviegen.parallel.mesh import ALONE, Group
from moviegen.streams import Stream

CLIP_HEIGHT = 64  # of the smallest copy of the real clips; the held-out clip is judged at this size
Source = Callable[[np.random.Generator, int, int, int], np.ndarray]  # (rng, frames, height, width) -> uint8 (t h w c)


def batch(
    source: Source, data: Any, seed: int, step: int, batch_size: int, rank: int = 0, ranks: int = 1
) -> np.ndarray:
    """One rank's clips of a step, float32 (b 3 t h w) in [-1, 1]: images (t = 1) in `image_fraction` of the steps,
    spread evenly.

    All ranks together hold batch_size clips, or `image_batch_size` images in an image step.
    """
    key, frames, count = _size(data, step, batch_size)
    if count % ranks:
        raise ConfigError(f"{key} is {count}, not a multiple of {ranks} ranks")
    rngs = (streams.rng(Stream.CROP, seed, step, i) for i in range(rank * count // ranks, (rank + 1) * count // ranks))
    return np.stack([video.to_model(source(rng, frames, data.height, data.width)) for rng in rngs])


def names(source: Source, data: Any, seed: int, step: int, batch_size: int) -> list[str]:
    """The files of a step's clips, of all ranks, which are read for it again; none where the clips are of no files."""
    found: list[str] = []
    if data.source == "csv":
        _, frames, count = _size(data, step, batch_size)
        for i in range(count):
            source(streams.rng(Stream.CROP, seed, step, i), frames, data.height, data.width, found)
    return found


def _size(data: Any, step: int, batch_size: int) -> tuple[str, int, int]:
    """Frames of a step's clips and how many clips there are, after the key that says so."""
    if image_steps(data.image_fraction, step + 1) > image_steps(data.image_fraction, step):
        return "data.image_batch_size", 1, data.image_batch_size
    return "train.batch_size", data.num_frames, batch_size


def source(data: Any, workdir: str | Path | None = None, world: Group = ALONE) -> Source:
    """The clips that `data.source` names: "csv" (a `video` column, or a bare folder), "clips" or "synthetic".

    "clips" are the real clips of the demo mixed with `synthetic_fraction` synthetic ones. Files are opened first, of several
    ranks by one, which tells in `workdir` what it found: raises ConfigError or DataError before any training.
    """
    if data.source == "synthetic":
        return _synthetic
    if data.source == "clips":
        if max(data.height, data.width) > CLIP_HEIGHT:
            raise ConfigError(
                f"data.height x data.width is {data.height}x{data.width}: real clips are kept {CLIP_HEIGHT} high"
            )
        return _mixed(clips.training_videos(CLIP_HEIGHT), data.synthetic_fraction)
    if data.source == "csv":
        return _files(data, Path(workdir) / "ranks" / "videos.json" if workdir else None, world)
    raise ConfigError(f"data.source is {data.source!r}, expected 'csv', 'clips' or 'synthetic'")


def _synthetic(rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    # Rendered larger than the crop half of the time, so that edges are seen at every distance from the frame's border.
    scale = 1 if rng.random() < 0.5 else 2
    seed, size = int(rng.integers(1 << 31)), (height * scale, width * scale)
    clip, _ = synthetic.sample_clip(seed, 0, "train", max(frames, 2), size)
    return _crop(clip[:frames], rng, frames, height, width)


def _mixed(videos: list[np.ndarray], synthetic_fraction: float) -> Source:
    weights = np.array([v.shape[0] * v.shape[1] for v in videos], np.float64) ** 0.5  # longer and larger, more to see
    weights /= weights.sum()

    def mixed(rng, frames, height, width):
        if rng.random() < synthetic_fraction:
            return _synthetic(rng, frames, height, width)
        clip = _crop(videos[rng.choice(len(videos), p=weights)], rng, frames, height, width)
        clip = clip[:, :, ::-1] if rng.random() < 0.5 else clip
        return clip[::-1] if rng.random() < 0.5 else clip

    return mixed


def _crop(clip: np.ndarray, rng: np.random.Generator, *size: int) -> np.ndarray:
    starts = [int(rng.integers(have - want + 1)) for have, want in zip(clip.shape, size, strict=False)]
    return clip[tuple(slice(start, start + want) for start, want in zip(starts, size, strict=True))]


def _files(data: Any, cache: Path | None, world: Group) -> Source:
    """Random clips of files: images in image steps, and single frames of videos; videos alone in the others.

    Frames are `data.stride` apart, scaled to cover a square of `data.resize` (0: the crop) and cropped at random, mirrored
    half of the time with `data.flip`. A file that fails only now is counted, and the next of the same draw is taken.
    """
    stride, resize, flip = data.get("stride", 1), data.get("resize", 0), data.get("flip", False)
    threads = 1 if feeding.of(data)[1] else 0  # of one decoder: with threads that read ahead each has its own
    if stride < 1 or 0 < resize < max(data.height, data.width):
        raise ConfigError(
            f"data.stride is {stride} and data.resize {resize}: expected a stride of 1 or more, and a size that covers "
            f"the crop, data.height x data.width = {data.height}x{data.width}, or 0"
        )
    counts, bad = files.usable(data, (data.num_frames - 1) * stride + 1, cache, world)
    usable = list(counts)
    videos = [file for file in usable if not file.image]
    if not videos and data.image_fraction < 1 and data.num_frames > 1:
        raise ConfigError(
            f"data.image_fraction is {data.image_fraction}, but {data.csv or data.video_folder} has no usable video: set it "
            "to 1.0 or add videos"
        )

    def from_files(rng, frames, height, width, names=None):
        pool = videos if frames > 1 else usable
        while True:
            file, at = pool[rng.integers(len(pool))], rng.random(2)
            span = (frames - 1) * stride + 1
            if counts[file] < span:
                raise DataError(f"{file.path}: {counts[file]} frames, {span} are asked for")
            start, mirrored = int(rng.integers(counts[file] - span + 1)), flip and rng.random() < 0.5
            cover = (max(resize, height), max(resize, width))
            try:
                read = functools.partial(video.read, file.path, size=(height, width), piece=file.piece, threads=threads)
                clip, _ = read(start, frames, stride, cover=cover, at=tuple(at))
            except DataError as error:
                bad.add(file, error)
                continue
            if names is not None:
                names.append(str(file.path))
            return clip[:, :, ::-1] if mirrored else clip

    return from_files
