"""Cached embeddings of texts: a folder of safetensors shards, read at random, in which every text is there once.

A text is found by its checksum, so that a store can grow. A shard holds `embeddings` and `tokens` of its texts one after
another at their true lengths, `ends` and `keys`.
"""

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.errors import ConfigError, DataError
from moviegen.storage import fingerprint as fingerprints, safetensors_io

MANIFEST = "embeddings.json"
_KEY = "S16"  # 128 bits: that two texts share one is out of the question


class Store(NamedTuple):
    """Keys in order, of each the number of its shard and its rows there, and the shards."""

    keys: np.ndarray
    places: np.ndarray
    files: tuple[Path, ...]


class StoredText(NamedTuple):
    """A text's embeddings in the store of this folder."""

    folder: str
    text: str

    def __str__(self) -> str:
        return f"{self.text[:60]!r} in {self.folder}"

    def is_file(self) -> bool:
        return bool(contains(cached_store(self.folder), [self.text])[0])


def is_store(folder: str | Path) -> bool:
    """Whether a folder holds such embeddings, and not the seed's npz files."""
    return (Path(folder) / MANIFEST).is_file()


def check_or_write(folder: Path, fingerprint: dict, key: str) -> None:
    """Writes the fingerprint of a new store, or raises ConfigError, naming `key` and what differs, if it has another."""
    if not is_store(folder) and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no embeddings of ours: name another folder as {key}")
    fingerprints.check(folder / MANIFEST, fingerprint, "embeddings with another fingerprint", key)


def write_shard(folder: Path, texts: Sequence[str], tokens: Sequence[list[int]], embeddings: Sequence[Any]) -> Path:
    """Stores the token ids and embeddings (l d) of some texts; a kill leaves all of them or none."""
    keys = b"".join(map(_key, texts))
    arrays = {
        "embeddings": np.concatenate(embeddings),
        "tokens": np.concatenate([np.asarray(ids, np.int32) for ids in tokens]),
        "ends": np.cumsum([len(ids) for ids in tokens], dtype=np.int64),
        "keys": np.frombuffer(keys, np.uint8).reshape(-1, 16),
    }
    if len(arrays["tokens"]) != len(arrays["embeddings"]):
        raise ValueError(f"{len(arrays['tokens'])} tokens have {len(arrays['embeddings'])} embeddings")
    name = hashlib.blake2b(keys, digest_size=8).hexdigest()
    return safetensors_io.write(arrays, folder / f"shard-{name}.safetensors", None)


def open_store(folder: str | Path) -> Store:
    """The index of a store. DataError names a shard that is damaged."""
    folder = Path(folder)
    if not is_store(folder):
        raise DataError(f"{folder}: has no {MANIFEST}: encode the texts again")
    files = tuple(sorted(folder.glob("shard-*.safetensors")))
    keys, places = [np.empty(0, _KEY)], [np.empty((0, 3), np.int64)]
    for number, file in enumerate(files):
        arrays, _ = safetensors_io.lazy(file)
        if not arrays.keys() >= {"keys", "ends"}:
            raise DataError(f"{file}: not a shard of embeddings: delete it and encode its texts again")
        ends = np.asarray(arrays["ends"])
        keys.append(np.frombuffer(np.asarray(arrays["keys"]).tobytes(), _KEY))
        places.append(np.stack([np.full_like(ends, number), np.r_[0, ends[:-1]], ends], 1))
    keys, places = np.concatenate(keys), np.concatenate(places)
    order = np.argsort(keys, kind="stable")
    return Store(keys[order], places[order], files)


def cached_store(folder: str) -> Store:
    """`open_store`, its index read again only when a shard was added."""
    return _cached_store(folder, os.stat(folder).st_mtime_ns)


_cached_store = functools.lru_cache(maxsize=16)(lambda folder, changed: open_store(folder))


def contains(store: Store, texts: Iterable[str]) -> np.ndarray:
    """Of each text whether it is there."""
    return _find(store, texts) >= 0


def read(store: Store, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 (l d) and token ids int32 (l) of a text. DataError when it is not there."""
    (at,) = _find(store, [text])
    if at < 0:
        where = store.files[0].parent if store.files else "the store"
        raise DataError(
            f"no embeddings of the text {text[:100]!r} in {where}: run --job=encode_text on it, with the same config"
        )
    number, start, stop = (int(n) for n in store.places[at])
    file, rows = store.files[number], slice(start, stop)
    try:
        embeddings = safetensors_io.read_rows(file, "embeddings", rows)
        return embeddings.astype(np.float32), safetensors_io.read_rows(file, "tokens", rows)
    except DataError as error:
        raise DataError(f"{file}: cannot be read ({error}): delete it and encode again") from error


def _find(store: Store, texts: Iterable[str]) -> np.ndarray:
    wanted = np.frombuffer(b"".join(map(_key, texts)), _KEY)
    if not len(store.keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(store.keys, wanted), len(store.keys) - 1)
    return np.where(store.keys[at] == wanted, at, -1)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()
