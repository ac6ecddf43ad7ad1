"""The pickle in a file of torch.save as descriptions of tensors, by the standard library's restricted unpickler.

Stand-ins are all that names in a file become. What `find_class` and `persistent_load` do not restrict, `_program` refuses:
extension codes, resolved without `find_class`; a memo index that makes the unpickler allocate 64 GB; nested tuples, whose
hash as a key overflows the C stack or, where each holds the one before twice, takes for ever.
Source: docs.python.org/3/library/pickle.html, "Restricting Globals".
"""

import io
import pickle
import pickletools
from typing import Any, BinaryIO, NamedTuple

_STORAGES = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64", "Bool": "bool"}
_STORAGES |= {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"}
_STORAGES = {f"torch.{kind}Storage": dtype for kind, dtype in _STORAGES.items()}
_ORDERED, _PARAMETER = "collections.OrderedDict", "torch._utils._rebuild_parameter"
_TENSOR = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")

_PUTS, _TUPLES = {"BINPUT", "LONG_BINPUT"}, {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_GETS = {"BINGET", "LONG_BINGET"}
_WORDS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}
# What makes an object that is no tuple; picklers put it into the memo right then, to take it from there again.
_SHARED = {*_WORDS, "GLOBAL", "STACK_GLOBAL", "EMPTY_DICT", "EMPTY_LIST", "BINPERSID", "REDUCE"}
_INSTRUCTIONS = {*_WORDS, *_GETS, "BINFLOAT"}
_INSTRUCTIONS |= {"BININT", "BININT1", "BININT2", "LONG1", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", *_TUPLES}
_INSTRUCTIONS |= {"EMPTY_DICT", "EMPTY_LIST", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "PROTO", "FRAME", "MARK"}
_INSTRUCTIONS |= {"MEMOIZE", "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD", "STOP"}
_INSTRUCTIONS |= _PUTS
_MOST_TUPLES = 1 << 15  # 8192 tensors have as many; hashing 100 000 nested ones still fits a stack of 8 MB
_MOST_AXES = 32  # numpy's limit


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


class StandIn(NamedTuple):
    """Stands for a function or class that the pickle names, which is never looked up."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        """Returns what the pickle's call describes. Raises ValueError unless it is one that a plain tensor needs."""
        match arguments:
            case () if self.name == _ORDERED:
                return _Ordered()
            case (list(pairs),) if self.name == _ORDERED:  # as Python 2 wrote it
                found = _Ordered(pairs)
                pairs.clear()  # one list that many calls name would fill the memory
                return found
            case (Tensor() as tensor, *_) if self.name == _PARAMETER:
                return tensor
            case (Storage() as storage, offset, tuple(shape), tuple(strides), *_) if self.name in _TENSOR:
                fits = len(shape) == len(strides) <= _MOST_AXES
                if fits and all(map(_whole, (offset, *shape, *strides))):
                    return Tensor(storage, offset, shape, strides)
        raise ValueError(f"it calls {self.name} as no plain tensor does")

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it sets attributes")


class _Ordered(dict):
    def __setstate__(self, state: Any) -> None:
        """Drops the attribute in which torch notes versions of modules."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, program: bytes, storages: dict[str, Storage]):
        super().__init__(io.BytesIO(program))
        self.storages = storages

    def find_class(self, module: str, name: str) -> StandIn:
        full = f"{module}.{name}"
        if full not in (_ORDERED, _PARAMETER, *_TENSOR, *_STORAGES):
            raise ValueError(f"it names {full}, which no plain tensor needs")
        return StandIn(full)

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", StandIn(kind), str(key), _, count, *_) if kind in _STORAGES and _whole(count):
                self.storages[key] = Storage(_STORAGES[kind], key, count)
                return self.storages[key]
        raise ValueError("a storage is not described as torch does")


def interpret(program: bytes | BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Returns what one pickle describes. Raises ValueError at the first thing that a dictionary of tensors does not need.

    A stream is read up to the pickle's end. `storages` is given every storage that is mentioned, by key.
    """
    program = _program(io.BytesIO(program) if isinstance(program, bytes) else program)
    try:
        return _Unpickler(program, {} if storages is None else storages).load()
    except Exception as error:  # the unpickler promises no particular ones
        raise ValueError(str(error)) from error


def tensors(found: Any) -> dict[str, Tensor]:
    """Returns `found` if it is a dictionary of tensors by name and of nothing else. Raises ValueError otherwise."""
    if not isinstance(found, dict):
        raise ValueError("it is not a dictionary of tensors alone")
    if not all(isinstance(key, str) for key in found):
        raise ValueError("it is not a dictionary of tensors alone: a key is no name")
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"it is not a dictionary of tensors alone: {key} is none")
    return found


def _program(stream: BinaryIO) -> bytes:
    """The bytes of one pickle, every instruction of which is known to be harmless."""
    start, tuples, before, shared = stream.tell(), 0, "", {}
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        tuples += instruction.name in _TUPLES
        if instruction.name not in _INSTRUCTIONS:
            raise ValueError(f"it has the instruction {instruction.name}")
        if instruction.name in _PUTS and argument > count:
            raise ValueError(f"it puts value {argument} of {count} into the memo")
        if tuples > _MOST_TUPLES:
            raise ValueError(f"it has more than {_MOST_TUPLES} tuples")
        if instruction.name in _PUTS or instruction.name == "MEMOIZE":
            shared[len(shared) if argument is None else argument] = before in _SHARED
        if instruction.name in _GETS and not shared.get(argument, True):
            raise ValueError(f"it takes the tuple {argument} from the memo again")
        before = instruction.name
    end = stream.tell()
    stream.seek(start)
    return stream.read(end - start)


def _whole(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63
