"""Checkpoints: one array per parameter, committed by a single rename, verified when read.

A save writes `step-00000042.tmp-<pid>`, brings every file to the disk and renames the folder to `step-00000042`. So
whatever carries that name is whole, and a kill at any instant costs at most the steps since the save before. The
manifest inside holds sizes and checksums of all files, itself included; a load trusts nothing that it has not compared
with them. One process saves to a folder at a time.
"""

import json
import os
import re
import shutil
import zlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from moviegen import arraystore
from moviegen.errors import DataError

FORMAT = 1
# The disk is what saturates; this also bounds the host copies of an accelerator's arrays that are alive at once.
WORKERS = 8

Tree = Mapping[str, Any]


def save(folder: str | Path, step: int, trees: Mapping[str, Tree], meta: Mapping[str, Any], keep: int = 2) -> Path:
    """Write one checkpoint, whole or not at all, and return its folder `<folder>/step-<step>`.

    `trees` is {"params": {path: array}, "ema": ..., "opt/m": ...}: MindSpore tensors, numpy arrays or numbers, stored
    in their own shape and dtype. `meta` is anything JSON can hold. A checkpoint of the same step is replaced, later
    ones are dropped (saving step 30 after going back from 40 starts another history), and the newest `keep` stay.
    Raises DataError when it cannot be written (a full disk); what was there before is then untouched.
    """
    folder = Path(folder)
    if step < 0 or keep < 1:
        raise ValueError(f"checkpoint.save: step={step} must be at least 0 and keep={keep} at least 1")
    final = folder / f"step-{step:08d}"
    aside = folder / f"{final.name}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fsync(folder.parent)
        for leftover in _leftovers(folder):
            shutil.rmtree(leftover)
        aside.mkdir()
        entries = {t: _write_tree(aside / arraystore.folder_name(t), t, values) for t, values in trees.items()}
        _write_manifest(aside, {"format": FORMAT, "step": step, "meta": dict(meta), "trees": entries})
        for path, folders, files in os.walk(aside):
            if folders or "manifest.json" in files:  # tensorstore itself syncs the folders that hold its files
                _fsync(Path(path))
        _commit(folder, aside, final, step)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError | ValueError):
            previous = latest(folder)
            kept = "there is no earlier one" if previous is None else f"step {previous} is still there, untouched"
            raise DataError(f"{final}: cannot write the checkpoint ({_reason(error)}); {kept}") from error
        raise
    committed = _committed(folder)
    for old in sorted(committed)[:-keep]:
        _discard(committed[old])
    return final


def latest(folder: str | Path) -> int | None:
    """Step of the newest committed checkpoint in `folder`, or None. Half-written ones never count.

    `folder` may also be one checkpoint itself, `.../step-00000042`, here and in `load`.
    """
    folder, named = _place(folder)
    committed = _committed(folder)
    if named is None:
        return max(committed, default=None)
    return named if named in committed else None


def load(
    folder: str | Path, step: int | None = None, select: str | None = None, dtype: str | None = None
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Read a checkpoint (the newest unless `step` is given) as ({tree: {path: numpy array}}, meta with its "step").

    `select` is a regular expression searched in "<tree>/<path>", such as "^ema/": nothing else is read. `dtype` casts
    floating-point arrays. All that is read is checked: DataError names the damaged array and the step to go back to.
    """
    folder, named = _place(folder)
    committed = _committed(folder)
    if not committed:
        raise DataError(f"{folder}: no checkpoint here, expected a folder named step-<number>")
    step = next(n for n in (step, named, max(committed)) if n is not None)
    if step not in committed:
        raise DataError(f"{folder}: no checkpoint of step {step}, expected one of {sorted(committed)}")
    try:
        manifest = _read_manifest(committed[step])
        trees = manifest["trees"] if select is None else _select(committed[step], manifest["trees"], select)
        arrays = _read_trees(committed[step], trees, dtype)
    except (OSError, ValueError) as error:
        raise DataError(f"{committed[step]}: {_reason(error)}. {_way_back(committed, step)}") from error
    return arrays, {**manifest["meta"], "step": step}


def _place(folder: str | Path) -> tuple[Path, int | None]:
    """The folder of checkpoints, and the step if the path names one of them."""
    folder = Path(folder)
    named = re.fullmatch(r"step-(\d{8,})", folder.name)
    return (folder.parent, int(named[1])) if named else (folder, None)


def export_safetensors(params: Tree, path: str | Path, dtype: str | None = "float32") -> Path:
    """Write a tree to one safetensors file, floating-point arrays in `dtype` (None: as they are)."""
    from safetensors.numpy import save_file

    path = Path(path)
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    arrays = {name: arraystore.cast(arraystore.to_numpy(name, value), dtype) for name, value in params.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # safetensors writes the buffer of a transposed view as if it were not one: C order alone comes back right.
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, aside)
        _fsync(aside)
        os.replace(aside, path)
    except OSError as error:
        raise DataError(f"{path}: cannot write the safetensors file ({_reason(error)})") from error
    finally:
        aside.unlink(missing_ok=True)
    return path


def import_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read a safetensors file as {name: numpy array}. Nothing in it is ever executed (no pickle)."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: arraystore.to_numpy(name, array) for name, array in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({_reason(error)})") from error


def _commit(folder: Path, aside: Path, final: Path, step: int) -> None:
    for number, path in _committed(folder).items():
        if number > step:
            _discard(path)
    old = final.with_name(final.name + ".old")
    if final.exists():
        # Two renames, since a rename cannot replace a folder with files in it: between them `.old` is the checkpoint.
        if old.exists():
            _discard(old)
        os.rename(final, old)
    os.rename(aside, final)
    _fsync(folder)
    if old.exists():
        _discard(old)


def _discard(path: Path) -> None:
    # A kill in the middle of rmtree must not leave half a checkpoint under a committed name.
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _leftovers(folder: Path) -> list[Path]:
    """What kills left behind: half-written or half-removed folders, and replaced ones whose replacement is there."""
    replaced = [path for path in folder.glob("step-*.old") if path.with_suffix("").exists()]
    return [*folder.glob("step-*.tmp-*"), *replaced]


def _committed(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step-*")):  # `step-N` sorts before `step-N.old` and so wins
        match = re.fullmatch(r"step-(\d{8,})(\.old)?", path.name)
        if match and path.is_dir():
            found.setdefault(int(match[1]), path)
    return found


def _write_tree(folder: Path, tree: str, values: Tree) -> dict[str, dict]:
    entries: dict[str, dict] = {}
    pending: deque = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for name, value in values.items():
            array = arraystore.to_numpy(f"{tree}/{name}", value)
            pending.append((name, pool.submit(arraystore.write, folder / arraystore.folder_name(name), array)))
            if len(pending) > WORKERS:
                done, future = pending.popleft()
                entries[done] = future.result()
        entries.update((name, future.result()) for name, future in pending)
    return entries


def _read_trees(path: Path, trees: Mapping[str, Mapping[str, dict]], dtype: str | None) -> dict[str, dict]:
    def read(key: tuple[str, str]) -> np.ndarray:
        tree, name = key
        try:
            folder = path / arraystore.folder_name(tree) / arraystore.folder_name(name)
            return arraystore.cast(arraystore.read(folder, trees[tree][name]), dtype)
        except (OSError, ValueError) as error:
            raise ValueError(f"array {tree}/{name} is damaged ({_reason(error)})") from error

    keys = [(tree, name) for tree, entries in trees.items() for name in entries]
    with ThreadPoolExecutor(WORKERS) as pool:
        arrays = dict(zip(keys, pool.map(read, keys), strict=True))
    return {tree: {name: arrays[tree, name] for name in entries} for tree, entries in trees.items()}


def _select(path: Path, trees: Mapping[str, Mapping[str, dict]], pattern: str) -> dict[str, dict]:
    chosen = {t: {n: e for n, e in entries.items() if re.search(pattern, f"{t}/{n}")} for t, entries in trees.items()}
    if not any(chosen.values()):
        raise DataError(f"{path}: no array matches select={pattern!r}; the trees are {sorted(trees)}")
    return {tree: entries for tree, entries in chosen.items() if entries}


def _write_manifest(folder: Path, manifest: dict) -> None:
    with open(folder / "manifest.json", "w", encoding="utf-8") as f:
        json.dump({**manifest, "checksum": _checksum(manifest)}, f, indent=1, default=_json_number)
        f.flush()
        os.fsync(f.fileno())


def _read_manifest(folder: Path) -> dict:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        intact = manifest.pop("checksum") == _checksum(manifest)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"manifest.json is damaged ({error})") from error
    if not intact:
        raise ValueError("manifest.json is damaged (its checksum does not match)")
    if manifest["format"] != FORMAT:
        raise ValueError(f"manifest.json has format {manifest['format']}, this version reads {FORMAT}")
    return manifest


def _checksum(manifest: dict) -> str:
    # Through JSON and back, so that tuples and number keys look the way they do when they are read.
    plain = json.loads(json.dumps(manifest, default=_json_number))
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def _json_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"checkpoint meta holds {value!r}: only what JSON knows can be stored")


def _way_back(committed: Mapping[int, Path], step: int) -> str:
    for number in sorted((n for n in committed if n < step), reverse=True):
        try:
            _read_trees(committed[number], _read_manifest(committed[number])["trees"], None)
        except (OSError, ValueError):
            continue
        return f"Step {number} is whole: load it, or remove {committed[step].name} and start again to resume from there"
    return "No earlier checkpoint here is whole"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    # tensorstore ends its messages with the whole specification of the array in brackets.
    return re.sub(r" \[(tensorstore_spec|os_error_code)=.*", "", str(error), flags=re.DOTALL).replace("\n", " ")
