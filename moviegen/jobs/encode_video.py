"""Encodes videos once, so that training the generator reads latents and never runs the autoencoder."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.data import captions, encode, files, fit, latent_cache, rates, sorting, video
from moviegen.errors import DataError
from moviegen.parallel import buckets
from moviegen.runner import Run


def run(run: Run) -> dict[str, float]:
    """Encode the videos of `data.csv`, or all of a bare `data.video_folder`, into the cache `data.latent_folder`.

    Of each the first `data.num_frames` frames (0: all; an image is one) at the csv's `fps`, else `data.fps`, scaled to cover
    `data.height` x `data.width` and cut at the centre; with `data.buckets` those that its bucket takes (`fit.fit`). Latents
    are made with the weights `data.tae_weights`, 32 frames at a time. What is in the cache stays, but for files that have
    changed or are of another bucket now, so a run that was stopped goes on; several ranks take a share each. Bad files are
    listed; more than `data.max_bad_fraction` of a rank's are refused (DataError). Files that no bucket takes are lost and
    counted by themselves; none left is refused too. Returns how many were encoded, there before, bad and, with buckets,
    lost, on the first rank of all ranks.
    """
    config, data, world = run.config, run.config.data, run.mesh.world
    listed = files.listed(data.csv, data.video_folder, outside=captions.allow_outside(data))[world.rank :: world.size]
    in_buckets = buckets.configured(config)
    fits = sorting.sort(listed, config, world.rank) if in_buckets else [None] * len(listed)
    for line in sorting.lost(listed, fits):
        print(line, flush=True)
    shown: dict[str, float] = {}
    items = [
        encode.Item(
            file.name,
            found.bucket.kind if isinstance(found, fit.Fit) else "image" if file.image else "video",
            functools.partial(_frames, file, data, found, shown),
            line=file.line,
            file=file,
            bucket=(found.bucket.name, found.fps) if isinstance(found, fit.Fit) else None,
        )
        for file, found in zip(listed, fits, strict=True)
        if not isinstance(found, fit.Lost)
    ]
    folder, of = Path(data.latent_folder), data.csv or data.video_folder
    found = encode.encode(items, config, folder, of, rank=world.rank, rates=shown)
    if in_buckets:
        gone = {file.name: each.reason for file, each in zip(listed, fits, strict=True) if isinstance(each, fit.Lost)}
        latent_cache.note_lost(folder, world.rank, gone)
    found = encode.total(found | sorting.counts(fits), run.workdir / "ranks", world)
    counts = {key: found[key] for key in ("encoded", "kept", "bad")}
    if world.rank:
        return counts
    told = "{encoded} encoded, {kept} there before, {bad} bad".format(**counts)
    if in_buckets:
        print("\n".join(sorting.lines(config, found)), flush=True)
        counts["lost"] = sorting.total_lost(found)
        told += f", {counts['lost']} in no bucket"
        if not counts["encoded"] + counts["kept"]:
            raise DataError(f"{of}: nothing is left to train on ({told}): change data.buckets, or name other videos")
    print(f"encode_video: {told}; latents in {folder}", flush=True)
    return counts


def _frames(
    file: files.File, data: Any, found: fit.Fit | DataError | None, shown: dict[str, float]
) -> Iterator[np.ndarray]:
    """The frames in pieces, as its bucket takes them (`found`), or else `data`; then `shown` notes the rate."""
    if isinstance(found, DataError):
        raise found
    if found:
        size, how = found.bucket[1:3], {"start": found.start, "num_frames": found.bucket.frames, "fps": found.fps}
    elif file.image:
        size, how = (data.height, data.width), {"num_frames": 1}
    else:
        size, rate = (data.height, data.width), rates.parse(file.fps) or data.fps
        how = {"num_frames": data.num_frames or None, "fps": rate}
    for frames, rate in video.stream(file.path, size=size, piece=file.piece, **how):
        if rate and not found:
            shown[file.name] = rate
        yield frames
