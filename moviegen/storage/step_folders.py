"""The folders of checkpoints, `step-00000042` and so on: which are whole, how one comes and goes, and its manifest.json.

A manifest lists what is in its folder, knows its step and carries a checksum of itself.
"""

import contextlib
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.errors import DataError
from moviegen.storage import arraystore, schema
from moviegen.storage.files import inside, regular, sync, unique

MANIFEST, FORMAT = "manifest.json", 1
_COMMITTED = r"step-(\d{8,})(\.old)?"
_CONTENT = {"step": schema.count, "meta": dict, "trees": {str: {str: dict}}}


def place(folder: str | Path) -> tuple[Path, int | None]:
    """Returns the folder of checkpoints, of a run's workdir too, and the step if the path names one of them."""
    folder = Path(folder)
    named = re.fullmatch(r"step-(\d{8,})", folder.name)
    if named:
        return folder.parent, int(named[1])
    own = folder / "checkpoints"
    return (own if own.is_dir() else folder), None


def committed(folder: Path) -> dict[int, Path]:
    """Returns {step: folder} of the whole checkpoints."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step-*")):  # `step-N` sorts before `step-N.old` and so wins
        match = re.fullmatch(_COMMITTED, path.name)
        if match and path.is_dir():
            found.setdefault(int(match[1]), path)
    return found


def commit(aside: Path, final: Path) -> None:
    """Renames the folder `aside`, which is whole, to `final`; one of that name is replaced, later steps are removed."""
    folder, step = place(final)
    for number, path in committed(folder).items():
        if number > step:
            discard(path)
    old = final.with_name(final.name + ".old")
    if final.exists():
        # Two renames, since a rename cannot replace a folder with files in it: between them `.old` is the checkpoint.
        if old.exists():
            discard(old)
        os.rename(final, old)
    os.rename(aside, final)
    sync(folder)
    if old.exists():
        discard(old)


def discard(path: Path) -> None:
    """Removes a checkpoint."""
    # A kill in the middle of rmtree must not leave half a checkpoint under a committed name.
    aside = path.with_name(f"{path.name}.tmp-{unique()}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def clean(folder: Path) -> None:
    """Removes what kills left behind: half-written or half-removed folders, and replaced ones whose replacement is there.

    For the one process that saves to the folder: another's half-written save looks the same.
    """
    replaced = [path for path in folder.glob("step-*.old") if path.with_suffix("").exists()]
    for path in [*folder.glob("step-*.tmp-*"), *replaced]:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_manifest(folder: Path, content: dict) -> None:
    """Writes `content`, anything that JSON can hold, and syncs it. TypeError names what JSON cannot hold."""
    # Through JSON and back, so that tuples and number keys are summed up the way they look when they are read.
    content = json.loads(json.dumps({"format": FORMAT, **content}, default=_json_number))
    with open(folder / MANIFEST, "w", encoding="utf-8") as f:
        json.dump({**content, "checksum": _checksum(content)}, f, indent=1)
    sync(folder / MANIFEST)


def read_manifest(folder: Path) -> dict:
    """Reads what was written, and checks it once for all who use it.

    ValueError or OSError if the file is missing, damaged, of another version's format or of another step than the folder.
    """
    try:
        content = json.loads(regular(inside(folder, MANIFEST)).read_text(encoding="utf-8"))
        if content.pop("checksum") != _checksum(content):
            raise ValueError("its checksum does not match")
        version = content["format"]
        if version == FORMAT:
            schema.check(content, _CONTENT, "it")
            for tree, entries in content["trees"].items():
                for name, entry in entries.items():
                    arraystore.check(entry, f"array {tree}/{name}")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, DataError) as error:
        raise ValueError(f"{MANIFEST} is damaged ({error})") from error
    if version != FORMAT:
        raise ValueError(f"{MANIFEST} has format {version}, this version reads {FORMAT}")
    named = re.fullmatch(_COMMITTED, folder.name)
    if named and int(named[1]) != content["step"]:
        step = content["step"]
        raise ValueError(f"it is renamed: {MANIFEST} is of step {step}; call the folder step-{step:08d} again")
    return content


def _checksum(content: dict) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _json_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"checkpoint meta holds {value!r}: only what JSON knows can be stored")
