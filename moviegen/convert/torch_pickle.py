"""The pickle in a file of torch.save, read as a description of tensors and run by nobody.

A pickle is a program for a machine with a stack. Python's own machine calls whatever that program names. This one is a
reader: it knows the few instructions and names that a plain dictionary of tensors is made of, builds descriptions of
tensors, and refuses everything else.
"""

import pickletools
from typing import Any, BinaryIO, NamedTuple

_STORAGES = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64", "Bool": "bool"}
_STORAGES |= {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"}
_STORAGES = {f"torch {kind}Storage": dtype for kind, dtype in _STORAGES.items()}
_ORDERED, _PARAMETER = "collections OrderedDict", "torch._utils _rebuild_parameter"
_TENSOR = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PUSH = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}
_PUSH |= {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class Name(NamedTuple):
    """A function or class that the pickle names: never looked up, only compared."""

    name: str


class Storage(NamedTuple):
    """A run of numbers that lies elsewhere in the file."""

    dtype: str
    key: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def interpret(program: bytes | BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """What one pickle describes; ValueError at the first thing that a dictionary of tensors does not need.

    A stream is read up to the pickle's end. `storages` is given every storage that is mentioned, by key.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list:
        at = max(i for i, value in enumerate(stack) if value is _MARK)
        values = stack[at + 1 :]
        del stack[at:]
        return values

    for op, arg, _ in pickletools.genops(program):
        name = op.name
        if name in _PUSH:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
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
            if storages is not None:
                storages[stack[-1].key] = stack[-1]
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name in ("SETITEM", "SETITEMS"):
            values = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _put(stack[-1], values)
        elif name in ("APPEND", "APPENDS"):
            values = since_mark() if name == "APPENDS" else [stack.pop()]
            if not isinstance(stack[-1], list):
                raise ValueError("it appends to something that is no list")
            stack[-1].extend(values)
        elif name == "BUILD":
            stack.pop()  # torch notes versions of modules as an attribute of the dictionary
            if not isinstance(stack[-1], dict):
                raise ValueError("it sets attributes")
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it has the instruction {name}")
    (found,) = stack
    return found


def tensors(found: Any) -> dict[str, Tensor]:
    """`found` if it is a dictionary of tensors alone. Raises ValueError otherwise."""
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        other = (
            [key for key, value in found.items() if not isinstance(value, Tensor)] if isinstance(found, dict) else ""
        )
        raise ValueError(f"it is not a dictionary of tensors alone{f': {other[0]} is none' if other else ''}")
    return found


def _put(target: Any, values: list) -> None:
    if not isinstance(target, dict) or not isinstance(values, list) or not all(isinstance(k, str) for k in values[::2]):
        raise ValueError("it sets items of something that is no dictionary of names")
    target.update(zip(values[::2], values[1::2], strict=True))


def _known(name: str) -> Name:
    if name not in (_ORDERED, _PARAMETER, *_TENSOR, *_STORAGES):
        raise ValueError(f"it names {name.replace(' ', '.')}, which no plain tensor needs")
    return Name(name)


def _storage(described: Any) -> Storage:
    kind, storage, key, _, count, *_ = described
    if kind != "storage" or not isinstance(storage, Name) or not isinstance(key, str) or not _whole(count):
        raise ValueError("a storage is not described as torch does")
    return Storage(_STORAGES[storage.name], key, count)


def _call(function: Any, arguments: tuple) -> Any:
    name = function.name
    if name == _ORDERED and len(arguments) < 2:
        found: dict[str, Any] = {}
        for pair in arguments[0] if arguments else []:  # as Python 2 wrote it
            _put(found, pair)
        return found
    if name == _PARAMETER and isinstance(arguments[0], Tensor):
        return arguments[0]
    if name in _TENSOR and isinstance(arguments[0], Storage):
        storage, offset, shape, strides = arguments[:4]
        if len(shape) == len(strides) and all(map(_whole, (offset, *shape, *strides))):
            return Tensor(storage, offset, tuple(shape), tuple(strides))
    raise ValueError(f"it calls {name.replace(' ', '.')} as no plain tensor does")


def _whole(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 0
