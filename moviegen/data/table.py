"""Captioned videos as rows with their cached latents and text; those of a csv are looked up here."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import einops
import numpy as np

from moviegen.data import captions, latent_cache, video
from moviegen.errors import ConfigError, DataError
from moviegen.parallel import sync
from moviegen.parallel.mesh import ALONE, Group
from moviegen.storage import files
from moviegen.text import source, store


class Row(NamedTuple):
    """A sample's name in the table; where its latents and embeddings by encoder are; whether they are of an image."""

    video: str
    latents: latent_cache.StoredLatents
    text: source.Found
    image: bool


def read(config: Any, path: str) -> list[Row]:
    """The usable rows of a csv with a column `video` (a path relative to the folders), each once.

    Rows whose files are missing, or whose latents do not fit the config, are listed, and more than `data.max_bad_fraction`
    of them raise a DataError.
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
    prompts, unusable = [], {}
    if any(isinstance(found, store.StoredText) for found in text.empty.values()):
        prompts, unusable = captions.read(path, config, cached=cache.rates)
    usable, bad, again, texts = {}, [], [], {prompt.line: prompt.texts for prompt in prompts}
    for line, fields in captions.rows(path, ("video",)):
        if line in unusable:
            bad.append(unusable[line])
            continue
        own = texts.get(line, {})
        key = fields["video"], *own.values()
        if key in usable:
            again.append(line)
            continue
        try:
            cache.check_name(captions.video_name(fields["video"]), captions.allow_outside(data))
            row = _row(fields["video"], cache, text, own)
            _check(row, config)
        except DataError as error:
            bad.append(f"line {line}: {error}")
        else:
            usable[key] = row
    if again:
        print(
            f"{path}: {len(again)} rows are there before, the first in line {again[0]}: each is taken once", flush=True
        )
    captions.refuse_too_many_bad(path, len(usable), bad, data.max_bad_fraction, "rows")
    return list(usable.values())


def _check(row: Row, config: Any) -> None:
    """Raises DataError for a row whose files are missing, or whose latents are too short or of another size."""
    for found in (row.latents, *row.text.values()):
        if not found.is_file():
            raise DataError(f"no {found}")
    data, (frames, *rest) = config.data, row.latents.shape()
    needed = 1 if row.image else -(-data.num_frames // 8)
    if frames < needed:
        raise DataError(f"{row.latents}: {frames} latent frames, data.num_frames asks for {needed}")
    wanted = [config.tae.latent_channels, data.height // 8, data.width // 8]
    if rest != wanted:
        raise DataError(f"{row.latents}: latents have (c h w) {rest}, data.height and data.width ask for {wanted}")


def read_once(config: Any, path: str, usable: Path, world: Group = ALONE) -> list[Row]:
    """`read` by rank 0 alone; the others read the names of the usable rows, which it leaves in the file `usable`.

    Every rank looking for the files of every row would be thousands of lookups for each file.
    """

    def leave(found):
        texts = [{name: x.text for name, x in row.text.items() if isinstance(x, store.StoredText)} for row in found]
        files.write_json([(row.video, own) for row, own in zip(found, texts, strict=True)], usable)

    def take():
        text, cache = _opened(config)
        return [_row(name, cache, text, texts) for name, texts in json.loads(usable.read_text(encoding="utf-8"))]

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


def _row(name: str, cache: latent_cache.Cache, text: source.TextSource, texts: Mapping[str, str]) -> Row:
    return Row(name, cache.find(name), text.find(os.path.splitext(name)[0], texts), video.is_image(Path(name)))


def read_latents(row: Row, frames: int, rng: np.random.Generator) -> np.ndarray:
    """One draw of a cached posterior, (c t h w): `frames` latent frames from a random start. Raises DataError."""
    mean, std = row.latents.read()
    if len(mean) < frames:
        raise DataError(f"{row.latents}: {len(mean)} latent frames, data.num_frames asks for {frames}")
    start = int(rng.integers(len(mean) - frames + 1))
    mean, std = mean[start : start + frames], std[start : start + frames]
    return einops.rearrange(mean + std * rng.standard_normal(mean.shape, np.float32), "t c h w -> c t h w")
