"""Tensors of a torch `.bin` file without running anything in it.

Such a file is a zip of raw storages and of a pickle, a program for a machine with a stack that says which tensor is where
in them. Python's own machine calls whatever that program names. This one is a reader: it knows the few instructions and
names that a plain dictionary of tensors is made of, builds descriptions of tensors, and refuses everything else.
"""

import functools
import json
import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import arraystore
from moviegen.arraystore import Lazy
from moviegen.errors import DataError

INDEX, WHOLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
_STORAGES = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64", "Bool": "bool"}
_STORAGES |= {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"}
_STORAGES = {f"torch {kind}Storage": dtype for kind, dtype in _STORAGES.items()}
_ORDERED, _TENSOR, _PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_PUSH = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Name(NamedTuple):
    """A function or class that the pickle names: never looked up, only compared."""

    name: str


class _Storage(NamedTuple):
    dtype: str
    key: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def lazy(path: str | Path) -> dict[str, Lazy]:
    """The tensors by name of a file, or of a folder with an index, each read when it is needed.

    DataError where a file is damaged, of torch's format before 1.6, or holds anything but tensors.
    """
    path = Path(path)
    if path.is_file():
        return _file(path)
    if not (path / INDEX).is_file():
        return _file(path / WHOLE)
    try:
        places = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = {name: path / Path(file).name for name, file in places.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{path / INDEX}: not an index of torch files ({error!r})") from error
    found = {file: _file(file) for file in set(files.values())}
    for name, file in files.items():
        if name not in found[file]:
            raise DataError(f"{file}: has no tensor {name}, which {INDEX} says it holds")
    return {name: found[file][name] for name, file in files.items()}


def _file(path: Path) -> dict[str, Lazy]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            inner = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(inner) != 1:
                raise DataError(f"{path}: not a torch file, it has {len(inner)} data.pkl")
            root = inner[0].removesuffix("data.pkl")
            if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
                raise DataError(f"{path}: its numbers are big-endian, which this reader does not know")
            tensors = _interpret(archive.read(inner[0]))
            sizes = {name: archive.getinfo(name).file_size for name in names}
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as tensors and nothing else ({error})") from error
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path}: not a zip file ({error}): damaged, or of torch before 1.6, to be saved again by a newer one"
        ) from error
    found = {}
    for name, tensor in tensors.items():
        _check(path, name, tensor, sizes.get(f"{root}data/{tensor.storage.key}"))
        dtype = arraystore.numpy_dtype(tensor.storage.dtype)
        read = functools.partial(_read, path, f"{root}data/{tensor.storage.key}", tensor)
        found[name] = Lazy(tensor.shape, dtype, read)
    return found


def _interpret(program: bytes) -> dict[str, _Tensor]:
    """What a pickle of a dictionary of tensors describes; ValueError at the first thing that such a one has not."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list:
        at = max(i for i, value in enumerate(stack) if value is _MARK)
        values = stack[at + 1 :]
        del stack[at:]
        return values

    def put(target: Any, values: list) -> None:
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in values[::2]):
            raise ValueError("it sets items of something that is no dictionary of names")
        target.update(zip(values[::2], values[1::2], strict=True))

    for op, arg, _ in pickletools.genops(program):
        name = op.name
        if name in _PUSH:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in _TUPLES:
            values = tuple(stack[-_TUPLES[name] :])
            del stack[-_TUPLES[name] :]
            stack.append(values)
        elif name == "GLOBAL":
            stack.append(_known(arg))
        elif name == "STACK_GLOBAL":
            inside, module = stack.pop(), stack.pop()
            stack.append(_known(f"{module} {inside}"))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name in ("SETITEM", "SETITEMS"):
            values = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            put(stack[-1], values)
        elif name == "BUILD":
            stack.pop()  # torch notes versions of modules as an attribute of the dictionary
            if not isinstance(stack[-1], dict):
                raise ValueError("it sets attributes")
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it has the instruction {name}")
    (found,) = stack
    if not isinstance(found, dict) or not all(isinstance(value, _Tensor) for value in found.values()):
        other = (
            [key for key, value in found.items() if not isinstance(value, _Tensor)] if isinstance(found, dict) else ""
        )
        raise ValueError(f"it is not a dictionary of tensors alone{f': {other[0]} is none' if other else ''}")
    return found


def _known(name: str) -> _Name:
    if name not in (_ORDERED, _TENSOR, _PARAMETER, *_STORAGES):
        raise ValueError(f"it names {name.replace(' ', '.')}, which no plain tensor needs")
    return _Name(name)


def _storage(described: Any) -> _Storage:
    kind, storage, key, _, count = described
    if kind != "storage" or not isinstance(storage, _Name) or not isinstance(key, str) or not _whole(count):
        raise ValueError("a storage is not described as torch does")
    return _Storage(_STORAGES[storage.name], key, count)


def _call(function: Any, arguments: tuple) -> Any:
    name = function.name
    if name == _ORDERED and arguments == ():
        return {}
    if name == _PARAMETER and isinstance(arguments[0], _Tensor):
        return arguments[0]
    if name == _TENSOR and isinstance(arguments[0], _Storage):
        storage, offset, shape, strides = arguments[:4]
        if len(shape) == len(strides) and all(map(_whole, (offset, *shape, *strides))):
            return _Tensor(storage, offset, tuple(shape), tuple(strides))
    raise ValueError(f"it calls {name.replace(' ', '.')} as no plain tensor does")


def _whole(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 0


def _check(path: Path, name: str, tensor: _Tensor, held: int | None) -> None:
    storage = tensor.storage
    if held is None or held != storage.count * arraystore.numpy_dtype(storage.dtype).itemsize:
        raise DataError(f"{path}: the storage of {name} has {held} bytes, not its {storage.count} {storage.dtype}")
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and last >= storage.count:
        raise DataError(f"{path}: {name} reaches beyond its storage")


def _read(path: Path, inside: str, tensor: _Tensor) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            raw = np.frombuffer(archive.read(inside), arraystore.numpy_dtype(tensor.storage.dtype))
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{path}: {inside} cannot be read ({error})") from error
    size = raw.itemsize
    part = raw[tensor.offset :]
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, raw.dtype)
    strides = tuple(stride * size for stride in tensor.strides)
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(part, tensor.shape, strides)).reshape(tensor.shape)
