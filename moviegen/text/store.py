"""Cached embeddings of texts: a folder of safetensors shards, read at random, in which every text is there once.

A text is found by its checksum, so that a store can grow. A shard holds `embeddings` and `tokens` of its texts one after
another at their true lengths, `ends` and `keys`, and of each text a checksum in `sums`, which shards of before lack.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from crc32c import crc32c

from moviegen.errors import ConfigError, DataError
from moviegen.storage import fingerprint as fingerprints, safetensors_io

MANIFEST = "embeddings.json"
_KEY = "S16"  # 128 bits: that two texts share one is out of the question


class Store(NamedTuple):
    """Keys in order; of each the number of its shard, its rows there and its checksum (-1: there is none); the shards."""

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


def fingerprint(folder: str | Path) -> dict:
    """What the embeddings of a store were made with."""
    return json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))


def check_or_write(folder: Path, fingerprint: dict, key: str) -> None:
    """Writes the fingerprint of a new store, or raises ConfigError, naming `key` and what differs, if it has another."""
    if not is_store(folder) and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no embeddings of ours: name another folder as {key}")
    fingerprints.check(folder / MANIFEST, fingerprint, "embeddings with another fingerprint", key)


def write_shard(folder: Path, texts: Sequence[str], tokens: Sequence[list[int]], embeddings: Sequence[Any]) -> Path:
    """Stores the token ids and embeddings (l d) of some texts; a kill leaves all of them or none. DataError for NaN."""
    for text, values in zip(texts, embeddings, strict=True):
        if not np.isfinite(values).all():
            raise DataError(
                f"{folder}: embeddings of the text {text[:100]!r} are not finite: look at the encoder's weights"
            )
    keys = b"".join(map(_key, texts))
    arrays = {
        "embeddings": np.concatenate(embeddings),
        "tokens": np.concatenate([np.asarray(ids, np.int32) for ids in tokens]),
        "ends": np.cumsum([len(ids) for ids in tokens], dtype=np.int64),
        "keys": np.frombuffer(keys, np.uint8).reshape(-1, 16),
        "sums": np.array([_checksum(*pair) for pair in zip(embeddings, tokens, strict=True)], np.int64),
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
    keys, places = [np.empty(0, _KEY)], [np.empty((0, 4), np.int64)]
    for number, file in enumerate(files):
        own, ends, sums = _index(file)
        keys.append(np.frombuffer(own.tobytes(), _KEY))
        places.append(np.stack([np.full_like(ends, number), np.r_[0, ends[:-1]], ends, sums], 1))
    keys, places = np.concatenate(keys), np.concatenate(places)
    order = np.argsort(keys, kind="stable")
    return Store(keys[order], places[order], files)


def _index(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys (n 16), ends (n) and checksums (n) of a shard. DataError where its arrays are not those of one."""
    arrays, _ = safetensors_io.lazy(file)
    count = arrays["ends"].shape[:1] if "ends" in arrays else ()
    rows = arrays["embeddings"].shape[:-1] if "embeddings" in arrays else ()
    expected = {"keys": ((*count, 16), "uint8"), "ends": (count, "int64"), "tokens": (rows, "int32")}
    expected |= {"sums": (count, "int64")} if "sums" in arrays else {}
    found = {name: (arrays[name].shape, arrays[name].dtype.name) for name in expected if name in arrays}
    if count and rows and found == expected:
        keys, ends = np.asarray(arrays["keys"]), np.asarray(arrays["ends"])
        if (np.diff(ends, prepend=0) >= 0).all() and (*ends[-1:],) == rows:
            return keys, ends, np.asarray(arrays["sums"]) if "sums" in arrays else np.full_like(ends, -1)
    raise DataError(f"{file}: not a shard of embeddings: delete it and encode its texts again")


def cached_store(folder: str) -> Store:
    """`open_store`, its index read again only when a shard was added."""
    return _cached_store(folder, os.stat(folder).st_mtime_ns)


_cached_store = functools.lru_cache(maxsize=16)(lambda folder, changed: open_store(folder))


def contains(store: Store, texts: Iterable[str]) -> np.ndarray:
    """Of each text whether it is there."""
    return _find(store, texts) >= 0


def read(store: Store, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 (l d) and token ids int32 (l) of a text. DataError when it is not there or damaged."""
    (at,) = _find(store, [text])
    if at < 0:
        where = store.files[0].parent if store.files else "the store"
        raise DataError(
            f"no embeddings of the text {text[:100]!r} in {where}: run --job=encode_text on it, with the same config"
        )
    number, start, stop, checksum = (int(n) for n in store.places[at])
    file, rows = store.files[number], slice(start, stop)
    try:
        embeddings, tokens = (safetensors_io.read_rows(file, name, rows) for name in ("embeddings", "tokens"))
        if checksum not in (-1, _checksum(embeddings, tokens)):
            raise DataError(f"the embeddings of {text[:60]!r} are damaged: their checksum is another")
        return embeddings.astype(np.float32), tokens
    except DataError as error:
        raise DataError(f"{file}: cannot be read ({error}): delete it and encode again") from error


def _find(store: Store, texts: Iterable[str]) -> np.ndarray:
    wanted = np.frombuffer(b"".join(map(_key, texts)), _KEY)
    if not len(store.keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(store.keys, wanted), len(store.keys) - 1)
    return np.where(store.keys[at] == wanted, at, -1)


def _checksum(embeddings: np.ndarray, tokens: Sequence[int]) -> int:
    first = crc32c(np.ascontiguousarray(embeddings).view(np.uint8))
    return crc32c(np.asarray(tokens, np.int32).tobytes(), first)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()
