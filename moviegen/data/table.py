"""Captioned videos from a csv: cached latents, one npz for each video, and text embeddings.

Those are in the stores that --job=encode_text fills, by the caption, or in the seed's files, one npz for each video.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.data import captions, latent_cache, video
from moviegen.errors import ConfigError, DataError
from moviegen.parallel import sync
from moviegen.parallel.mesh import ALONE, Group
from moviegen.text import store


class Row(NamedTuple):
    """A sample's name in the table; its files, latents and embeddings by encoder; whether they are of an image."""

    video: str
    latents: latent_cache.Entry
    text: dict[str, Path | store.Entry]
    image: bool


def read(config: Any, path: str) -> list[Row]:
    """The usable rows of a csv with a column `video` (a path relative to the folders).

    A row whose files are missing is bad: bad rows are listed, and more than `data.max_bad_fraction` of them are refused
    with a DataError.
    """
    data = config.data
    _check_folders(data)
    latent_cache.check(Path(data.latent_folder), config)
    rows, bad, cache = [], [], latent_cache.open_cache(data.latent_folder)
    texts, unusable = _texts(config, path)
    for line, name in videos(path):
        if line in unusable:
            bad.append(unusable[line])
            continue
        row = _row(data, name, cache, texts.get(line, {}))
        missing = [file for file in (row.latents, *row.text.values()) if not _is_there(file)]
        if missing:
            bad.append(f"line {line}: no {_describe(missing[0])}")
        else:
            rows.append(row)
    if bad:
        print(
            f"{path}: {len(bad)} of {len(bad) + len(rows)} rows cannot be used:\n  " + "\n  ".join(bad[:10]), flush=True
        )
    if not rows or len(bad) > data.max_bad_fraction * (len(bad) + len(rows)):
        raise DataError(
            f"{path}: {len(bad)} bad rows and {len(rows)} good ones, data.max_bad_fraction is {data.max_bad_fraction}: "
            f"first bad one, {bad[0] if bad else 'none, the table is empty'}"
        )
    return rows


def read_once(config: Any, path: str, usable: Path, world: Group = ALONE) -> list[Row]:
    """`read` by rank 0 alone; the others read the names of the usable rows, which it leaves in the file `usable`.

    Every rank looking for the files of every row would be thousands of lookups for each file.
    """

    def leave(rows):
        with open(usable, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["video", "texts"], *([row.video, _texts_of(row)] for row in rows)])

    def take():
        cache = latent_cache.open_cache(config.data.latent_folder)
        with open(usable, newline="", encoding="utf-8") as file:
            return [_row(config.data, row["video"], cache, json.loads(row["texts"])) for row in csv.DictReader(file)]

    return sync.found_by_first(world, lambda: read(config, path), leave, take, usable)


def _check_folders(data: Any) -> None:
    for key, folder in {
        "latent_folder": data.latent_folder,
        **{f"text_folders.{k}": v for k, v in data.text_folders.items()},
    }.items():
        if not Path(folder).is_dir() or not folder:
            raise ConfigError(
                f"data.{key} is {folder!r}, which is not a folder (latents: --job=encode_video makes them)"
            )
    for name, empty in empty_text(data).items():
        dropped = data.text_drop_prob or data.get("text_drop_each", {}).get(name, 0)
        if dropped and not _is_there(empty):
            raise ConfigError(
                f"data.empty_text.{name} is {_describe(empty)!r}, no file: embed the empty prompt or set "
                "data.text_drop_prob=0"
            )


def empty_text(data: Any) -> dict[str, Path | store.Entry]:
    """Where each encoder's embeddings of the empty prompt are: in its store, or the file `data.empty_text` names."""
    return {
        name: store.Entry(folder, "") if store.is_store(folder) else Path(data.empty_text[name])
        for name, folder in data.text_folders.items()
    }


def _texts(config: Any, path: str) -> tuple[dict[int, dict[str, str]], dict[int, str]]:
    """By line, each encoder's text, and what is wrong with the caption; nothing where no encoder has a store."""
    if not any(store.is_store(folder) for folder in config.data.text_folders.values()):
        return {}, {}
    found, bad = captions.read(path, config.text)
    return {row.line: row.texts for row in found}, bad


def _texts_of(row: Row) -> str:
    return json.dumps({name: file.text for name, file in row.text.items() if isinstance(file, store.Entry)})


def _is_there(file: Path | store.Entry | latent_cache.Entry) -> bool:
    return store.has(file) if isinstance(file, store.Entry) else file.is_file()


def _describe(file: Path | store.Entry | latent_cache.Entry) -> str:
    return f"{file.text[:60]!r} in {file.folder}" if isinstance(file, store.Entry) else str(file)


def _row(data: Any, name: str, cache: latent_cache.Cache, texts: Mapping[str, str]) -> Row:
    stem = Path(name).with_suffix(".npz")
    text = {k: store.Entry(v, texts[k]) if store.is_store(v) else Path(v) / stem for k, v in data.text_folders.items()}
    return Row(name, cache.entry(name), text, video.is_image(Path(name)))


def videos(path: str) -> list[tuple[int, str]]:
    """(line number, value of the column `video`) of every row. Raises DataError without such a file or column."""
    if not path or not Path(path).is_file():
        raise DataError(f"data.csv is {path!r}, which does not exist: name a csv file with a column `video`")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "video" not in (reader.fieldnames or ()):
            raise DataError(f"{path}, line 1: no column `video` among {reader.fieldnames}")
        return [(reader.line_num, row["video"]) for row in reader]


def read_latents(row: Row, frames: int, rng: np.random.Generator) -> np.ndarray:
    """One draw of a cached posterior, (c t h w): `frames` latent frames from a random start. Raises DataError."""
    mean, std = row.latents.read()
    if len(mean) < frames:
        raise DataError(f"{row.latents}: {len(mean)} latent frames, data.num_frames asks for {frames}")
    start = int(rng.integers(len(mean) - frames + 1))
    mean, std = mean[start : start + frames], std[start : start + frames]
    return np.moveaxis(mean + std * rng.standard_normal(mean.shape, np.float32), 0, 1)
