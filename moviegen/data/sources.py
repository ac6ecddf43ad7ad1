"""Tables of what a generator trains on and is validated on: the one place that looks at `data.source`."""

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.data import clips, encode, latent_cache, synthetic, table
from moviegen.data.encode import Item
from moviegen.errors import ConfigError
from moviegen.parallel import sync
from moviegen.parallel.mesh import ALONE, Group
from moviegen.text import source

HELDOUT_SAMPLES = 32


class Tables(NamedTuple):
    """Rows by split, "video" and "image" to train on, "heldout" (may be missing) to validate; the latents' statistics.

    `autoencoder` is the checksum of the weights that made the latents, where that is known.
    """

    rows: dict[str, list[table.Row]]
    statistics: latent_cache.Statistics
    autoencoder: str | None = None


def open_tables(config: Any, workdir: Path, world: Group = ALONE) -> Tables:
    """The tables of `data.source`, checked; the first rank encodes an embedded set if its latents are not there yet.

    Where training is on images alone, an embedded set is validated on images. Raises ConfigError or DataError.
    """
    return (_csv if config.data.source == "csv" else _embedded)(config, workdir, world)


def _csv(config: Any, workdir: Path, world: Group) -> Tables:
    """Images of the table train in image steps, videos in the others; at num_frames 1 every row counts as an image."""
    data, tae = config.data, config.tae
    found = table.read_once(config, data.csv, workdir / "ranks" / "train.json", world)
    rows = {
        "image": [row for row in found if row.image or data.num_frames == 1],
        "video": [row for row in found if not row.image],
    }
    for kind, fraction in (("image", data.image_fraction), ("video", 1 - data.image_fraction)):
        if fraction and not rows[kind] and data.num_frames > 1:
            raise ConfigError(
                f"data.image_fraction is {data.image_fraction}, but {data.csv} has no usable {kind}: "
                f"set it to {0.0 if kind == 'image' else 1.0} or add {kind}s"
            )
    if data.validation_csv:
        heldout = table.read_once(config, data.validation_csv, workdir / "ranks" / "validation.json", world)
        rows["heldout"] = [row for row in heldout if data.num_frames == 1 or not row.image]
        if not rows["heldout"]:
            raise ConfigError(f"data.validation_csv is {data.validation_csv!r}, which has no usable video: add some")
        if world.rank == 0:
            _tell_shared(found, rows["heldout"], data.validation_csv)
    noted = latent_cache.open_cache(data.latent_folder).statistics()
    constants = (np.broadcast_to(v, tae.latent_channels).tolist() for v in (tae.latent_shift, tae.latent_scale))
    return Tables(rows, noted or tuple(constants), latent_cache.autoencoder(Path(data.latent_folder)))


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
    cache, text = latent_cache.open_cache(folder), source.open_text(config)

    def row(item: Item) -> table.Row:
        found = text.find(item.name, text.prepare(item.caption))
        return table.Row(item.name, cache.find(item.name), found, "image" in item.kind)

    rows = {split: [row(item) for item in items] for split, items in splits.items()}
    images = rows.pop("heldout_image", None)
    if images and data.image_fraction == 1:
        rows["heldout"] = images
    return Tables(rows, cache.statistics(), latent_cache.autoencoder(folder))


def embedded(config: Any) -> dict[str, list[Item]]:
    """The samples by split: "video", "image", of rendered ones "heldout", "heldout_image". ConfigError if there are none."""
    data = config.data
    size = (data.height, data.width)
    if data.source == "clips":
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
    counts = {"image": data.num_samples, "video": data.num_samples}
    counts |= {"heldout_image": HELDOUT_SAMPLES, "heldout": HELDOUT_SAMPLES}
    return {split: [_rendered(config, split, i) for i in range(count)] for split, count in counts.items()}


def _rendered(config: Any, split: str, index: int) -> Item:
    data, of = config.data, "heldout" if "heldout" in split else "train"
    combination, size = synthetic.sample_combination(config.seed, index, of), (data.height, data.width)
    if "image" in split:
        caption = synthetic.caption((*combination[:2], None))
        draw = functools.partial(synthetic.sample_image, config.seed, index, of, size)
    else:
        caption = synthetic.caption(combination)
        draw = functools.partial(synthetic.sample_clip, config.seed, index, of, max(2, data.num_frames), size)
    return Item(f"{split}/{index:05d}", split, lambda: draw()[0], caption)
