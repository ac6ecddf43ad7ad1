"""Writing files aside and renaming them, so that a reader never sees half of one, and a few small readers."""

import contextlib
import json
import math
import os
import re
import secrets
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moviegen.errors import DataError

# What an array in an npz may unpack to: so much, and so many times the file. Padded embeddings are compressed up to 50
# times, to less than that; latents hardly at all.
NPZ_BYTES, NPZ_RATIO = 64 << 20, 20


@contextlib.contextmanager
def aside(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary name beside `path`, which takes its place when the block ends well and is removed if not.

    The folder is made where there is none. The temporary name has another suffix, so that no listing takes for whole
    what a kill left behind: libraries that tell the format by the suffix must be told it. With `durable` the content is
    on the disk before the name is, and the name when this ends: not even a power cut leaves half a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{unique()}.tmp")
    try:
        with naming(path):
            yield temporary
            if durable:
                sync(temporary)
            os.replace(temporary, path)
            if durable:
                sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is told
            temporary.unlink()


def unique() -> str:
    """Returns a piece of a file's name that no other process has, on whatever host: numbers of processes repeat."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Has an OSError of the block name the path: that of a write to a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def told(error: OSError) -> str | None:
    """Returns what an operating system says of a file, on one line; None where an error is not about a file."""
    if error.filename is None:
        return None
    why = "is there and is no folder" if isinstance(error, FileExistsError) else error.strerror
    return f"{error.filename}: {why}"


def noted(path: Path) -> dict | None:
    """Returns the JSON object of a record that we wrote; None where there is none, or a damaged one, which is said."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        print(f"{path} is damaged ({reason(error)}) and counts for nothing", flush=True)
        return None
    return found


def write_text(text: str, path: str | Path) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(value: Any, path: str | Path) -> None:
    """Writes any JSON value, indented and sorted, whole or not at all."""
    write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", path)


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: Exception) -> str:
    """Returns what went wrong on one line, for a message."""
    # tensorstore ends its messages with the whole specification of the array in brackets.
    return re.sub(r" \[(tensorstore_spec|os_error_code)=.*", "", str(error), flags=re.DOTALL).replace("\n", " ")


def inside(folder: Path, name: str, allowed: bool | None = None) -> Path:
    """Returns the path of the file `name` below a folder, for names that come from outside: tables, indices, archives.

    Raises DataError where it would be elsewhere, by `..`, as an absolute path or through links, unless `allowed` (for the
    names in tables: what `data.allow_outside` says); and where it can be no path. Names are UTF-8, whatever the locale.
    """
    try:
        path = Path(folder, os.fsdecode(name.encode()))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # whoever reads it says so
            path.stat()
        root, place = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{name[:300]!r} cannot be the name of a file in {folder} ({reason(error)[:80]})") from error
    if not allowed and root not in place.parents:
        mend = "put the file itself there" + ("" if allowed is None else ", or set data.allow_outside=True")
        raise DataError(f"{folder}: {name!r} leads out of the folder, to {place}: {mend}")
    return path


def regular(path: str | Path) -> Path:
    """Returns the path of a file that is to be read. DataError where it is a folder, a pipe or a device, which may hang."""
    path = Path(path)
    with refused(f"{path}: cannot be read", OSError, ValueError):  # a name that is too long, a folder without rights
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is a folder, a pipe or a device, expected a file")
    return path


def existing(path: str | Path) -> Path:
    """Returns the path of a file that is there. DataError where it is not, as where it is none."""
    if not regular(path).exists():
        raise DataError(f"{path}: no such file")
    return Path(path)


@contextlib.contextmanager
def refused(message: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns these errors of a block into a DataError with the message, which names the file, and the reason."""
    try:
        yield
    except errors as error:
        raise DataError(f"{message} ({reason(error)})") from error


def read_json(path: Path) -> Any:
    """Reads a JSON file. DataError where it is damaged, or holds NaN or infinity, which are no JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value")

    with refused(f"{path}: cannot be read as JSON", OSError, ValueError, RecursionError):
        return json.loads(regular(path).read_text(encoding="utf-8"), parse_constant=refuse)


def read_npz(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Reads these arrays of an npz file. DataError where it is damaged, lacks one, or unpacks to far more than it is."""
    import numpy as np

    return _npz(
        path, keys, lambda file, size, shape, order, dtype: np.ndarray(shape, dtype, file.read(size), order=order)
    )


def npz_shapes(path: Path, keys: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of these arrays alone, from their headers. Raises as `read_npz` does."""
    return _npz(path, keys, lambda file, size, shape, order, dtype: shape)


def _npz(path: Path, keys: tuple[str, ...], take: Callable[..., Any]) -> dict[str, Any]:
    from numpy.lib import format as npy

    found = {}
    # Any error: what damaged bytes make zipfile, zlib and numpy raise has no end.
    with (
        refused(f"{path}: cannot be read as npz with {', '.join(keys)}", Exception),
        zipfile.ZipFile(regular(path)) as archive,
    ):
        most = NPZ_BYTES + NPZ_RATIO * path.stat().st_size
        for key in keys:
            with archive.open(f"{key}.npy") as file:
                header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
                shape, fortran, dtype = header(file)
                size = archive.getinfo(f"{key}.npy").file_size - file.tell()
                if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != size:
                    raise ValueError(f"{key} holds {size} bytes, its header says {dtype} {shape}")
                if size > most:
                    raise ValueError(f"{key} unpacks to {size} bytes, more than {NPZ_RATIO} times the file")
                found[key] = take(file, size, shape, "F" if fortran else "C", dtype)
    return found
