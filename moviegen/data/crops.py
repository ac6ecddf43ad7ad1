"""Random crops of videos and images for the autoencoder, a pure function of (seed, sample index)."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.data import clips, synthetic, video
from moviegen.errors import ConfigError, DataError

SUFFIXES = (*video.IMAGE_SUFFIXES, ".mp4", ".avi", ".mov", ".mkv", ".mpg", ".webm", ".gif")
CLIP_HEIGHT = 64  # of the smallest copy of the real clips; the held-out clip is judged at this size
Source = Callable[[np.random.Generator, int, int, int], np.ndarray]  # (rng, frames, height, width) -> uint8 (t h w c)


def batch(
    source: Source, data: Any, seed: int, step: int, batch_size: int, rank: int = 0, ranks: int = 1
) -> np.ndarray:
    """One rank's clips of a step, float32 (b 3 t h w) in [-1, 1]: images (t = 1) in a share `image_fraction` of the steps.

    All ranks together hold batch_size clips, or `image_batch_size` images in an image step. The same (seed, step) gives
    the same global batch.
    """
    rng = np.random.default_rng([seed, step])
    image = rng.random() < data.image_fraction
    frames, count = (1, data.image_batch_size) if image else (data.num_frames, batch_size)
    if count % ranks:
        raise ConfigError(
            f"{'data.image_batch_size' if image else 'train.batch_size'} is {count}, not a multiple of {ranks} ranks"
        )
    made = []
    for i in range(rank * count // ranks, (rank + 1) * count // ranks):
        clip = source(np.random.default_rng([seed, step, i]), frames, data.height, data.width)
        made.append(video.to_model(clip))
    return np.stack(made)


def source(data: Any) -> Source:
    """The clips that `data.source` names: "csv" (a `video` column, or a bare folder), "clips" or "synthetic".

    "clips" are the real clips of the demo mixed with synthetic ones in the share `synthetic_fraction`.
    Raises ConfigError or DataError before any training when there is nothing to read.
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
        return _files(_listed(data))
    raise ConfigError(f"data.source is {data.source!r}, expected 'csv', 'clips' or 'synthetic'")


def _synthetic(rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    # Rendered larger than the crop half of the time, so that edges are seen at every distance from the frame's border.
    scale = 1 if rng.random() < 0.5 else 2
    clip, _ = synthetic.sample_clip(
        int(rng.integers(1 << 31)), 0, "train", max(frames, 2), (height * scale, width * scale)
    )
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


def _crop(clip: np.ndarray, rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    t, y, x = (
        int(rng.integers(have - want + 1)) for have, want in zip(clip.shape, (frames, height, width), strict=False)
    )
    return clip[t : t + frames, y : y + height, x : x + width]


def _listed(data: Any) -> list[Path]:
    folder = Path(data.video_folder)
    if not data.video_folder or not folder.is_dir():
        raise ConfigError(f"data.video_folder is {data.video_folder!r}, which is not a folder: name the videos' folder")
    if not data.csv:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{folder}: no videos or images in this folder (looked for {' '.join(SUFFIXES)})")
        return found
    if not Path(data.csv).is_file():
        raise DataError(f"data.csv is {data.csv!r}, which does not exist: name a csv file with a `video` column")
    with open(data.csv, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if "video" not in (rows.fieldnames or ()):
            raise DataError(f"{data.csv}, line 1: no column `video` (found {rows.fieldnames})")
        listed = [folder / row["video"] for row in rows]
    if not listed:
        raise DataError(f"{data.csv}: no rows, only a header")
    return listed


def _files(paths: list[Path]) -> Source:
    """Clips from files. A file that cannot be used ends the run with its name: nothing is silently replaced."""

    def from_files(rng, frames, height, width):
        path = paths[rng.integers(len(paths))]
        image = path.suffix.lower() in video.IMAGE_SUFFIXES
        have = 1 if image else int(video.probe(path)["frames"])
        if have < frames:
            raise DataError(
                f"{path}: {have} frames, data.num_frames is {frames}: take it out of the list, or ask for fewer"
            )
        clip, _ = video.read(path, int(rng.integers(have - frames + 1)), frames, size=(height, width))
        return clip

    return from_files
