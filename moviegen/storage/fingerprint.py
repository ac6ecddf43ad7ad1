"""Fingerprints: what the contents of a folder, latents or embeddings, depend on, noted in it and compared ever after."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moviegen import config as configs
from moviegen.errors import ConfigError, DataError
from moviegen.storage import files

DAMAGED = "damaged: delete it, and encode again with the settings that its folder was made with"
_ENDS = 1 << 20


def check(path: Path, fingerprint: dict, what: str, key: str, beside: tuple[str, ...] = ()) -> None:
    """Compares a fingerprint with the one in the file `path`, and writes it there if there is none yet.

    To be called before the first of the contents is written. The file may have keys `beside` those. Raises ConfigError,
    with the config key and what differs, when the folder holds `what`, something else; DataError for a damaged file.
    """
    fingerprint = json.loads(json.dumps(fingerprint))  # as it is read back
    if not path.is_file():
        with files.refused(f"{path}: cannot be written", OSError):
            files.write_json(fingerprint, path)
        return
    found = {name: value for name, value in noted(path).items() if name not in beside}
    differs = configs.changes(found, fingerprint)
    if differs:
        raise ConfigError(f"{path.parent} holds {what} ({'; '.join(differs)}): delete it or change {key}")


def noted(path: Path) -> dict:
    """Returns what `check` has written to a file. DataError where that is damaged."""
    with files.refused(f"{path}: {DAMAGED}", DataError):
        found = files.read_json(path)
        if not isinstance(found, dict):
            raise DataError(f"it holds a {type(found).__name__}, no settings")
        return found


def of_file(path: Path) -> list:
    """Returns what tells a file from one that replaces it: size, time of change, a checksum of its first and last MB.

    Raises DataError where it cannot be read.
    """
    # Not of all of it: of an hour's film a few seconds may be wanted.
    with files.refused(f"{path}: cannot be read", OSError), open(path, "rb") as f:
        size, time = os.fstat(f.fileno()).st_size, os.fstat(f.fileno()).st_mtime_ns
        hasher = hashlib.sha256(f.read(_ENDS))
        f.seek(max(0, size - _ENDS))
        hasher.update(f.read(_ENDS))
    return [size, time, hasher.hexdigest()[:16]]


def is_same(path: Path, noted: list) -> bool:
    """Whether a file is the one of which `of_file` has `noted` this; a copy of it has another time, but its ends."""
    size, time, ends = noted
    stat = path.stat()
    return stat.st_size == size and (stat.st_mtime_ns == time or of_file(path)[2] == ends)


def digest(files: Iterable[Path]) -> str:
    """Returns a short checksum of the contents of some files."""
    return hexdigest(files, hashlib.sha256())[:16]


def hexdigest(files: Iterable[Path], hasher: Any) -> str:
    """Returns what the hash object `hasher` makes of some files, read in pieces: they may be larger than memory."""
    for file in files:
        with open(file, "rb") as f:
            while block := f.read(1 << 24):
                hasher.update(block)
    return hasher.hexdigest()
