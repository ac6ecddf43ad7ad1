"""Tables of what a generator trains on and is validated on: the one place that looks at `data.source`."""

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.data import clips, encode, latent_cache, synthetic, table
from moviegen.data.encode import Item
from moviegen.errors import ConfigError
from moviegen.parallel import buckets, sync
from moviegen.parallel.buckets import Bucket
from moviegen.parallel.mesh import ALONE, Group
from moviegen.text import source

HELDOUT_SAMPLES = 32


class Tables(NamedTuple):
    """Rows to train on and rows to validate on, by the names of their buckets; the latents' statistics.

    `autoencoder` is the checksum of the weights that made the latents, where that is known.
    """

    rows: dict[str, list[table.Row]]
    heldout: dict[str, list[table.Row]]
    statistics: latent_cache.Statistics
    autoencoder: str | None = None


def open_tables(config: Any, workdir: Path, world: Group = ALONE) -> Tables:
    """The tables of `data.source`, checked; the first rank encodes an embedded set if its latents are not there yet.

    Without a table of buckets there is validation on videos alone, or on images where training is on images alone. Raises
    ConfigError or DataError.
    """
    return (_csv if config.data.source == "csv" else _embedded)(config, workdir, world)


def _csv(config: Any, workdir: Path, world: Group) -> Tables:
    """Images of the table train in image steps, videos in the others; at num_frames 1 every row counts as an image."""
    data, tae, shapes = config.data, config.tae, buckets.table(config)
    found = table.read_once(config, data.csv, workdir / "ranks" / "train.json", world)
    rows, heldout = table.by_bucket(found), {}
    for kind in dict.fromkeys(each.kind for each in shapes):
        if not any(rows.get(each.name) for each in shapes if each.kind == kind):
            raise ConfigError(
                f"data.image_fraction is {data.image_fraction}, but {data.csv} has no usable {kind}: "
                f"set it to {0.0 if kind == 'image' else 1.0} or add {kind}s"
            )
    if data.validation_csv:
        usable = table.read_once(config, data.validation_csv, workdir / "ranks" / "validation.json", world)
        heldout = _validated(config, table.by_bucket(usable))
        if not heldout:
            raise ConfigError(
                f"data.validation_csv is {data.validation_csv!r}, which has no usable {shapes[0].kind}: add some"
            )
        if world.rank == 0:
            _tell_shared(found, [row for own in heldout.values() for row in own], data.validation_csv)
    noted = latent_cache.open_cache(data.latent_folder).statistics()
    constants = (np.broadcast_to(v, tae.latent_channels).tolist() for v in (tae.latent_shift, tae.latent_scale))
    return Tables(rows, heldout, noted or tuple(constants), latent_cache.autoencoder(Path(data.latent_folder)))


def _validated(config: Any, rows: dict[str, list[table.Row]]) -> dict[str, list[table.Row]]:
    """The held-out rows that count: where there is one shape alone those of videos, or images where training is on images."""
    shapes = buckets.table(config)
    kinds = {each.kind for each in (shapes if buckets.configured(config) else shapes[:1])}
    return {each.name: rows[each.name] for each in shapes if each.kind in kinds and each.name in rows}


def _tell_shared(trained: list[table.Row], heldout: list[table.Row], path: str) -> None:
    """Says which rows of a validation table are trained on as well."""
    shared = {os.path.normpath(row.video) for row in trained} & {os.path.normpath(row.video) for row in heldout}
    if shared:
        named = ", ".join(sorted(shared)[:5])
        print(f"{path}: {len(shared)} of {len(heldout)} samples are trained on too ({named})", flush=True)


def _embedded(config: Any, workdir: Path, world: Group) -> Tables:
    data, splits = config.data, embedded(config)
    folder = Path(data.latent_folder or workdir / "latents")
    identity = {"source": data.source, "num_samples": data.num_samples, "seed": config.seed}

    def work() -> None:
        encode.encode([item for items in splits.values() for item in items], config, folder, data.source, identity)

    sync.first_rank_alone(world, work, workdir / "ranks" / "latents.done")
    cache, text, shapes = latent_cache.open_cache(folder), source.open_text(config), buckets.table(config)
    rows: dict[bool, list[table.Row]] = {False: [], True: []}
    for item in (item for items in splits.values() for item in items):
        stored, found = cache.find(item.name), text.find(item.name, text.prepare(item.caption))
        if bucket := table.fitting(shapes, stored.shape(), "image" in item.kind):
            rows["heldout" in item.kind].append(table.Row(item.name, stored, found, bucket.name))
    trained, heldout = (table.by_bucket(own) for own in rows.values())
    return Tables(trained, _validated(config, heldout), cache.statistics(), latent_cache.autoencoder(folder))


def embedded(config: Any) -> dict[str, list[Item]]:
    """The samples by split: "video", "image", of rendered ones "heldout", "heldout_image". ConfigError if there are none.

    Of buckets those of a kind share its samples in turn.
    """
    data = config.data
    size, in_buckets = (data.height, data.width), buckets.configured(config)
    if data.source == "clips":
        if in_buckets:
            raise ConfigError(
                f"data.buckets.resolution is {data.buckets.resolution} and data.source 'clips', which are of one shape: "
                "expected 0, or 'synthetic' or 'csv'"
            )
        return {
            split: [
                Item(
                    f"{split}/{clip.name}", split, functools.partial(clips.read_clip, clip, frames, size), clip.caption
                )
                for clip in clips.captioned_clips()
            ]
            for split, frames in (("image", 1), ("video", data.num_frames))
        }
    if data.source != "synthetic":
        raise ConfigError(f"data.source is {data.source!r}, expected 'synthetic', 'clips' or 'csv'")
    if data.num_samples < 1:
        raise ConfigError(f"data.num_samples is {data.num_samples}, expected at least 1 synthetic sample")
    # One shape has both kinds, whatever is trained on: the next stage may find its own in the cache.
    shapes = buckets.table(config) if in_buckets else [Bucket(max(2, data.num_frames), *size), Bucket(1, *size)]
    splits = {}
    for split in ("image", "video", "heldout_image", "heldout"):
        own = [each for each in shapes if each.kind == ("image" if "image" in split else "video")]
        count = (HELDOUT_SAMPLES if "heldout" in split else data.num_samples) if own else 0
        splits[split] = [
            _rendered(config, split, i, own[i % len(own)], f"{own[i % len(own)].name}/" if in_buckets else "")
            for i in range(count)
        ]
    return splits


def _rendered(config: Any, split: str, index: int, shape: Bucket, folder: str) -> Item:
    of, size = "heldout" if "heldout" in split else "train", (shape.height, shape.width)
    combination = synthetic.sample_combination(config.seed, index, of)
    if shape.kind == "image":
        caption = synthetic.caption((*combination[:2], None))
        draw = functools.partial(synthetic.sample_image, config.seed, index, of, size)
    else:
        caption = synthetic.caption(combination)
        draw = functools.partial(synthetic.sample_clip, config.seed, index, of, shape.frames, size)
    return Item(f"{split}/{folder}{index:05d}", split, lambda: draw()[0], caption)
