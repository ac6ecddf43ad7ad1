"""One array in one folder of the disk: zarr3 through tensorstore, synced when written, checked when read."""

import itertools
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

# Larger arrays are cut into files of this size, so that the pieces of one can be checked and read at the same time. At
# 8 MB a save took twice as long: every piece is copied out of its array first, and every file synced by itself.
CHUNK_BYTES = 64 << 20
# Files are mapped when read: one copy of every byte less, and half the time that the system takes for the load.
_MAPPED = {"context": {"file_io_mode": {"mode": "memmap"}}}
_AHEAD = 1 << 20  # the disk fetches all of a file meanwhile, asked for in pieces: Linux cuts a larger wish short


class Lazy(NamedTuple):
    """An array that `numpy.asarray` reads when it is needed, anew every time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


class Part(NamedTuple):
    """What this process has of an array of `shape`: the slice `where`, one of equal ones of `length` along `axis`."""

    array: np.ndarray | Lazy
    shape: tuple[int, ...]
    where: tuple[slice, ...]
    axis: int
    length: int


def whole(array: np.ndarray | Lazy) -> Part:
    """An array that this process has all of."""
    return Part(array, array.shape, tuple(slice(0, n) for n in array.shape), 0, array.shape[0] if array.shape else 0)


def create(folder: Path, part: Part) -> dict[str, Any]:
    """Prepare the array that `part` is of in `folder`; returns what a manifest says of it, still without its files."""
    import tensorstore as ts

    chunk = [max(1, n) for n in part.shape]
    if chunk:
        chunk[part.axis] = max(1, part.length)
        # No file may lie in two parts: an array that is in parts is cut further along another axis.
        along = int(part.axis == 0) if part.length < part.shape[part.axis] else 0
        if along < len(chunk):
            row = math.prod(chunk) // chunk[along] * part.array.dtype.itemsize
            chunk[along] = min(chunk[along], max(1, CHUNK_BYTES // row))
    entry = {"shape": list(part.shape), "dtype": part.array.dtype.name, "chunk": chunk, "files": {}}
    ts.open(_spec(folder, entry), create=True).result()
    return entry


def write(folder: Path, entry: dict[str, Any], part: Part) -> dict[str, list]:
    """Store a part in the array that `create` prepared and return the signatures of its files."""
    import tensorstore as ts

    if 0 in part.array.shape:
        return {}
    # Zeros are written like all else: a missing file would read back as zeros, and must be an error instead.
    store = ts.open({**_spec(folder, entry), "store_data_equal_to_fill_value": True}, open=True).result()
    store[part.where].write(np.asarray(part.array), can_reference_source_data_indefinitely=True).result()
    return {file: _signature(folder / file) for file in _files(part.where, entry["chunk"])}


def read(folder: Path, entry: dict[str, Any], where: tuple[slice, ...] | None = None) -> np.ndarray:
    """Read an array, or its slice `where`, back: only the files that it lies in.

    Raises OSError or ValueError unless every byte of those is what `write` noted in `entry`.
    """
    import tensorstore as ts

    where = tuple(slice(0, n) for n in entry["shape"]) if where is None else where
    # tensorstore checks that the content fits its own checksum; here, that it is the content that was saved.
    for file in _files(where, entry["chunk"]):
        if _signature(folder / file) != entry["files"].get(file):
            raise ValueError(f"{file} is not the file that was saved")
    store = ts.open(_spec(folder, entry) | _MAPPED, open=True, read=True).result()
    # Into memory of numpy's, which asks for huge pages: getting it in small ones took as long as all else together.
    array = np.empty([s.stop - s.start for s in where], numpy_dtype(entry["dtype"]))
    ts.array(array)[...].write(store[where].translate_to[0] if where else store).result()
    return array


def folder_name(name: str) -> str:
    """A path whose parts keep their letters and are safe as folder names; `..` and empty parts cannot climb out."""
    return "/".join(_part(part) for part in name.split("/"))


def to_numpy(name: str, value: Any) -> np.ndarray:
    """A MindSpore tensor, numpy array or number as a numpy array. TypeError for anything else, by its `name`."""
    import ml_dtypes

    array = np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)
    if array.dtype.name == "bfloat16":
        # MindSpore brings a numpy dtype of its own by that name, which converts neither to nor from the common one.
        array = array.view(ml_dtypes.bfloat16)
    if array.dtype.hasobject or array.dtype.kind in "USM":
        raise TypeError(f"array {name} is a {type(value).__name__}: expected numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def cast(array: np.ndarray | Lazy, dtype: str | None) -> np.ndarray | Lazy:
    """Floating-point arrays in `dtype` (None: as they are), whole numbers untouched."""
    if isinstance(array, Lazy):
        return Lazy(array.shape, cast_dtype(array.dtype, dtype), lambda: cast(array.read(), dtype))
    return array.astype(cast_dtype(array.dtype, dtype), copy=False)


def cast_dtype(own: np.dtype, dtype: str | None) -> np.dtype:
    """What `cast` makes of an array of dtype `own`."""
    floating = own.kind == "f" or own == numpy_dtype("bfloat16")
    return own if dtype is None or not floating else numpy_dtype(dtype)


def numpy_dtype(name: str) -> np.dtype:
    """The dtype of this name, bfloat16 among them."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: Exception) -> str:
    """What went wrong on one line, for a message."""
    # tensorstore ends its messages with the whole specification of the array in brackets.
    return re.sub(r" \[(tensorstore_spec|os_error_code)=.*", "", str(error), flags=re.DOTALL).replace("\n", " ")


def _spec(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {
            "shape": entry["shape"],
            "data_type": entry["dtype"],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": entry["chunk"]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            # No compression: weights do not shrink. tensorstore verifies the checksum with every chunk that it reads.
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        },
    }


def _files(where: tuple[slice, ...], chunk: list[int]) -> list[str]:
    """The files that hold a slice of an array."""
    if not where:
        return ["c"]
    touched = [
        range(s.start // n, -(-s.stop // n)) if s.stop > s.start else range(0)
        for s, n in zip(where, chunk, strict=True)
    ]
    return ["c." + ".".join(map(str, index)) for index in itertools.product(*touched)]


def _signature(file: Path) -> list:
    """[size in bytes, crc32c in hex]: the codec put the checksum of a chunk into its last four bytes."""
    with open(file, "rb") as f:
        size = f.seek(0, os.SEEK_END)
        if hasattr(os, "posix_fadvise"):
            for at in range(0, size, _AHEAD):
                os.posix_fadvise(f.fileno(), at, _AHEAD, os.POSIX_FADV_WILLNEED)
        f.seek(max(0, size - 4))
        return [size, f.read(4)[::-1].hex()]


def _part(part: str) -> str:
    if part.strip(".") == "":
        return part.replace(".", "%2E") or "%00"
    return quote(part, safe=" ()[],=+@")
