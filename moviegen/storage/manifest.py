"""The manifest.json of a checkpoint, which lists what is in its folder and carries a checksum of itself."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1


def write(folder: Path, content: dict) -> None:
    """Writes `content`, anything that JSON can hold, and syncs it. TypeError names what JSON cannot hold."""
    content = {"format": FORMAT, **content}
    with open(folder / "manifest.json", "w", encoding="utf-8") as f:
        json.dump({**content, "checksum": _checksum(content)}, f, indent=1, default=_json_number)
        f.flush()
        os.fsync(f.fileno())


def read(folder: Path) -> dict:
    """Reads what `write` wrote. ValueError or OSError if the file is missing, damaged or of another version's format."""
    try:
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        intact = content.pop("checksum") == _checksum(content)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"manifest.json is damaged ({error})") from error
    if not intact:
        raise ValueError("manifest.json is damaged (its checksum does not match)")
    if content["format"] != FORMAT:
        raise ValueError(f"manifest.json has format {content['format']}, this version reads {FORMAT}")
    return content


def _checksum(content: dict) -> str:
    # Through JSON and back, so that tuples and number keys look the way they do when they are read.
    plain = json.loads(json.dumps(content, default=_json_number))
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def _json_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"checkpoint meta holds {value!r}: only what JSON knows can be stored")
