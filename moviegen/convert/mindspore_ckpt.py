"""Reads MindSpore's `.ckpt` files: protocol buffers, so nothing in one is executed.

`mindspore.load_checkpoint` (2.10) trusts the shape that a file states: with more content it writes beyond the tensor's
memory, with less it returns whatever lay behind. It also holds the file in memory several times, up to 2 GB. The format is
    Checkpoint { repeated Value value = 1; }   Value { string tag = 1; Tensor tensor = 2; }
    Tensor { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }
A parameter above 512 MB is several values of the same tag. `crc_num` and ten bytes may follow.
"""

import contextlib
import functools
import math
import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moviegen.nn.dtypes import numpy_dtype
from moviegen.storage import schema
from moviegen.storage.arraystore import Lazy
from moviegen.storage.files import refused, regular

_DTYPES = {"BFloat16": "bfloat16", "Bool": "bool"}
_DTYPES |= {f"{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)}
_DTYPES |= {f"Float{bits}": f"float{bits}" for bits in (16, 32, 64)}
_CRC = b"crc_num"


def lazy(path: str | Path) -> dict[str, Lazy]:
    """Returns the arrays by name, each read when it is needed. Raises DataError where the file is damaged or another."""
    path = Path(path)
    with _reading(path), open(regular(path), "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _arrays(path, data)


def _arrays(path: Path, data: mmap.mmap) -> dict[str, Lazy]:
    end = len(data)
    if data[end - len(_CRC) - 10 : end - 10] == _CRC:
        end -= len(_CRC) + 10
        if zlib.crc32(memoryview(data)[:end]) != int.from_bytes(data[end + len(_CRC) :], "big"):
            raise ValueError("its checksum does not match")
    found: dict[str, tuple[tuple[int, ...], np.dtype, list[range]]] = {}
    for number, value in _fields(data, range(end)):
        if number != 1:
            raise ValueError(f"field {number} in a checkpoint")
        name, shape, kind, content = _value(data, value)
        if kind == "str":  # a note that training left
            continue
        if kind not in _DTYPES:
            raise ValueError(f"{name} is {kind}, expected one of {', '.join(_DTYPES)}")
        dtype = numpy_dtype(_DTYPES[kind])
        *known, pieces = found.setdefault(name, (shape, dtype, []))
        if known != [shape, dtype]:
            raise ValueError(f"{name} is there twice, and differs")
        pieces.append(content)
    for name, (shape, dtype, pieces) in found.items():
        size, expected = sum(map(len, pieces)), math.prod(shape) * dtype.itemsize
        if size != expected:
            raise ValueError(f"{name} {shape} has {size} bytes, expected {expected}")
        schema.check(shape, schema.shape, name)  # of an empty one, no bytes tell
    if not found:
        raise ValueError("it holds no parameters")
    return {name: Lazy(*kind, functools.partial(_load, path, pieces, *kind)) for name, (*kind, pieces) in found.items()}


def _value(data: mmap.mmap, where: int | range) -> tuple[str, tuple[int, ...], str, range]:
    """Name, shape, type and place of a parameter's numbers, or of a piece of them."""
    value = dict(_fields(data, where))
    name = _text(data, value.get(1, 0))
    if value.keys() - {1, 2}:
        raise ValueError(f"{name} is no plain tensor (field {max(value)})")
    dims, tensor = [], {}
    for number, content in _fields(data, value.get(2, 0)):
        if number == 1:
            dims += [content] if isinstance(content, int) else _numbers(data, content)
        tensor[number] = content
    kind, content = _text(data, tensor.get(2, 0)), tensor.get(3, range(0))
    if not name or not kind or isinstance(content, int):
        raise ValueError("a value without a name, a type or content")
    if len(dims) > 32:
        raise ValueError(f"{name} has {len(dims)} axes")
    scalar = dims == [0] and len(content) > 0  # so MindSpore writes one
    return name, () if scalar else tuple(dims), kind, content


def _fields(data: mmap.mmap, where: int | range) -> Iterator[tuple[int, int | range]]:
    """(number, value) of every field of a message; a value is a whole number or the place of bytes."""
    if isinstance(where, int):
        raise ValueError("a number in place of a message")
    at = where.start
    while at < where.stop:
        key, at = _number(data, at)
        number, wire = key >> 3, key & 7
        if wire not in (0, 2):
            raise ValueError(f"wire type {wire}")
        value, at = _number(data, at)
        if wire == 2:
            value, at = range(at, at + value), at + value
        if at > where.stop:
            raise ValueError("cut short")
        yield number, value


def _numbers(data: mmap.mmap, where: range) -> Iterator[int]:
    at = where.start
    while at < where.stop:
        number, at = _number(data, at)
        yield number


def _text(data: mmap.mmap, where: int | range) -> str:
    return "" if isinstance(where, int) else data[where.start : where.stop].decode()


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


def _load(path: Path, pieces: list[range], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    with _reading(path), open(path, "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            content = b"".join(data[piece.start : piece.stop] for piece in pieces)
        return np.frombuffer(content, dtype).reshape(shape)


def _reading(path: Path) -> contextlib.AbstractContextManager:
    return refused(f"{path}: not a readable MindSpore checkpoint", OSError, ValueError, IndexError)
