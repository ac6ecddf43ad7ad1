"""One array in one folder of the disk: zarr3 through tensorstore, synced when written, checked when read."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

# Large arrays are cut along their first axis, so that the pieces of one can be checked and read at the same time.
CHUNK_BYTES = 64 << 20


def write(folder: Path, array: np.ndarray) -> dict[str, Any]:
    """Store `array` in `folder` and return what a manifest says of it: shape, dtype, chunk shape, file signatures."""
    import tensorstore as ts

    row = array[:1].nbytes if array.ndim else array.nbytes
    chunk = [max(1, n) for n in array.shape]
    if array.ndim and row:
        chunk[0] = min(chunk[0], max(1, CHUNK_BYTES // row))
    entry = {"shape": list(array.shape), "dtype": array.dtype.name, "chunk": chunk}
    # Zeros are written like all else: a missing file would read back as zeros, and must be an error instead.
    store = ts.open({**_spec(folder, entry), "store_data_equal_to_fill_value": True}, create=True).result()
    store.write(array, can_reference_source_data_indefinitely=True).result()
    entry["files"] = {file: _signature(folder / file) for file in _files(array.shape, chunk)}
    return entry


def read(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    """Read an array back. Raises OSError or ValueError unless every byte is what `write` described in `entry`."""
    import tensorstore as ts

    # tensorstore checks that the content fits its own checksum; here, that it is the content that was saved.
    for file, written in entry["files"].items():
        if _signature(folder / file) != written:
            raise ValueError(f"{file} is not the file that was saved")
    return ts.open(_spec(folder, entry), open=True, read=True).result().read().result()


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


def cast(array: np.ndarray, dtype: str | None) -> np.ndarray:
    """Floating-point arrays in `dtype` (None: as they are), whole numbers untouched."""
    import ml_dtypes

    floating = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    if dtype is None or not floating:
        return array
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype, copy=False)


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


def _files(shape: tuple[int, ...], chunk: list[int]) -> list[str]:
    if 0 in shape:
        return []
    if not shape:
        return ["c"]
    return [f"c.{i}" + ".0" * (len(shape) - 1) for i in range(-(-shape[0] // chunk[0]))]


def _signature(file: Path) -> list:
    """[size in bytes, crc32c in hex]: the codec put the checksum of a chunk into its last four bytes."""
    with open(file, "rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(max(0, size - 4))
        return [size, f.read(4)[::-1].hex()]


def _part(part: str) -> str:
    if part.strip(".") == "":
        return part.replace(".", "%2E") or "%00"
    return quote(part, safe=" ()[],=+@")
