"""Tables of what a generator trains on and is validated on: the one place that looks at `data.source`."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.data import embedded, encode, latent_cache, table
from moviegen.errors import ConfigError
from moviegen.parallel import sync
from moviegen.parallel.mesh import ALONE, Group
from moviegen.text import source


class Tables(NamedTuple):
    """Rows by split, "video" and "image" to train on, "heldout" (may be missing) to validate; the latents' statistics."""

    rows: dict[str, list[table.Row]]
    statistics: latent_cache.Statistics


def open_tables(config: Any, workdir: Path, world: Group = ALONE) -> Tables:
    """The tables of `data.source`, checked; an embedded set is encoded first if its latents are not there yet.

    Where training is on images alone, an embedded set is validated on images. Of several ranks the first looks and
    encodes. Raises ConfigError or DataError.
    """
    return (_csv if config.data.source == "csv" else _embedded)(config, workdir, world)


def _embedded(config: Any, workdir: Path, world: Group) -> Tables:
    data, splits = config.data, embedded.tables(config)
    folder = Path(data.latent_folder or workdir / "latents")
    identity = {"source": data.source, "num_samples": data.num_samples, "seed": config.seed}

    def work() -> None:
        encode.encode([item for items in splits.values() for item in items], config, folder, data.source, identity)

    sync.first_rank_alone(world, work, workdir / "ranks" / "latents.done")
    cache, text = latent_cache.open_cache(folder), source.open_text(config)
    rows = {
        split: [
            table.Row(
                item.name, cache.find(item.name), text.find(item.name, text.prepare(item.caption)), "image" in split
            )
            for item in items
        ]
        for split, items in splits.items()
    }
    images = rows.pop("heldout_image", None)
    if images and data.image_fraction == 1:
        rows["heldout"] = images
    return Tables(rows, cache.statistics())


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
    noted = latent_cache.open_cache(data.latent_folder).statistics()
    constants = (np.broadcast_to(v, tae.latent_channels).tolist() for v in (tae.latent_shift, tae.latent_scale))
    return Tables(rows, noted or tuple(constants))
