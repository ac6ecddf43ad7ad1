"""Tensors of files of torch.save (`.bin`, `.pth`, `.pt`) without running anything in them.

A file is a zip of raw storages and of a pickle that says what lies where; before torch 1.6, pickles and then the storages.
"""

import functools
import math
import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.convert import torch_pickle
from moviegen.convert.torch_pickle import Storage, Tensor
from moviegen.errors import DataError
from moviegen.nn import dtypes
from moviegen.storage import safetensors_io, schema
from moviegen.storage.arraystore import Lazy
from moviegen.storage.files import refused, regular

INDEX, WHOLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
_MOST_VIEWS = 16  # times the bytes of a file that its tensors may have: tied weights share one storage
# zipfile's RuntimeErrors are of encrypted files and of other versions'.
_UNREADABLE = OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile
_OLD = 0x1950A86A20F9469CFC6C  # the first thing in a file of torch before 1.6


def lazy(path: str | Path) -> dict[str, Lazy]:
    """Returns the tensors of a file, or of a folder with an index, by name, each read when it is needed; or DataError."""
    path = Path(path)
    if not (path / INDEX).is_file():
        return _file(path if path.exists() and not path.is_dir() else path / WHOLE)
    found = {}
    for file, names in safetensors_io.indexed(path / INDEX).items():
        held = _file(file)
        for name in names:
            if name not in held:
                raise DataError(f"{file}: has no tensor {name}, which {INDEX} says it holds")
            found[name] = held[name]
    return found


def _file(path: Path) -> dict[str, Lazy]:
    regular(path)
    with refused(f"{path}: cannot be read as tensors and nothing else", TypeError, AttributeError, *_UNREADABLE):
        tensors, held, load = (_zip if zipfile.is_zipfile(path) else _old)(path)
    found = {}
    for name, tensor in tensors.items():
        _check(path, name, tensor, held.get(tensor.storage.key))
        dtype = dtypes.numpy_dtype(tensor.storage.dtype)
        found[name] = Lazy(tensor.shape, dtype, functools.partial(_read, path, load, tensor))
    if sum(math.prod(a.shape) * a.dtype.itemsize for a in found.values()) > _MOST_VIEWS * path.stat().st_size:
        raise DataError(f"{path}: its tensors show the same numbers more than {_MOST_VIEWS} times: save copies")
    return found


def _zip(path: Path) -> tuple[dict[str, Tensor], dict[str, int], Callable]:
    """Returns tensors by name, the size of each storage in bytes, and the function that reads one."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        inner = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(inner) != 1:
            raise ValueError(f"it has {len(inner)} data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is compressed, which torch never does: a small file may fill the memory")
        lies = any(info.file_size != info.compress_size for info in archive.infolist())
        if lies or sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
            raise ValueError("what it holds is larger than the file")
        root = inner[0].removesuffix("data.pkl")
        if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
            raise ValueError("its numbers are big-endian, which this reader does not know")
        tensors = torch_pickle.tensors(torch_pickle.interpret(archive.read(inner[0])))
        start = f"{root}data/"
        held = {name[len(start) :]: archive.getinfo(name).file_size for name in names if name.startswith(start)}

    def load(storage: Storage) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(start + storage.key)

    return tensors, held, load


def _old(path: Path) -> tuple[dict[str, Tensor], dict[str, int], Callable]:
    """Returns the same of a file of torch before 1.6, where a storage is its count in 8 bytes and its numbers."""
    storages: dict[str, Storage] = {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        if torch_pickle.interpret(stream) != _OLD:
            raise ValueError("it is no file of torch.save")
        _, system = torch_pickle.interpret(stream), torch_pickle.interpret(stream)
        if not system["little_endian"]:
            raise ValueError("its numbers are big-endian, which this reader does not know")
        tensors = torch_pickle.tensors(torch_pickle.interpret(stream, storages))
        places, held, size = {}, {}, len(stream)
        for key in torch_pickle.interpret(stream):
            stream.seek(8, 1)
            places[key] = stream.tell()
            length = storages[key].count * dtypes.numpy_dtype(storages[key].dtype).itemsize
            held[key] = max(0, min(length, size - places[key]))
            stream.seek(held[key], 1)

    def load(storage: Storage) -> bytes:
        with open(path, "rb") as stream:
            stream.seek(places[storage.key])
            return stream.read(held[storage.key])

    return tensors, held, load


def _check(path: Path, name: str, tensor: Tensor, held: int | None) -> None:
    storage = tensor.storage
    if not schema.shape(tensor.shape):
        raise DataError(f"{path}: {name} has {len(tensor.shape)} axes or a size that no array can have")
    if held is None or held != storage.count * dtypes.numpy_dtype(storage.dtype).itemsize:
        raise DataError(f"{path}: the storage of {name} has {held} bytes, not its {storage.count} {storage.dtype}")
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and last >= storage.count:
        raise DataError(f"{path}: {name} reaches beyond its storage")
    if math.prod(tensor.shape) > storage.count:
        raise DataError(
            f"{path}: {name} {tensor.shape} repeats the {storage.count} numbers of its storage: save a copy"
        )


def _read(path: Path, load: Callable[[Storage], Any], tensor: Tensor) -> np.ndarray:
    with refused(f"{path}: storage {tensor.storage.key} cannot be read", *_UNREADABLE):
        raw = np.frombuffer(load(tensor.storage), dtypes.numpy_dtype(tensor.storage.dtype))
        if raw.size != tensor.storage.count:  # a view would show what lies behind it in memory
            raise ValueError(f"{raw.size} numbers in place of {tensor.storage.count}")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, raw.dtype)
    # A stride along an axis of one number is never walked, and may be any.
    strides = [stride * raw.itemsize if n > 1 else 0 for n, stride in zip(tensor.shape, tensor.strides, strict=True)]
    view = np.lib.stride_tricks.as_strided(raw[tensor.offset :], tensor.shape, strides)
    return np.ascontiguousarray(view).reshape(tensor.shape)
