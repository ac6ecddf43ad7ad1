"""Reads MindSpore's `.ckpt` files: protocol buffers, so nothing in one is executed.

`mindspore.load_checkpoint` (2.10) does not unpickle either, but it trusts the shape that a file states: with more content
it writes beyond the tensor's memory, with less it returns whatever lay behind. It also takes the last of two parameters
of one name, needs the file in memory several times, and protocol buffers hold no message above 2 GB. The format is
    Checkpoint { repeated Value value = 1; }   Value { string tag = 1; Tensor tensor = 2; }
    Tensor { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }
A parameter above 512 MB is several values of the same tag. `crc_num` and ten bytes may follow.
"""

import functools
import math
import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moviegen.errors import DataError
from moviegen.nn.dtypes import numpy_dtype
from moviegen.storage.arraystore import Lazy

_DTYPES = {"BFloat16": "bfloat16", "Bool": "bool"}
_DTYPES |= {f"{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)}
_DTYPES |= {f"Float{bits}": f"float{bits}" for bits in (16, 32, 64)}
_CRC = b"crc_num"


def lazy(path: str | Path) -> dict[str, Lazy]:
    """The arrays by name, each read when it is needed. DataError where the file is damaged or no such file."""
    path = Path(path)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _arrays(path, data)
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path}: not a readable MindSpore checkpoint ({error})") from error


def _arrays(path: Path, data: mmap.mmap) -> dict[str, Lazy]:
    end = len(data)
    if data[end - len(_CRC) - 10 : end - 10] == _CRC:
        end -= len(_CRC) + 10
        if zlib.crc32(memoryview(data)[:end]) != int.from_bytes(data[end + len(_CRC) :], "big"):
            raise ValueError("its checksum does not match")
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, np.dtype] = {}
    pieces: dict[str, list[tuple[int, int]]] = {}
    for number, start, stop in _fields(data, 0, end):
        if number != 1:
            raise ValueError(f"field {number} in a checkpoint")
        name, dims, kind, content = _value(data, start, stop)
        if kind == "str":  # a note that training left
            continue
        if kind not in _DTYPES:
            raise ValueError(f"{name} is {kind}, expected one of {', '.join(_DTYPES)}")
        if name in shapes and (shapes[name], dtypes[name]) != (dims, numpy_dtype(_DTYPES[kind])):
            raise ValueError(f"{name} is there twice, and differs")
        shapes[name], dtypes[name] = dims, numpy_dtype(_DTYPES[kind])
        pieces.setdefault(name, []).append(content)
    found = {}
    for name, shape in shapes.items():
        size = sum(stop - start for start, stop in pieces[name])
        if size != math.prod(shape) * dtypes[name].itemsize:
            raise ValueError(f"{name} {shape} has {size} bytes, expected {math.prod(shape) * dtypes[name].itemsize}")
        load = functools.partial(_load, path, pieces[name], shape, dtypes[name])
        found[name] = Lazy(shape, dtypes[name], load)
    if not found:
        raise ValueError("it holds no parameters")
    return found


def _value(data: mmap.mmap, start: int, stop: int) -> tuple[str, tuple[int, ...], str, tuple[int, int]]:
    name, kind, dims, content = "", "", [], (0, 0)
    for number, at, until in _fields(data, start, stop):
        if number == 1:
            name = data[at:until].decode()
        elif number == 2:
            for part, first, last in _fields(data, at, until):
                if part == 1 and last == first:  # a number of its own, which _fields leaves in place of a range
                    dims.append(first)
                elif part == 1:
                    while first < last:
                        size, first = _number(data, first)
                        dims.append(size)
                elif part == 2:
                    kind = data[first:last].decode()
                elif part == 3:
                    content = (first, last)
        else:
            raise ValueError(f"{name or 'a parameter'} is no plain tensor (field {number})")
    if not name or not kind:
        raise ValueError("a value without a name or a type")
    if len(dims) > 32:
        raise ValueError(f"{name} has {len(dims)} axes")
    scalar = dims == [0] and content[0] < content[1]  # so MindSpore writes one
    return name, () if scalar else tuple(dims), kind, content


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, stop) of every field of a message; of a plain number (number, value, value)."""
    while start < stop:
        key, start = _number(data, start)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, start = _number(data, start)
            yield number, value, value
        elif wire == 2:
            size, start = _number(data, start)
            if start + size > stop:
                raise ValueError("cut short")
            yield number, start, start + size
            start += size
        else:
            raise ValueError(f"wire type {wire}")
    if start != stop:
        raise ValueError("cut short")


def _number(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A varint and where it ends."""
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _load(path: Path, pieces: list[tuple[int, int]], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    with open(path, "rb") as file:
        parts = []
        for start, stop in pieces:
            file.seek(start)
            parts.append(file.read(stop - start))
    return np.frombuffer(b"".join(parts), dtype).reshape(shape)
