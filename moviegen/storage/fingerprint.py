"""What a folder of made things, latents or embeddings, was made of: noted in it before the first, compared ever after."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moviegen import config as configs
from moviegen.errors import ConfigError
from moviegen.storage import files


def claim(path: Path, made_of: dict, what: str, key: str) -> None:
    """Note in the file `path` what lies beside it is made of, before the first is: what a kill leaves behind is then known.

    Raises ConfigError, naming the config key and what differs, when the folder already holds `what`, another making.
    """
    made_of = json.loads(json.dumps(made_of))  # as it is read back
    if not path.is_file():
        files.write_json(made_of, path)
        return
    differs = configs.changes(json.loads(path.read_text()), made_of)
    if differs:
        raise ConfigError(f"{path.parent} holds {what} ({'; '.join(differs)}): delete it or change {key}")


def digest(files: Iterable[Path]) -> str:
    """A short checksum of the content of some files."""
    return hexdigest(files, hashlib.sha256())[:16]


def hexdigest(files: Iterable[Path], found: Any) -> str:
    """Files through the hash `found`, a part at a time: they may be larger than memory."""
    for file in files:
        with open(file, "rb") as f:
            while block := f.read(1 << 24):
                found.update(block)
    return found.hexdigest()
