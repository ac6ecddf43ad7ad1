"""One array in one folder: zarr3, written and synced by tensorstore, read and checked here.

tensorstore can read as well, but copies every byte into new memory twice: a load took twice the processor time.
"""

import contextlib
import itertools
import math
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from crc32c import crc32c

from moviegen.nn.dtypes import numpy_dtype
from moviegen.storage import schema

# Larger arrays are cut into files of this size, so that the pieces of one can be checked and read at the same time. At
# 8 MB a save took twice as long: every piece is copied out of its array first, and every file synced by itself.
CHUNK_BYTES = 64 << 20
_DTYPES = {"bool", "bfloat16", "float16", "float32", "float64"}
_DTYPES |= {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
# What is read at once: still in the processor's cache when its checksum is taken. Linux cuts larger wishes short.
_PIECE = 1 << 20


class Lazy(NamedTuple):
    """An array that `numpy.asarray` reads when it is needed, anew every time.

    Of a checkpoint or a safetensors file `read(where)` reads the slice `where` alone.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[..., np.ndarray]

    def __array__(self, dtype: Any = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


class Part(NamedTuple):
    """A part of an array of `shape` that this process has: the slice `where`, one of equal ones of `length` along `axis`."""

    array: np.ndarray | Lazy
    shape: tuple[int, ...]
    where: tuple[slice, ...]
    axis: int
    length: int


def whole(array: np.ndarray | Lazy) -> Part:
    """Returns the part that is all of an array."""
    return Part(array, array.shape, tuple(slice(0, n) for n in array.shape), 0, array.shape[0] if array.shape else 0)


def create(folder: Path, part: Part) -> dict[str, Any]:
    """Creates the array that `part` belongs to, and returns its entry for a manifest, still without files."""
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
    """Writes a part of an array that `create` made, and returns the signatures of its files."""
    import tensorstore as ts

    if 0 in part.array.shape:
        return {}
    # Zeros are written like all else: a missing file would read back as zeros, and must be an error instead.
    store = ts.open({**_spec(folder, entry), "store_data_equal_to_fill_value": True}, open=True).result()
    store[part.where].write(np.asarray(part.array), can_reference_source_data_indefinitely=True).result()
    return {file: _signature(folder / file) for file, _ in _touched(part.where, entry["chunk"])}


def check(entry: Any, where: str) -> None:
    """Raises ValueError unless `entry`, which a manifest has at `where`, is of an array, with the files of its shape."""
    schema.check(entry, _ENTRY, where)
    shape, chunk = entry["shape"], entry["chunk"]
    size = math.prod(chunk) * numpy_dtype(entry["dtype"]).itemsize + 4
    fits = len(shape) == len(chunk) and 0 not in chunk and all(found == size for found, _ in entry["files"].values())
    if not fits or math.prod(-(-n // m) for n, m in zip(shape, chunk, strict=True)) != len(entry["files"]):
        raise ValueError(f"{where}: its files are not those of an array of shape {shape}")


def find(folder: Path, entry: dict[str, Any], where: tuple[slice, ...] | None = None) -> list[tuple[Path, tuple]]:
    """Returns the files that hold an array, or its slice `where`, each with its index; of them nothing is read.

    Raises OSError or ValueError unless all are there, files and no links, and have their sizes.
    """
    import tensorstore as ts

    _size(folder / "zarr.json")
    ts.open(_spec(folder, entry), open=True, read=True).result()  # the store's own description must be whole, too
    found = []
    for name, index in _touched(_whole(entry) if where is None else where, entry["chunk"]):
        found.append((folder / name, index))
        if _size(folder / name) != entry["files"].get(name, [None])[0]:
            raise ValueError(f"{name} is not the file that was saved")
    return found


def read(folder: Path, entry: dict[str, Any], where: tuple[slice, ...] | None = None) -> np.ndarray:
    """Reads an array, or its slice `where`; only the files that hold it are read.

    Raises as `find` does, and unless every byte of those is what `write` noted in `entry`.
    """
    found = find(folder, entry, where)  # before memory is asked for
    start, stop = np.array([(s.start, s.stop) for s in where or _whole(entry)], int).reshape(-1, 2).T
    array = _memory(stop - start, numpy_dtype(entry["dtype"]))
    for file, index in found:
        content = _content(file, entry["files"][file.name]).view(array.dtype).reshape(entry["chunk"])
        corner = np.multiply(index, content.shape)
        if content.shape == array.shape and all(corner == start):
            return content
        low, high = np.maximum(start, corner), np.minimum(stop, corner + content.shape)
        array[tuple(map(slice, low - start, high - start))] = content[tuple(map(slice, low - corner, high - corner))]
    return array


def folder_name(name: str) -> str:
    """Returns a name as a relative path that is safe on any disk: letters stay, `..` and empty segments are escaped."""
    return "/".join(
        quote(word, safe=" ()[],=+@") if word.strip(".") else word.replace(".", "%2E") or "%00"
        for word in name.split("/")
    )


def cast(array: np.ndarray | Lazy, dtype: str | None) -> np.ndarray | Lazy:
    """Casts a floating-point array to `dtype` (None: as it is); arrays of whole numbers stay."""
    if isinstance(array, Lazy):
        return Lazy(array.shape, cast_dtype(array.dtype, dtype), lambda: cast(array.read(), dtype))
    return array.astype(cast_dtype(array.dtype, dtype), copy=False)


def cast_dtype(own: np.dtype, dtype: str | None) -> np.dtype:
    """Returns the dtype that `cast` gives an array of dtype `own`."""
    floating = own.kind == "f" or own == numpy_dtype("bfloat16")
    return own if dtype is None or not floating else numpy_dtype(dtype)


def _size(file: Path) -> int:
    """Returns a file's size. ValueError where it is a link, which may lead anywhere, or a pipe, which may hang."""
    found = os.lstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{file.name} is not the file that was saved")
    return found.st_size


def _signed(value: Any) -> bool:
    """the size and the checksum of a file"""
    return isinstance(value, list) and list(map(type, value)) == [int, str]


def _known(value: Any) -> bool:
    """the name of a dtype"""
    return isinstance(value, str) and value in _DTYPES


_ENTRY = {"shape": schema.shape, "dtype": _known, "chunk": schema.shape, "files": {str: _signed}}


def _whole(entry: dict[str, Any]) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in entry["shape"])


def _spec(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {
            "shape": entry["shape"],
            "data_type": entry["dtype"],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": entry["chunk"]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            # No compression: weights do not shrink. Other readers verify the checksum by themselves.
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        },
    }


def _touched(where: tuple[slice, ...], chunk: list[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the files and indices of the chunks that hold a slice of an array."""
    ends = [-(-s.stop // n) if s.stop > s.start else 0 for s, n in zip(where, chunk, strict=True)]
    for index in itertools.product(*(range(s.start // n, end) for s, n, end in zip(where, chunk, ends, strict=True))):
        yield ".".join(["c", *map(str, index)]), index


def _signature(file: Path) -> list:
    """Returns [size in bytes, crc32c in hex]; the codec writes a chunk's checksum into its last four bytes."""
    with open(file, "rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(max(0, size - 4))
        return [size, f.read(4)[::-1].hex()]


def _content(file: Path, signature: list) -> np.ndarray:
    """Returns the bytes of a chunk. ValueError unless its file has this signature and the checksum is right."""
    if _signature(file) == signature:
        content, checksum = _memory([signature[0] - 4], np.dtype(np.uint8)), 0
        with open(file, "rb", buffering=0) as f:
            if hasattr(os, "posix_fadvise"):
                for at in range(0, content.size, _PIECE):  # the disk fetches all of the file meanwhile
                    os.posix_fadvise(f.fileno(), at, _PIECE, os.POSIX_FADV_WILLNEED)
            for at in range(0, content.size, _PIECE):
                piece = content[at : at + _PIECE]
                f.readinto(piece)
                checksum = crc32c(piece, checksum)
        if f"{checksum:08x}" == signature[1]:
            return content
    raise ValueError(f"{file.name} is not the file that was saved")


def _memory(shape: Sequence[int] | np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns a new array whose memory the system gets back with it; what malloc gives a thread the process keeps."""
    size = int(np.prod(shape)) * dtype.itemsize
    pages = mmap.mmap(-1, max(1, size), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # not every system has them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8, size).view(dtype).reshape(shape)
