"""Scores of files in a csv that grows as they are measured: what is there, of files as they are now, is not done again."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from moviegen.data import pieces, scores
from moviegen.data.files import THREADS, Bad, File
from moviegen.data.metadata import Lookup
from moviegen.data.scores import Clip, Shot
from moviegen.errors import DataError
from moviegen.storage import files, fingerprint
from moviegen.storage.writers import Progress

# `file`: what the file was; `measured`: with which settings, "" where the header settled it; `clip`: which, of how many.
NUMBERS = ("border", "sharpness", "motion", "static")
COLUMNS = ("video", "file", "measured", "clip", "file_seconds", "height", "width", "start", "end", "seconds")
COLUMNS = (*COLUMNS, *NUMBERS, "hashes")

Lines = list[list[str]]  # of one file, a clip each


def update(
    path: Path, listed: Sequence[File], lookup: Lookup, settings: Any, worth: Callable[[Clip], bool], bad: Bad
) -> list[Clip]:
    """The clips of all files, in their order; what is measured now is added to the csv `path` at once.

    lookup: of what files' headers say (`metadata.read`). worth: whether a file of this length and size is to be measured.
    Files that cannot be read go to `bad`, which may raise.
    """
    noted = _noted(path)
    found = {file.name: clips for file in listed if (clips := _still(file, noted.get(file.name, []), settings, worth))}
    with files.aside(path) as temporary:  # without what a kill left half written
        _append(temporary, [COLUMNS, *(line for lines in noted.values() for line in lines)])
    missing = [file for file in listed if file.name not in found]
    progress, pool = Progress("curate", len(listed)), ThreadPoolExecutor(THREADS)
    try:
        waiting = {pool.submit(_measured, file, lookup, settings, worth): file for file in missing}
        for done, future in enumerate(as_completed(waiting), len(found) + 1):
            file = waiting[future]
            try:
                lines = future.result()
            except DataError as error:
                bad.add(file, error)
            else:
                _append(path, lines)
                found[file.name] = [_clip(file, line) for line in lines]
            progress.update(done)
    finally:
        pool.shutdown(cancel_futures=True)
    return [clip for file in listed for clip in found.get(file.name, ())]


def _measured(file: File, lookup: Lookup, settings: Any, worth: Callable[[Clip], bool]) -> Lines:
    was = " ".join(map(str, fingerprint.of_file(file.path)))
    meta = lookup(file)
    clip = Clip(file, meta.seconds, meta.height, meta.width)
    told, shots = "", [Shot(None, None, clip.seconds)]
    if worth(clip):
        told, shots = _told(settings), scores.measure(file, (clip.height, clip.width), settings)
    lines = []
    for number, shot in enumerate(shots, 1):
        head = file.name, was, told, f"{number}/{len(shots)}", f"{clip.seconds:.3f}", clip.height, clip.width
        place = ["" if x is None else pieces.text(x) for x in (shot.start, shot.end)]
        values = ["" if (x := getattr(shot, name)) is None else f"{x:.5g}" for name in NUMBERS]
        hashes = " ".join(f"{each:016x}" for each in shot.hashes)
        lines.append([*map(str, head), *place, f"{shot.seconds:.3f}", *values, hashes])
    return lines


def _told(settings: Any) -> str:
    """What a file's scores depend on beside the file."""
    return f"{settings.rate:g} {settings.cut_levels:g} {'+'.join(settings.scores)}"


def _append(path: Path, lines: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    with files.refused(f"{path}: cannot be written", OSError), open(path, "a", encoding="utf-8", newline="") as out:
        out.write(text.getvalue())


def _noted(path: Path) -> dict[str, Lines]:
    """The lines of each file that are all there, the last where there are several."""
    if not path.is_file():
        return {}
    with files.refused(f"{path}: cannot be read: delete it, and all is measured again", OSError, ValueError, csv.Error):
        text = path.read_text(encoding="utf-8")
        rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    found: dict[str, Lines] = {}
    for cells in rows[1:]:
        if len(cells) == len(COLUMNS):
            number, _, _ = cells[3].partition("/")
            found[cells[0]] = [*(found.get(cells[0], []) if number != "1" else []), cells]
    return {name: lines for name, lines in found.items() if lines[-1][3] == f"{len(lines)}/{len(lines)}"}


def _still(file: File, lines: Lines, settings: Any, worth: Callable[[Clip], bool]) -> list[Clip]:
    """The clips that were noted of a file; none where it, or how it is to be measured, is not what it was."""
    if not lines:
        return []
    try:
        size, time, ends = lines[0][1].split()
        clips = [_clip(file, line) for line in lines]
        settled = lines[0][2] == _told(settings) or not worth(clips[0])
        return clips if settled and fingerprint.is_same(file.path, [int(size), int(time), ends]) else []
    except (ValueError, OSError, DataError):  # a file that is gone is told when it is measured
        return []


def _clip(file: File, line: Sequence[str]) -> Clip:
    cells = dict(zip(COLUMNS, line, strict=True))
    shots = int(cells["clip"].partition("/")[2])
    place = (float(cells["start"]), float(cells["end"] or math.inf)) if shots > 1 else (None, None)
    numbers = {name: float(cells[name]) if cells[name] else None for name in NUMBERS}
    shot = Shot(*place, float(cells["seconds"]), **numbers, hashes=tuple(int(x, 16) for x in cells["hashes"].split()))
    whole = float(cells["file_seconds"]), int(cells["height"]), int(cells["width"])
    return Clip(file, *whole, shots, shot if cells["measured"] else None)
