"""Trees of arrays in one folder; several arrays are read or written at a time, and only this process's parts."""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.errors import DataError
from moviegen.nn.dtypes import numpy_dtype, to_numpy
from moviegen.storage import arraystore, files

# The disk is what saturates; this also bounds the host copies of an accelerator's arrays that are alive at once.
WORKERS = 8

Tree = Mapping[str, Any]
Dtype = str | Mapping[str, str] | None


def create(folder: Path, trees: Mapping[str, Tree]) -> dict[str, dict]:
    """Creates every array and returns {tree: {name: entry for a manifest}}, still without files."""
    return _each(trees, lambda tree, name, value: arraystore.create(*_part(folder, f"{tree}/{name}", value)))


def write(folder: Path, trees: Mapping[str, Tree], entries: Mapping[str, dict]) -> list[tuple[str, str, dict]]:
    """Writes the parts that this rank has and returns [(tree, name, signatures of its files)].

    ValueError names an array with a number that is not finite.
    """

    def one(tree: str, name: str, value: Any) -> dict:
        place, part = _part(folder, f"{tree}/{name}", value)
        part = part._replace(array=np.asarray(part.array))
        if not _is_finite(part.array):
            raise ValueError(f"array {tree}/{name} has numbers that are not finite")
        return arraystore.write(place, entries[tree][name], part)

    return [(tree, name, written) for tree, found in _each(trees, one).items() for name, written in found.items()]


def read(
    path: Path, trees: Mapping[str, Mapping[str, dict]], dtype: Dtype = None, where: Any = None
) -> dict[str, dict]:
    """Reads {tree: {name: array}}, of each array the slice `where(shape)` (None: all). ValueError names a damaged one.

    Floating-point arrays are cast to `dtype`, one for all or those that it has by name, each as soon as it is read.
    """

    def one(tree: str, name: str, entry: dict) -> np.ndarray:
        own = where(tuple(entry["shape"])) if where else None
        kind = dtype.get(name) if isinstance(dtype, Mapping) else dtype
        return arraystore.cast(_read(path, f"{tree}/{name}", entry, own), kind)

    return _each(trees, one)


def find(path: Path, trees: Mapping[str, Mapping[str, dict]]) -> None:
    """Raises ValueError, naming an array, unless all files of the arrays are there and have their sizes; reads none."""
    _each(trees, lambda tree, name, entry: _at(path, f"{tree}/{name}", lambda folder: arraystore.find(folder, entry)))


def lazy(path: Path, trees: Mapping[str, Mapping[str, dict]]) -> dict[str, dict[str, arraystore.Lazy]]:
    """Returns {tree: {name: array that is read when it is needed}}."""

    def one(name: str, entry: dict) -> arraystore.Lazy:
        dtype = numpy_dtype(entry["dtype"])
        return arraystore.Lazy(tuple(entry["shape"]), dtype, functools.partial(_read, path, name, entry))

    return {tree: {n: one(f"{tree}/{n}", entry) for n, entry in entries.items()} for tree, entries in trees.items()}


def _each(trees: Mapping[str, Tree], work: Callable[[str, str, Any], Any]) -> dict[str, dict[str, Any]]:
    """Returns {tree: {name: work(tree, name, value)}}, several at a time."""
    keys = [(tree, name) for tree, values in trees.items() for name in values]
    with ThreadPoolExecutor(WORKERS) as pool:
        done = dict(zip(keys, pool.map(lambda key: work(*key, trees[key[0]][key[1]]), keys), strict=True))
    return {tree: {name: done[tree, name] for name in values} for tree, values in trees.items()}


def _part(folder: Path, name: str, value: Any) -> tuple[Path, arraystore.Part]:
    part = value if isinstance(value, arraystore.Part) else arraystore.whole(to_numpy(name, value))
    return folder / arraystore.folder_name(name), part


def _is_finite(array: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())  # the sum needs no memory


def _read(path: Path, name: str, entry: dict, where: tuple[slice, ...] | None = None) -> np.ndarray:
    return _at(path, name, lambda folder: arraystore.read(folder, entry, where))


def _at(path: Path, name: str, work: Callable[[Path], Any]) -> Any:
    try:
        return work(files.inside(path, arraystore.folder_name(name)))
    except (OSError, ValueError, DataError) as error:
        raise ValueError(f"array {name} is damaged ({files.reason(error)})") from error
