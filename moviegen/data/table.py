"""Captioned videos from a csv, in the seed's files: cached latents and text embeddings as npz, one each for a video."""

import csv
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import mesh as meshes
from moviegen.data import latent_cache
from moviegen.data.video import IMAGE_SUFFIXES
from moviegen.errors import ConfigError, DataError


class Row(NamedTuple):
    """A sample's name in the table; its files, latents and embeddings by encoder; whether they are of an image."""

    video: str
    latents: latent_cache.Entry
    text: dict[str, Path]
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
    for line, name in videos(path):
        row = _row(data, name, cache)
        missing = [file for file in (row.latents, *row.text.values()) if not file.is_file()]
        if missing:
            bad.append(f"line {line}: no {missing[0]}")
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


def read_once(config: Any, path: str, usable: Path) -> list[Row]:
    """`read` by rank 0 alone; the others read the names of the usable rows, which it leaves in the file `usable`.

    Every rank looking for the files of every row would be thousands of lookups for each file.
    """
    found = []

    def check():
        found.extend(read(config, path))
        if meshes.current().world.size > 1:
            usable.parent.mkdir(parents=True, exist_ok=True)
            with open(usable, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([["video"], *([row.video] for row in found)])

    meshes.first_rank_alone(check, usable.with_suffix(".done"))
    cache = latent_cache.open_cache(config.data.latent_folder)
    return found or [_row(config.data, name, cache) for _, name in videos(str(usable))]


def _check_folders(data: Any) -> None:
    for key, folder in {
        "latent_folder": data.latent_folder,
        **{f"text_folders.{k}": v for k, v in data.text_folders.items()},
    }.items():
        if not Path(folder).is_dir() or not folder:
            raise ConfigError(
                f"data.{key} is {folder!r}, which is not a folder (latents: --job=encode_video makes them)"
            )
    for name, empty in data.empty_text.items():
        if data.text_drop_prob and not Path(empty).is_file():
            raise ConfigError(
                f"data.empty_text.{name} is {empty!r}, no file: embed the empty prompt or set data.text_drop_prob=0"
            )


def _row(data: Any, name: str, cache: latent_cache.Cache) -> Row:
    stem = Path(name).with_suffix(".npz")
    text = {k: Path(v) / stem for k, v in data.text_folders.items()}
    return Row(name, cache.entry(name), text, Path(name).suffix.lower() in IMAGE_SUFFIXES)


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


def read_text(files: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Embeddings (b l d) and masks (b l) by encoder, padded to the longest. Raises DataError."""
    text = {}
    for name in files[0]:
        found = [_npz(Path(file[name]), ("text_emb", "mask")) for file in files]
        length = max(len(f["mask"]) for f in found)
        width = found[0]["text_emb"].shape[1]
        embeddings = np.zeros((len(found), length, width), np.float32)
        masks = np.zeros((len(found), length), np.float32)
        for i, f in enumerate(found):
            embeddings[i, : len(f["mask"])], masks[i, : len(f["mask"])] = f["text_emb"], f["mask"]
        text[name] = embeddings, masks
    return text


def _npz(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as npz with {', '.join(keys)}: {error}") from error
