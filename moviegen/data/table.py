"""Captioned videos as rows with their cached latents and text; those of a csv are looked up here."""

import collections
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import einops
import numpy as np

from moviegen.data import captions, latent_cache, pieces
from moviegen.errors import ConfigError, DataError
from moviegen.parallel import buckets, sync
from moviegen.parallel.buckets import Bucket
from moviegen.parallel.mesh import ALONE, Group
from moviegen.storage import files
from moviegen.text import source, store


class Row(NamedTuple):
    """A sample's name in the table; where its latents and embeddings by encoder are; the name of its bucket."""

    video: str
    latents: latent_cache.StoredLatents
    text: source.Found
    bucket: str


def read(config: Any, path: str) -> list[Row]:
    """The usable rows of a csv with a column `video` (a path relative to the folders), each once.

    Rows whose files are missing, or whose latents do not fit the config, are listed, and more than `data.max_bad_fraction`
    of them raise a DataError. So does a table of which no row fits one of the configured buckets; those that fit none are
    counted by shape.
    """
    data = config.data
    text, cache = _opened(config)
    for name, empty in text.empty.items():
        dropped = data.text_drop_prob or data.get("text_drop_each", {}).get(name, 0)
        if dropped and not empty.is_file():
            raise ConfigError(
                f"data.empty_text.{name} is {str(empty)!r}, no file: embed the empty prompt or set data.text_drop_prob=0"
            )
    latent_cache.check(cache.folder, config)
    prompts, unusable, lost = [], {}, cache.lost
    if any(isinstance(found, store.StoredText) for found in text.empty.values()):
        prompts, unusable = captions.read(path, config, cached=cache.rates, without=lost)
    usable, bad, again, texts = {}, [], [], {prompt.line: prompt.texts for prompt in prompts}
    shapes, unfit, gone = buckets.table(config), collections.Counter(), collections.Counter()
    for line, fields in captions.rows(path, ("video",)):
        if line in unusable:
            bad.append(unusable[line])
            continue
        own = texts.get(line, {})
        try:
            name = pieces.name(fields)
        except DataError as error:
            bad.append(f"line {line}: {error}")
            continue
        if name in lost:
            gone[lost[name]] += 1
            continue
        key = name, *own.values()
        if key in usable:
            again.append(line)
            continue
        try:
            captions.video_name(fields["video"])
            cache.check_name(name, captions.allow_outside(data))
            row = _row(name, cache, text, own)
            usable[key] = row._replace(bucket=_bucket(row, config, shapes, unfit))
        except DataError as error:
            bad.append(f"line {line}: {error}")
    if again:
        print(
            f"{path}: {len(again)} rows are there before, the first in line {again[0]}: each is taken once", flush=True
        )
    captions.refuse_too_many_bad(path, len(usable), bad, data.max_bad_fraction, "rows")
    for why, count in gone.most_common():
        print(f"{path}: {count} rows are in no bucket and were not encoded: {why}", flush=True)
    for shape, count in unfit.most_common():
        print(f"{path}: {count} rows of {shape} fit no bucket", flush=True)
    found = [row for row in usable.values() if row.bucket]
    if not found and buckets.configured(config):
        raise DataError(
            f"{path}: no row fits a bucket ({', '.join(each.name for each in shapes)}): encode the files for this table "
            "(--job=encode_video into another data.latent_folder), or change data.buckets"
        )
    return found


def _bucket(row: Row, config: Any, shapes: Sequence[Bucket], unfit: collections.Counter) -> str:
    """The name of the bucket that a row's latents fit; "" for none, which is counted by shape.

    Raises DataError for a row whose files are missing, or whose latents are of another autoencoder; where there is one shape
    alone, also for those that are too short or of another size.
    """
    for found in (row.latents, *row.text.values()):
        if not found.is_file():
            raise DataError(f"no {found}")
    data, (frames, *rest), image = config.data, row.latents.shape(), captions.is_image(config, row.video)
    one_shape = not buckets.configured(config)
    needed = 1 if image else -(-data.num_frames // 8)
    if one_shape and frames < needed:
        raise DataError(f"{row.latents}: {frames} latent frames, data.num_frames asks for {needed}")
    wanted = [config.tae.latent_channels, *((data.height // 8, data.width // 8) if one_shape else rest[1:])]
    if rest != wanted:
        keys = "data.height and data.width ask" if one_shape else "tae.latent_channels asks"
        raise DataError(f"{row.latents}: latents have (c h w) {rest}, {keys} for {wanted}")
    fits = fitting(shapes, (frames, *rest), image)
    if fits is None:
        unfit[f"{1 if image else 8 * frames}x{8 * rest[1]}x{8 * rest[2]}"] += 1
    return fits.name if fits else ""


def fitting(shapes: Sequence[Bucket], latents: Sequence[int], image: bool) -> Bucket | None:
    """The bucket for latents of this shape (t c h w): of its kind, height and width the longest that they fill, if any."""
    frames, _, height, width = latents
    kind = "image" if image else "video"
    own = [each for each in shapes if (each.kind, *each.latents[1:]) == (kind, height, width)]
    return max((each for each in own if each.latents[0] <= frames), key=lambda each: each.frames, default=None)


def by_bucket(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by the names of their buckets, in the order in which they stand."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.bucket, []).append(row)
    return found


def read_once(config: Any, path: str, usable: Path, world: Group = ALONE) -> list[Row]:
    """`read` by rank 0 alone; the others read names and buckets of the usable rows, which it leaves in the file `usable`.

    Every rank looking for the files of every row would be thousands of lookups for each file.
    """

    def leave(found):
        texts = [{name: x.text for name, x in row.text.items() if isinstance(x, store.StoredText)} for row in found]
        files.write_json([(row.video, own, row.bucket) for row, own in zip(found, texts, strict=True)], usable)

    def take():
        text, cache = _opened(config)
        return [_row(name, cache, text, *rest) for name, *rest in json.loads(usable.read_text(encoding="utf-8"))]

    return sync.found_by_first(world, lambda: read(config, path), leave, take, usable)


def _opened(config: Any) -> tuple[source.TextSource, latent_cache.Cache]:
    mends = {"latent_folder": (config.data.latent_folder, "--job=encode_video fills it")}
    for name, folder in source.folders(config).items():
        mend = f"--job=encode_text fills it; a model without this encoder has model.text_dims.{name}=0"
        mends[f"text_folders.{name}"] = folder, mend
    for key, (folder, mend) in mends.items():
        if not folder or not Path(folder).is_dir():
            raise ConfigError(f"data.{key} is {folder!r}, which is not a folder: {mend}")
    return source.stored(config), latent_cache.open_cache(config.data.latent_folder)


def _row(
    name: str, cache: latent_cache.Cache, text: source.TextSource, texts: Mapping[str, str], bucket: str = ""
) -> Row:
    return Row(name, cache.find(name), text.find(os.path.splitext(name)[0], texts), bucket)


def read_latents(row: Row, frames: int, rng: np.random.Generator) -> np.ndarray:
    """One draw of a cached posterior, (c t h w): `frames` latent frames from a random start. Raises DataError."""
    mean, std = row.latents.read()
    if len(mean) < frames:
        raise DataError(f"{row.latents}: {len(mean)} latent frames, data.num_frames asks for {frames}")
    start = int(rng.integers(len(mean) - frames + 1))
    mean, std = mean[start : start + frames], std[start : start + frames]
    return einops.rearrange(mean + std * rng.standard_normal(mean.shape, np.float32), "t c h w -> c t h w")
