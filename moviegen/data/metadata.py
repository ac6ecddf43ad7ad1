"""What files are, told once: a csv of their frames, rate and size (`data.metadata`), so that none is opened for it again."""

import csv
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from moviegen.data import video
from moviegen.data.fit import Metadata
from moviegen.data.pieces import Piece
from moviegen.errors import ConfigError, DataError
from moviegen.storage.files import existing, refused

COLUMNS = ("video", "bytes", "mtime_ns", *Metadata._fields, "digest")
NAMED = 5  # files of which it is said that they are opened after all

Lookup = Callable[[Any], Metadata]


class Row(NamedTuple):
    """A file as it was when it was opened.

    Args:
        bytes, mtime_ns: its size and time of change, by which another that replaces it is noticed.
        digest: of its ends (`fingerprint.of_file`), where another file has the same size and length; else "".
    """

    bytes: int
    mtime_ns: int
    meta: Metadata
    digest: str = ""


class Table:
    """The rows of a csv of metadata by file name, the last of each; a damaged one counts for nothing.

    `cells` has what is behind the name as one text: a million rows of a few numbers each would be gigabytes.

    Args:
        path: of the csv, which `append` begins where there is none; "": every file is opened.
    """

    def __init__(self, path: str = ""):
        self.path, self._said = path, 0
        self.cells = _read(path) if path and Path(path).is_file() else {}

    def __len__(self) -> int:
        return len(self.cells)

    def row(self, name: str, path: Path, piece: Piece | None = None) -> tuple[Row, bool]:
        """What the file, or the piece of it, is, and whether the csv knew. DataError where it is missing or cannot be read."""
        with refused(f"{path}: cannot be read", OSError):
            stat = existing(path).stat()
        found = parsed(self.cells.get(name, ""))
        if found and (found.bytes, found.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return found, True
        found = Metadata(**video.probe(path, piece))
        return Row(stat.st_size, stat.st_mtime_ns, found._replace(frames=int(found.frames))), False

    def find(self, name: str, path: Path, piece: Piece | None = None) -> Metadata:
        """What the file `name` of the table is; says so where it is opened though there is a csv. Raises as `row` does."""
        found, known = self.row(name, path, piece)
        if self.path and not known and self._said <= NAMED:
            self._said += 1
            why = "has changed since" if name in self.cells else "is not in it"
            what = f"{name} {why}" if self._said <= NAMED else "more files are not as it says"
            print(f"{self.path}: {what}, opened anew (--job=check_data brings it up to date)", flush=True)
        return found.meta

    def append(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Adds rows to the csv; what a kill left half written at its end is cut off before."""
        rows, path = list(rows), Path(self.path)
        if not rows:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            if not file.tell():
                file.write((",".join(COLUMNS) + "\n").encode())
            _heal(file)
        with open(path, "a", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            for name, row in rows:
                if not {"\n", "\r"} & set(name):  # a row is a line, so that a torn one harms no other
                    cells = (row.bytes, row.mtime_ns, *row.meta, row.digest)
                    lines.writerow((name, *cells))
                    self.cells[name] = ",".join(map(str, cells))


def read(config: Any) -> Lookup:
    """The lookup of a `files.File`'s metadata: in the csv that `data.metadata` names; what that does not know is opened.

    ConfigError where there is no such csv. The lookup raises DataError, and may be called by many threads.
    """
    table = opened(config.data)
    return lambda file: table.find(file.name, file.path, file.piece)


def opened(data: Any) -> Table:
    """The table that the key `metadata` of the section `data` names, read again only when it has changed."""
    path = data.get("metadata", "")
    if not path:
        return Table()
    if not Path(path).is_file():
        raise ConfigError(
            f"data.metadata is {path!r}, which is no file: --job=check_data writes it, or leave the key empty"
        )
    stat = Path(path).stat()
    return _opened(path, stat.st_mtime_ns, stat.st_size)


_opened = functools.lru_cache(maxsize=2)(lambda path, changed, size: Table(path))


def _heal(file: Any) -> None:
    end = file.tell()
    tail = min(end, 1 << 16)
    file.seek(end - tail)
    file.truncate(end - tail + file.read(tail).rfind(b"\n") + 1)


def _read(path: str) -> dict[str, str]:
    rows = {}
    with refused(f"{path}: cannot be read", OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
        if file.readline().rstrip("\n") != ",".join(COLUMNS):
            raise DataError(f"{path}: is no csv that --job=check_data wrote: its first line is not {','.join(COLUMNS)}")
        for line in file:
            if line.startswith('"'):
                name, *rest = next(csv.reader([line]), [""])
                rows[name] = ",".join(rest).rstrip("\n")
            else:
                name, _, rest = line.partition(",")
                rows[name] = rest.rstrip("\n")
    return rows


def parsed(cells: str) -> Row | None:
    """The cells behind a file's name; None where they are damaged."""
    try:
        size, changed, frames, fps, height, width, seconds, digest = cells.split(",")
        meta = Metadata(int(frames), float(fps), int(height), int(width), float(seconds))
        return Row(int(size), int(changed), meta, digest)
    except ValueError:
        return None
