"""Fingerprints: what the contents of a folder, latents or embeddings, depend on, noted in it and compared ever after."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moviegen import config as configs
from moviegen.errors import ConfigError
from moviegen.storage import files


def check(path: Path, fingerprint: dict, what: str, key: str) -> None:
    """Compares a fingerprint with the one in the file `path`, and writes it there if there is none yet.

    To be called before the first of the contents is written. Raises ConfigError, with the config key and what differs,
    when the folder holds `what`, something else.
    """
    fingerprint = json.loads(json.dumps(fingerprint))  # as it is read back
    if not path.is_file():
        files.write_json(fingerprint, path)
        return
    differs = configs.changes(json.loads(path.read_text()), fingerprint)
    if differs:
        raise ConfigError(f"{path.parent} holds {what} ({'; '.join(differs)}): delete it or change {key}")


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
