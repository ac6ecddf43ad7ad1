"""Trees of arrays in safetensors files, one or several with Hugging Face's index, read and written an array at a time.

Such a file is a length, a JSON header and the arrays; it is written here, as the library's writer wants all at once.
"""

import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from moviegen.errors import DataError
from moviegen.nn import dtypes
from moviegen.storage import arraystore, schema
from moviegen.storage.arraystore import Lazy
from moviegen.storage.files import aside, inside, refused, regular, sync

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
# What an export consists of, and the temporary files that a killed one left.
_OURS = r"\.?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?(\.[\da-f-]+\.tmp)?"
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}
_NAMES |= {f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_DTYPES = {short: name for name, short in _NAMES.items()}

Arrays = Mapping[str, Any]


def write(
    arrays: Arrays, path: str | Path, dtype: str | None = "float32", metadata: Mapping[str, Any] | None = None
) -> Path:
    """Writes tensors, arrays or `Lazy` arrays by name to one file, whole or not at all, floating-point ones in `dtype`."""
    path = Path(path)
    with _writing(path), aside(path, durable=True) as temporary:
        _write_file(temporary, _readable(arrays), dtype, metadata or {})
    return path


def write_shards(
    arrays: Arrays, folder: str | Path, dtype: str | None, shard_bytes: int, metadata: Mapping[str, Any]
) -> list[Path]:
    """Writes arrays as `write` does, to files of at most `shard_bytes` (or of one larger array), and returns the files.

    They have Hugging Face's names and, where they are several, its index. They take the place of an earlier export when
    all are written: killed before, the earlier one is whole; killed in between, there is no index.
    """
    folder, arrays = Path(folder), _readable(arrays)
    shards = _shards(arrays, dtype, shard_bytes)
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)] if count > 1 else [WHOLE]
    files = [folder / name for name in names]
    with _writing(folder):
        with contextlib.ExitStack() as renames:  # all files at its end, when all are written
            for shard, file in zip(shards, files, strict=True):
                _write_file(renames.enter_context(aside(file, durable=True)), shard, dtype, metadata)
            (folder / INDEX).unlink(missing_ok=True)
        if count > 1:
            total = sum(_bytes(array, dtype) for array in arrays.values())
            weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            with aside(folder / INDEX, durable=True) as temporary:
                temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
            names.append(INDEX)
        for other in folder.iterdir():
            if re.fullmatch(_OURS, other.name) and other.name not in names:
                other.unlink()
        sync(folder)
    return files


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file, or of a folder that `write_shards` filled, by name."""
    return {name: np.asarray(array) for name, array in lazy(path)[0].items()}


def lazy(path: str | Path) -> tuple[dict[str, Lazy], dict[str, Any]]:
    """Returns the arrays by name, each read when it is needed, and the metadata ({} in a file of others); or DataError."""
    found, metadata = {}, {}
    for file, names in _places(Path(path)).items():
        with _reading(file), safe_open(regular(file), "np") as f:
            held = set(f.keys())
            if missing := set(names) - held:
                raise DataError(f"{file}: has no array {min(missing)}, which {INDEX} says it holds")
            metadata = json.loads((f.metadata() or {}).get("moviegen", "{}"))
            schema.check(metadata, dict, "its metadata")
            for name in sorted(names or held):
                piece = f.get_slice(name)
                if piece.get_dtype() not in _DTYPES:
                    raise DataError(f"{file}: {name} is {piece.get_dtype()}, expected one of {', '.join(_DTYPES)}")
                dtype = dtypes.numpy_dtype(_DTYPES[piece.get_dtype()])
                schema.check(piece.get_shape(), schema.shape, name)
                found[name] = Lazy(tuple(piece.get_shape()), dtype, functools.partial(_read_one, file, name))
    return found, metadata


def read_rows(file: str | Path, name: str, rows: slice = slice(None)) -> np.ndarray:
    """Reads some rows of one array of a file, which stays open for the next of many small reads at random.

    Other threads go on meanwhile, which they would not while the library waits for its mapped memory.
    """
    with _reading(file):
        kept, places = _kept_open(str(file), os.stat(file).st_mtime_ns)
        if name not in places:
            raise ValueError(f"it has no array {name}")
        dtype, shape, start = places[name]
        first, last, _ = rows.indices(shape[0])
        array = np.empty((max(0, last - first), *shape[1:]), dtype)
        left = memoryview(array.reshape(-1).view(np.uint8))
        start += first * math.prod(shape[1:]) * dtype.itemsize
        while len(left):
            count = os.preadv(kept.fileno(), [left], start)
            if not count:
                raise ValueError(f"it ends before the end of {name}")
            left, start = left[count:], start + count
        return array


@functools.lru_cache(maxsize=64)
def _kept_open(file: str, changed: int) -> tuple[Any, dict[str, tuple[np.dtype, list[int], int]]]:
    """An open file, and of each of its arrays dtype, shape and where it begins."""
    with safe_open(regular(file), "np"):  # the library checks the header
        kept = open(file, "rb", buffering=0)
    length = int.from_bytes(kept.read(8), "little")
    header = json.loads(kept.read(length))
    header.pop("__metadata__", None)
    places = {
        name: (dtypes.numpy_dtype(_DTYPES[of["dtype"]]), of["shape"], 8 + length + of["data_offsets"][0])
        for name, of in header.items()
        if of["dtype"] in _DTYPES
    }
    return kept, places


def _readable(arrays: Arrays) -> Arrays:
    """Returns arrays with a shape and a numpy dtype, without reading those that are `Lazy`."""
    return {name: a if isinstance(a, Lazy) else dtypes.to_numpy(name, a) for name, a in arrays.items()}


def _shards(arrays: Arrays, dtype: str | None, shard_bytes: int) -> list[Arrays]:
    shards, filled = [{}], 0
    for name, array in arrays.items():
        filled += _bytes(array, dtype)
        if shards[-1] and filled > shard_bytes:
            shards.append({})
            filled = _bytes(array, dtype)
        shards[-1][name] = array
    return shards


def _bytes(array: Any, dtype: str | None) -> int:
    return math.prod(array.shape) * arraystore.cast_dtype(array.dtype, dtype).itemsize


def _write_file(path: Path, arrays: Arrays, dtype: str | None, metadata: Mapping[str, Any]) -> None:
    header, end = {"__metadata__": {"format": "np", "moviegen": json.dumps(metadata)}}, 0
    # Wide dtypes first: every array then lies at a multiple of its own width.
    arrays = dict(sorted(arrays.items(), key=lambda item: -arraystore.cast_dtype(item[1].dtype, dtype).itemsize))
    for name, array in arrays.items():
        start, end = end, end + _bytes(array, dtype)
        kind = _NAMES[arraystore.cast_dtype(array.dtype, dtype).name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            array = np.asarray(arraystore.cast(np.asarray(array), dtype), order="C")
            f.write(array.reshape(-1).view(np.uint8))  # bfloat16 by itself is no buffer


def _writing(path: Path) -> contextlib.AbstractContextManager:
    return refused(f"{path}: cannot write the safetensors file", OSError)


def _reading(file: str | Path) -> contextlib.AbstractContextManager:
    return refused(f"{file}: not a readable safetensors file", OSError, ValueError, SafetensorError, RecursionError)


def indexed(index: Path) -> dict[Path, list[str]]:
    """Returns the arrays in each file by an index in Hugging Face's layout. DataError where a file leaves its folder."""
    with refused(f"{index}: not an index of files of weights", OSError, ValueError, RecursionError):
        content = json.loads(index.read_text(encoding="utf-8"))
        schema.check(content, {"weight_map": {str: str}}, "it")
    names: dict[str, list[str]] = {}
    for name, file in content["weight_map"].items():
        names.setdefault(file, []).append(name)
    return {inside(index.parent, file): held for file, held in names.items()}


def is_export(path: str | Path) -> bool:
    """Whether a path is of a safetensors file, or of a folder that `write_shards` filled, whole or in part."""
    path = Path(path)
    return path.suffix == ".safetensors" or any(re.fullmatch(_OURS, file.name) for file in path.glob("model*"))


def _places(path: Path) -> dict[Path, list[str]]:
    """Returns the names to take from each file; an empty list stands for all."""
    if not path.is_dir():
        return {path: []}
    if (path / INDEX).is_file():
        return indexed(path / INDEX)
    if (path / WHOLE).is_file():
        return {path / WHOLE: []}
    raise DataError(f"{path}: has no {INDEX} and no {WHOLE}; where an export was cut short, run it again")


def _read_one(file: Path, name: str, where: tuple[slice, ...] | None = None) -> np.ndarray:
    with _reading(file), safe_open(file, "np") as f:
        return dtypes.to_numpy(name, f.get_slice(name)[where] if where else f.get_tensor(name))
