"""Encodes videos once, so that training the generator reads latents and never runs the autoencoder."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.data import captions, encode, files, rates, video
from moviegen.runner import Run


def run(run: Run) -> dict[str, float]:
    """Encode the videos of `data.csv`, or all of a bare `data.video_folder`, into the cache `data.latent_folder`.

    Of each the first `data.num_frames` frames (0: all; an image is one) at the csv's `fps`, else `data.fps`, scaled to cover
    `data.height` x `data.width` and cut at the centre, with the weights `data.tae_weights`, 32 frames at a time. What is in
    the cache stays, but for files that have changed, so a run that was stopped goes on; several ranks take a share each.
    Bad files are listed; more than `data.max_bad_fraction` of a rank's are refused (DataError). Returns how many were
    encoded, there before, and bad, on the first rank of all ranks.
    """
    data = run.config.data
    shown: dict[str, float] = {}
    world = run.mesh.world
    items = [
        encode.Item(
            file.name,
            "image" if file.image else "video",
            functools.partial(_read, file, data, shown),
            line=file.line,
            file=file,
        )
        for file in files.listed(data.csv, data.video_folder, outside=captions.allow_outside(data))
    ]
    folder, of = Path(data.latent_folder), data.csv or data.video_folder
    found = encode.encode(items, run.config, folder, of, world=world, rates=shown)
    found = encode.total(found, run.workdir / "ranks", world)
    if world.rank == 0:
        counts = "{encoded} encoded, {kept} there before, {bad} bad".format(**found)
        print(f"encode_video: {counts}; latents in {folder}", flush=True)
    return found


def _read(file: files.File, data: Any, shown: dict[str, float]) -> np.ndarray:
    """The frames; notes in `shown` the rate at which they were taken."""
    size = data.height, data.width
    if file.image:
        return video.read(file.path, 0, 1, size=size)[0]
    fps = rates.parse(file.fps) or data.fps
    frames, shown[file.name] = video.read(file.path, 0, data.num_frames or None, size=size, fps=fps)
    return frames
