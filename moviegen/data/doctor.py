"""What training would make of a table of clips, row by row, told from files' headers and from what is cached alone."""

import hashlib
import itertools
import os
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.data import captions, files, fit, latent_cache, metadata, rates
from moviegen.data.findings import Length, Sample, Survey
from moviegen.data.table import fitting
from moviegen.errors import ConfigError, DataError
from moviegen.parallel import buckets
from moviegen.parallel.buckets import Bucket
from moviegen.storage import fingerprint
from moviegen.storage.writers import Progress
from moviegen.text import encoders, prompts, source, store, tokenizers

_CHUNK = 512  # rows at a time; what a kill may cost
_THREADS = min(16, 4 * (os.cpu_count() or 1))  # most of their time is the disk's


class Checks(NamedTuple):
    """What rows are held against; what an experiment has not is None, and no row is lost for it.

    Args:
        spread: the buckets as `data.stride` spreads their frames.
        cached: rates of the cache's latents, by name.
        by_text: whether embeddings are found by what a caption says, and not by the sample's name.
        lengths: by encoder.
        notes: what could not be looked at, and why.
    """

    config: Any
    table: metadata.Table
    buckets: tuple[Bucket, ...]
    spread: tuple[Bucket, ...]
    cache: latent_cache.Cache | None
    cached: Mapping[str, float]
    text: source.TextSource | None
    by_text: bool
    lengths: dict[str, Length]
    notes: list[str]


class _Lost(Exception):
    """The row is lost: its reason and why."""


def open_checks(config: Any, table: metadata.Table) -> Checks:
    """Opens what a config names and is there. ConfigError where its settings are wrong."""
    data, notes = config.data, []
    shapes, stride = buckets.table(config), data.get("stride", 1)
    spread = tuple(each._replace(frames=(each.frames - 1) * stride + 1) for each in shapes)
    if not data.video_folder:
        notes.append("data.video_folder is empty: no file was looked at")
    elif not Path(data.video_folder).is_dir():
        raise ConfigError(f"data.video_folder is {data.video_folder!r}, which is not a folder: name that of the videos")
    folder, cache = data.get("latent_folder", ""), None
    if folder and Path(folder).is_dir() and any(Path(folder).iterdir()):
        cache = latent_cache.open_cache(folder)
        try:
            latent_cache.check(Path(folder), config)
        except ConfigError as error:
            notes.append(f"training would stop: {error}")
    elif folder:
        notes.append(f"data.latent_folder: there are no latents yet in {folder} (--job=encode_video)")
    text, by_text, lengths = None, True, {}
    if "model" in config and data.csv:
        places = source.folders(config)
        there = [n for n, place in places.items() if place and Path(place).is_dir() and any(Path(place).iterdir())]
        notes += [
            f"data.text_folders.{name}: there are no embeddings yet in {place} (--job=encode_text)"
            for name, place in places.items()
            if place and name not in there
        ]
        lengths = {name: _length(config, name) for name in places}
        if there:
            text = source.stored(config, set(places) - set(there))
            by_text = any(isinstance(found, store.StoredText) for found in text.empty.values())
    return Checks(config, table, shapes, spread, cache, cache.rates if cache else {}, text, by_text, lengths, notes)


def _length(config: Any, name: str) -> Length:
    """In tokens where its tokenizer is there (byt5's needs no file), else in words."""
    folder, kind = config.text.encoders[name], encoders.KINDS[name]
    if folder or kind == "byt5":
        encode = tokenizers.open_tokenizer(kind, folder).encode
        return Length("tokens", lambda texts: [len(ids) for ids in encode(texts)], config.text.budgets[name])
    return Length("words", lambda texts: [len(text.split()) for text in texts], 0)


def survey(checks: Checks, path: str, lose: Callable[..., Any], apart: Collection[str] = ()) -> Survey:
    """Looks at every row of a csv, or of a bare `data.video_folder` if there is none, and notes their files in the metadata.

    lose: is called with line, name, reason and why of each row that is lost. apart: names of validation samples. Raises
    DataError for a csv that cannot be read, before anything is looked at.
    """
    found, seen = Survey(), set()
    columns = ("video", "caption") if checks.text and checks.by_text else ("video",)
    captioned = bool(path) and "caption" in next(captions.stream(path, columns), (0, {}))[1]
    total, rows = _rows(checks, path, columns)
    progress = Progress("check_data", total)
    with ThreadPoolExecutor(_THREADS) as pool:
        for chunk in _chunks(rows):
            listed = [_file(checks, line, row) for line, row in chunk]
            looked = _looked(checks, listed, pool)
            texts: list[dict] = []
            for (line, row), file in zip(chunk, listed, strict=True):
                found.rows += 1
                key = _key(file.name, (row.get("caption") or "") if checks.by_text else "")
                try:
                    if key in seen:
                        raise _Lost("duplicate row", f"{file.name}: is there before")
                    sample, told, content = _sample(checks, line, row, file, looked, captioned)
                except (_Lost, ConfigError) as error:
                    reason, why = error.args if isinstance(error, _Lost) else ("bad row", error)
                    found.note(reason, line, why)
                    lose(line, file.name, reason, why)
                    continue
                seen.add(key)
                texts.append(told)
                found.take(sample, content, _key(file.name, ""))
                if os.path.normpath(file.name) in apart:
                    found.note("in the validation table", line, file.name)
            for name, length in checks.lengths.items():
                own = [told[name] for told in texts if told]
                found.lengths.setdefault(name, array("L")).extend(length.of(own))
            progress.update(found.rows, lost=found.rows - found.taken)
    return found


def _rows(checks: Checks, path: str, columns: Sequence[str]) -> tuple[int, Iterator[tuple[int, dict]]]:
    """How many rows there are, and one after another with their lines."""
    if path:
        return sum(1 for _ in captions.stream(path, columns)), captions.stream(path, columns)
    listed = files.listed("", checks.config.data.video_folder)
    return len(listed), ((0, {"video": file.name}) for file in listed)


def _chunks(rows: Iterator) -> Iterator[list]:
    while chunk := list(itertools.islice(rows, _CHUNK)):
        yield chunk


def _file(checks: Checks, line: int, row: Mapping) -> files.File:
    data = checks.config.data
    return files.of_row(row, Path(data.video_folder), line, captions.allow_outside(data))


def _looked(checks: Checks, listed: Sequence[files.File], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """What the files are, by name, or the error of each that cannot be used. What was not known is added to the csv."""
    if not checks.config.data.video_folder:
        return {}

    def look(file: files.File) -> tuple[metadata.Row | None, bool, Exception | None]:
        try:
            return *checks.table.row(file.name, file.path, file.piece), None
        except DataError as error:
            return None, True, error

    unique = {file.name: file for file in listed}
    found = dict(zip(unique, pool.map(look, unique.values()), strict=True))
    checks.table.append((name, row) for name, (row, known, _) in found.items() if not known)
    return {name: error or row for name, (row, _, error) in found.items()}


def _sample(
    checks: Checks, line: int, row: Mapping, file: files.File, looked: Mapping, captioned: bool
) -> tuple[Sample, dict[str, str], int]:
    """A row as training takes it, its texts by encoder, and a key that only files of one size and length share."""
    config = checks.config
    captions.video_name(row["video"])
    if file.wrong:
        raise _Lost("bad row", file.wrong)
    name = file.name
    if None in row or None in row.values():
        raise _Lost("bad row", "has more or fewer fields than the header: quote captions that contain commas")
    stated, fitted, found = rates.parse(file.fps) or config.data.get("fps", 0.0), None, looked.get(file.name)
    if isinstance(found, Exception):
        raise _Lost("unreadable" if file.path.exists() else "missing", found)
    if found:
        try:
            most = config.data.buckets.max_upscale if buckets.configured(config) else 0.0
            fitted = fit.fit(checks.spread, found.meta, most, stated)
        except DataError as error:
            reason = {fit.TooShort: "too short", fit.TooSmall: "too small"}.get(type(error), "no bucket")
            raise _Lost(reason, f"{name} {error}") from error
    bucket = checks.buckets[checks.spread.index(fitted.bucket)] if fitted else None
    shown = (fitted.fps or found.meta.fps) if fitted else stated
    if captioned and checks.lengths and not prompts.clean(row["caption"]):
        raise _Lost("no caption", f"{name}: the caption is empty")
    if checks.cache:
        bucket = _latents(checks, file)
        shown = rates.of(row, config.data, checks.cached) if name in checks.cached else shown
    texts = {}
    if captioned and checks.lengths:
        image = file.image or bool(bucket and bucket.kind == "image")
        fps = shown if config.text.tell_fps and not image else 0
        texts = prompts.prepare(row["caption"], fps, row.get("camera") or config.text.camera, image)
    if checks.text:
        for encoder, own in checks.text.find(os.path.splitext(name)[0], texts).items():
            if not own.is_file():
                raise _Lost("no embedding", f"{name}: {encoder} has none")
    sample = Sample(line, file, (row.get("caption") or "") if captioned else "", found and found.meta, fitted, bucket)
    content = _key(str((found.bytes, *found.meta)), "") if found else 0
    return sample, texts, content


def _latents(checks: Checks, file: files.File) -> Bucket:
    """The bucket of a row's cached latents: the longest that they fill."""
    checks.cache.check_name(file.name, file.outside)
    stored = checks.cache.find(file.name)
    if not stored.is_file():
        raise _Lost("no latents", f"{file.name}: has no latents")
    image = file.image or all(each.kind == "image" for each in checks.buckets)
    found = fitting(checks.buckets, stored.shape(), image)
    if found is None:
        frames, _, *size = stored.shape()
        raise _Lost("other latents", f"{file.name}: latents of {'x'.join(map(str, (frames, *size)))} fit no bucket")
    return found


def _key(name: str, caption: str) -> int:
    text = f"{name}\n{caption}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def same_content(checks: Checks, trained: Survey, heldout: Survey | None) -> None:
    """Notes files of one content under several names: by checksums of those that have one size, frames and pixels."""
    names = [*(heldout.names if heldout else ()), *trained.names]
    apart = len(names) - len(trained.names)
    keys = np.array([*(heldout.keys if heldout else ()), *trained.keys], np.uint64)
    _, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
    several = [int(i) for i in np.flatnonzero((counts[which] > 1) & (keys != 0))]
    first: dict[tuple[int, str], tuple[str, bool]] = {}
    progress = Progress("check_data: same content", len(several))

    def look(index: int) -> tuple[metadata.Row, bool] | None:
        try:
            path = _file(checks, 0, {"video": names[index]}).path
            row, _ = checks.table.row(names[index], path)
            return (row, True) if row.digest else (row._replace(digest=fingerprint.of_file(path)[2]), False)
        except (DataError, OSError):  # it is gone since
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        for done, chunk in enumerate(_chunks(iter(several))):
            looked = list(pool.map(look, chunk))
            new = {names[i]: found[0] for i, found in zip(chunk, looked, strict=True) if found and not found[1]}
            checks.table.append(new.items())
            for index, found in zip(chunk, looked, strict=True):
                if not found:
                    continue
                name, validated = first.setdefault((int(keys[index]), found[0].digest), (names[index], index < apart))
                if index >= apart and os.path.normpath(name) != os.path.normpath(names[index]):
                    reason = "in the validation table" if validated else "duplicate content"
                    trained.note(reason, 0, f"{names[index]} has the content of {name}")
            progress.update(min(len(several), (done + 1) * _CHUNK))
