"""Lists of video and image files, from a csv or a folder, and what of them cannot be used: listed, counted, bounded."""

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from moviegen.data import captions, metadata, pieces, video
from moviegen.data.pieces import Piece
from moviegen.errors import ConfigError, DataError
from moviegen.parallel import sync
from moviegen.parallel.mesh import ALONE, Group
from moviegen.storage.files import inside, write_json

SUFFIXES = (*video.IMAGE_SUFFIXES, ".mp4", ".avi", ".mov", ".mkv", ".mpg", ".webm", ".gif")
SHOWN = 20  # bad files that are printed; the rest is counted
THREADS = min(8, os.cpu_count() or 1)


class File(NamedTuple):
    """A file's name in a folder, the line of the table that names it (0: no table), whether it may lie elsewhere, its `fps`.

    Of a piece of a file the name is the piece's: whoever reads it says `piece=file.piece` to `video`. `wrong`: with the row.
    """

    name: str
    folder: Path
    line: int = 0
    outside: bool = False
    fps: str = ""
    piece: Piece | None = None
    wrong: str = ""

    @property
    def path(self) -> Path:
        """Where it is. DataError where that is outside its folder and may not be, or the table names no piece of it."""
        if self.wrong:
            raise DataError(self.wrong)
        return inside(self.folder, captions.video_name(self.piece.video if self.piece else self.name), self.outside)

    @property
    def image(self) -> bool:
        return video.is_image(Path(self.name))


def listed(csv: str, folder: str, section: str = "data", outside: bool = False) -> list[File]:
    """The files of a csv's column `video`, relative to a folder; without a csv, all in the folder and below.

    A file that is named twice is there once. `section`: of the config, where the keys `csv` and `video_folder` are;
    `outside`: whether files may lie elsewhere. Raises ConfigError or DataError.
    """
    place = Path(folder)
    if not folder or not place.is_dir():
        raise ConfigError(
            f"{section}.video_folder is {folder!r}, which is not a folder: name the folder that holds the videos"
        )
    if not csv:
        paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not paths:
            raise DataError(f"{folder}: no videos or images in this folder (looked for {' '.join(SUFFIXES)})")
        # Names are UTF-8 whatever the locale says; those that are not are refused when they are read.
        names = [os.fsencode(path.relative_to(place)).decode(errors="surrogateescape") for path in paths]
        return [File(name, place, outside=outside) for name in names]
    found: dict[str, File] = {}
    for line, row in captions.rows(csv, ("video",)):
        file = of_row(row, place, line, outside)
        found.setdefault(_key(file), file)
    if not found:
        raise DataError(f"{csv}: no rows, only a header")
    return list(found.values())


def of_row(row: Mapping[str, str | None], place: Path, line: int, outside: bool) -> File:
    """The file, or piece of one, that a csv's row names in the folder `place`."""
    file = File(row["video"] or "", place, line, outside, row.get("fps") or "")
    try:
        return file._replace(name=pieces.name(row), piece=pieces.of(row))
    except DataError as error:  # told when it is read, as all that is wrong with a file
        return file._replace(name=f"line {line}", wrong=str(error))


def _key(file: File) -> str:
    return file.name or f"line {file.line}"


class Bad:
    """The files that turned out to be of no use, at most a fraction `allowed` of `total`; the next one raises a DataError."""

    def __init__(self, total: int, allowed: float, of: str):
        self.total, self.allowed, self.of = total, allowed, of
        self.reasons: dict[str, str] = {}

    def add(self, file: File, error: Exception) -> None:
        """Notes and prints one; raises DataError when there are too many."""
        key = _key(file)
        if key in self.reasons:
            return
        self.reasons[key] = f"line {file.line}: {error}" if file.line else str(error)
        if len(self.reasons) <= SHOWN:
            print(f"cannot be used: {self.reasons[key]}", flush=True)
        if len(self.reasons) > self.allowed * self.total or len(self.reasons) == self.total:
            raise DataError(
                f"{self.of}: {len(self.reasons)} of {self.total} files cannot be used so far, data.max_bad_fraction is "
                f"{self.allowed}: first of them, {next(iter(self.reasons.values()))}"
            )


def usable(data: Any, needed: int, cache: Path | None = None, world: Group = ALONE) -> tuple[dict[File, int], Bad]:
    """The files of the section `data`, opened, with their counted frames; and the others, noted.

    A video of fewer than `needed` frames is not usable. The first rank opens them, the others read its list in `cache`.
    Raises ConfigError, or DataError when too many cannot be used.
    """

    def leave(found: tuple[dict[File, int], Bad]) -> None:
        rows = [(file.name, file.line, file.piece, frames) for file, frames in found[0].items()]
        write_json({"total": found[1].total, "files": rows}, cache)

    def take() -> tuple[dict[File, int], Bad]:
        left, place = json.loads(cache.read_text(encoding="utf-8")), Path(data.video_folder)
        outside, counts = captions.allow_outside(data), {}
        for name, line, piece, frames in left["files"]:
            counts[File(name, place, line, outside, piece=Piece(*piece) if piece else None)] = frames
        return counts, _bad(data, left["total"])

    if cache is None:
        return _counted(data, needed)
    return sync.found_by_first(world, lambda: _counted(data, needed), leave, take, cache)


def _counted(data: Any, needed: int) -> tuple[dict[File, int], Bad]:
    files = listed(data.csv, data.video_folder, outside=captions.allow_outside(data))
    bad, table = _bad(data, len(files)), metadata.opened(data)

    def count(file: File) -> int:
        frames = table.find(file.name, file.path, file.piece).frames
        if frames < needed and not file.image:
            raise DataError(f"{file.path}: {frames} frames, {needed} are needed (data.num_frames, data.stride)")
        return frames

    with ThreadPoolExecutor(THREADS) as pool:
        counts = {file: pool.submit(count, file) for file in files}
        return dict(each(files, bad, lambda file: counts[file].result())), bad


def _bad(data: Any, total: int) -> Bad:
    return Bad(total, data.get("max_bad_fraction", 0.0), data.csv or data.video_folder)


def each(files: list[File], bad: Bad, read: Callable[[File], Any]):
    """(file, read(file)) of every file that can be read; the others are `bad`."""
    for file in files:
        try:
            content = read(file)
        except DataError as error:
            bad.add(file, error)
            continue
        yield file, content
