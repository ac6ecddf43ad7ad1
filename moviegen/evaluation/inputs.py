"""The clips that an evaluation is of, and those that its linear baseline is fitted to, as the config says."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from moviegen import streams
from moviegen.data import clips, crops, files, video
from moviegen.evaluation import reconstruction
from moviegen.evaluation.baselines import BLOCK
from moviegen.streams import Stream

LINEAR_CLIPS = 64  # training clips that the linear baseline is fitted to, where they come from files
SYNTHETIC_FPS = 8.0  # at which the demo shows its clips


class Clip(NamedTuple):
    """What is measured: uint8 frames (t h w c), and their rate (0: a picture)."""

    name: str
    frames: np.ndarray
    fps: float


def measured(config: Any) -> tuple[Iterator[Clip], files.Bad]:
    """Returns the clips that `evaluate` names, one at a time, and those of the files that are of no use, so far."""
    settings, size = config.evaluate, (config.data.height, config.data.width)
    if not settings.video_folder:
        kept = reconstruction.heldout(size, settings.num_frames or 120, settings.num_frames or 16)
        rates = {"real": clips.heldout_fps()}
        found = (Clip(name, make(), rates.get(name, SYNTHETIC_FPS)) for name, make in kept.items())
        return found, files.Bad(len(kept), 0.0, "the held-out clips")
    listed = files.listed(settings.csv, settings.video_folder, "evaluate")[: settings.max_clips or None]
    bad = files.Bad(len(listed), config.data.max_bad_fraction, settings.csv or settings.video_folder)

    def read(file: files.File) -> tuple[np.ndarray, float]:
        return video.read(file.path, 0, 1 if file.image else settings.num_frames or None, size=size)

    return (Clip(file.name, *content) for file, content in files.each(listed, bad, read)), bad


def trained_on(config: Any) -> Iterable[np.ndarray]:
    """Returns clips that `data` trains on, uint8 (t h w c): all of the real ones, or as many draws as a fit needs."""
    data = config.data
    if data.source == "clips":
        return clips.training_videos(data.height)
    source, frames = crops.source(data), max(data.num_frames, BLOCK)
    rngs = (streams.rng(Stream.LINEAR_CODE, config.seed, i) for i in range(LINEAR_CLIPS))
    return [source(rng, frames, data.height, data.width) for rng in rngs]
