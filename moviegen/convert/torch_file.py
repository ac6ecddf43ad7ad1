"""Reads the arrays of a file of torch.save without torch, and without unpickling: nothing in the file is executed.

The pickle inside is walked as data. It may name classes and ask to call them; what it names stays a word, and the few
calls that describe a tensor are understood here. Anything else becomes an `Unknown` and can do no harm.
"""

import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import arraystore
from moviegen.errors import DataError

_DTYPES = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16"}
_DTYPES |= {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Global(NamedTuple):
    """A class or function that the file names."""

    name: str


class Storage(NamedTuple):
    """A run of numbers that lies elsewhere in the file."""

    dtype: str
    key: str
    count: int


class Array(NamedTuple):
    """A view of a storage; offset and strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Unknown(NamedTuple):
    """A call that is none of a tensor's."""

    what: Any


_MARK = object()


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name, from either of torch's formats; of `{"state_dict": {...}}`, that inside.

    Raises DataError where the file is damaged or holds no dict of tensors.
    """
    path = Path(path)
    try:
        root, load = _zip(path) if zipfile.is_zipfile(path) else _legacy(path)
        root = root.get("state_dict", root)
        found = {name: _array(value, load) for name, value in root.items() if isinstance(value, Array)}
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(f"{path}: not a readable file of torch.save ({error!r})") from error
    if not found:
        raise DataError(f"{path}: holds no tensors by name (expected a state dict)")
    return found


def _zip(path: Path) -> tuple[Mapping, Callable[[Storage], bytes]]:
    file = zipfile.ZipFile(path)
    pickle = next(name for name in file.namelist() if name.endswith("data.pkl"))
    folder = pickle.removesuffix("data.pkl")
    with file.open(pickle) as stream:
        root = _walk(stream)
    return root, lambda storage: file.read(f"{folder}data/{storage.key}")


def _legacy(path: Path) -> tuple[Mapping, Callable[[Storage], bytes]]:
    """Before torch 1.6: pickles one after another, then the storages, each a count and its numbers."""
    with open(path, "rb") as stream:
        if _walk(stream) != _LEGACY_MAGIC:
            raise ValueError("no file of torch.save")
        _walk(stream), _walk(stream)  # version of the format, sizes of the writer's types
        storages: dict[str, Storage] = {}
        root = _walk(stream, storages)
        data = {}
        for key in _walk(stream):
            count = int.from_bytes(stream.read(8), "little")
            size = count * arraystore.numpy_dtype(storages[key].dtype).itemsize
            data[key] = stream.read(size)
            if len(data[key]) != size:
                raise EOFError("cut short")
    return root, lambda storage: data[storage.key]


def _array(value: Array, load: Callable[[Storage], bytes]) -> np.ndarray:
    dtype = arraystore.numpy_dtype(value.storage.dtype)
    numbers = np.frombuffer(load(value.storage), dtype)
    last = value.offset + sum((n - 1) * step for n, step in zip(value.shape, value.strides, strict=True))
    if 0 in value.shape:
        return np.zeros(value.shape, dtype)
    if min(value.shape + value.strides + (value.offset,), default=0) < 0 or last >= len(numbers):
        raise ValueError("a tensor reaches beyond its storage")
    steps = tuple(step * dtype.itemsize for step in value.strides)
    return np.lib.stride_tricks.as_strided(numbers[value.offset :], value.shape, steps).copy()


def _storage(words: tuple) -> Any:
    if words[0] != "storage":
        return Unknown(words)
    return Storage(_DTYPES[words[1].name.removeprefix("torch ").removesuffix("Storage")], str(words[2]), int(words[4]))


def _call(function: Any, arguments: tuple) -> Any:
    name = function.name if isinstance(function, Global) else ""
    if name == "collections OrderedDict":
        return dict(arguments[0]) if arguments else {}
    if name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"):
        storage, offset, shape, strides = arguments[:4]
        return Array(storage, int(offset), tuple(shape), tuple(strides))
    if name == "torch._utils _rebuild_parameter":
        return arguments[0]
    return Unknown(name)


def _walk(stream: Any, storages: dict[str, Storage] | None = None) -> Any:
    """The value that a pickle describes, out of dicts, lists, tuples, numbers, texts and the classes above."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def marked() -> list:
        at = len(stack) - 1 - next(i for i, item in enumerate(reversed(stack)) if item is _MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(Global(argument))
        elif name == "STACK_GLOBAL":
            module, word = stack[-2:]
            stack[-2:] = [Global(f"{module} {word}")]
        elif name == "TUPLE":
            stack.append(tuple(marked()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "LIST":
            stack.append(marked())
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = marked()
            stack[-1].extend(items)
        elif name == "SETITEM":
            key, value = stack[-2:]
            del stack[-2:]
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = marked()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "BINPERSID":
            found = _storage(stack.pop())
            if storages is not None and isinstance(found, Storage):
                storages[found.key] = found
            stack.append(found)
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = _call(stack[-1], arguments)
        elif name == "NEWOBJ":
            stack.pop()
            stack[-1] = Unknown(stack[-1])
        elif name == "BUILD":
            stack.pop()  # the attributes of an object, such as the versions that a state dict notes
        elif argument is not None:
            stack.append(argument)  # numbers and texts
        else:
            raise ValueError(f"opcode {name}, which no state dict needs")
    raise EOFError("cut short")
