"""Trees of arrays in one folder; several arrays are read or written at a time, and only this process's parts."""

import functools
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.nn import dtypes
from moviegen.storage import arraystore, files

# The disk is what saturates; this also bounds the host copies of an accelerator's arrays that are alive at once.
WORKERS = 8

Tree = Mapping[str, Any]


def create(folder: Path, trees: Mapping[str, Tree]) -> dict[str, dict]:
    """Creates every array and returns {tree: {name: entry for a manifest}}, still without files."""

    def one(tree, name, value):
        place = folder / arraystore.folder_name(tree) / arraystore.folder_name(name)
        return arraystore.create(place, _part(f"{tree}/{name}", value))

    with ThreadPoolExecutor(WORKERS) as pool:
        pending = {t: {n: pool.submit(one, t, n, v) for n, v in values.items()} for t, values in trees.items()}
        return {tree: {n: future.result() for n, future in entries.items()} for tree, entries in pending.items()}


def write(folder: Path, trees: Mapping[str, Tree], entries: Mapping[str, dict]) -> list[tuple[str, str, dict]]:
    """Writes the parts that this rank has and returns [(tree, name, signatures of its files)]."""
    written: list[tuple[str, str, dict]] = []
    pending: deque = deque()

    def finish():
        tree, name, future = pending.popleft()
        written.append((tree, name, future.result()))

    with ThreadPoolExecutor(WORKERS) as pool:
        for tree, values in trees.items():
            for name, value in values.items():
                part = _part(f"{tree}/{name}", value)
                place = folder / arraystore.folder_name(tree) / arraystore.folder_name(name)
                pending.append((tree, name, pool.submit(arraystore.write, place, entries[tree][name], part)))
                if len(pending) > WORKERS:
                    finish()
        while pending:
            finish()
    return written


def _part(name: str, value: Any) -> arraystore.Part:
    return value if isinstance(value, arraystore.Part) else arraystore.whole(dtypes.to_numpy(name, value))


def read(
    path: Path, trees: Mapping[str, Mapping[str, dict]], dtype: str | None = None, where: Any = None
) -> dict[str, dict]:
    """Reads {tree: {name: array}}, of each array the slice `where(shape)` (None: all). ValueError names a damaged one."""

    def one(key: tuple[str, str]) -> np.ndarray:
        tree, name = key
        own = where(tuple(trees[tree][name]["shape"])) if where else None
        return arraystore.cast(_read(path, tree, name, trees[tree][name], own), dtype)

    keys = [(tree, name) for tree, entries in trees.items() for name in entries]
    with ThreadPoolExecutor(WORKERS) as pool:
        arrays = dict(zip(keys, pool.map(one, keys), strict=True))
    return {tree: {name: arrays[tree, name] for name in entries} for tree, entries in trees.items()}


def lazy(path: Path, trees: Mapping[str, Mapping[str, dict]]) -> dict[str, dict[str, arraystore.Lazy]]:
    """Returns {tree: {name: array that is read when it is needed}}."""

    def one(tree: str, name: str, entry: dict) -> arraystore.Lazy:
        dtype = dtypes.numpy_dtype(entry["dtype"])
        return arraystore.Lazy(tuple(entry["shape"]), dtype, functools.partial(_read, path, tree, name, entry))

    return {tree: {n: one(tree, n, entry) for n, entry in entries.items()} for tree, entries in trees.items()}


def _read(path: Path, tree: str, name: str, entry: dict, where: tuple[slice, ...] | None = None) -> np.ndarray:
    try:
        return arraystore.read(path / arraystore.folder_name(tree) / arraystore.folder_name(name), entry, where)
    except (OSError, ValueError) as error:
        raise ValueError(f"array {tree}/{name} is damaged ({files.reason(error)})") from error
