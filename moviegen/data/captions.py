"""Tables of prompts: a csv with `video,caption` (and, where known, `fps` and `camera`), or a txt with one in each line."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

from moviegen.data import video
from moviegen.errors import ConfigError, DataError
from moviegen.text import prompts


class Caption(NamedTuple):
    """Where a prompt stands, the video that it is of ("" in a txt) and the text for each encoder."""

    line: int
    video: str
    texts: dict[str, str]


def read(path: str, text: Any, key: str = "data.csv") -> tuple[list[Caption], dict[int, str]]:
    """The usable prompts of a file and what is wrong with the others, {line: "line N: ..."}.

    `text` is the config's section: its `fps` and `camera` are those of rows that say nothing themselves. A row is bad
    when its caption is empty, when it has more or fewer fields than the header, or an fps or camera that is none. Raises
    DataError for a file without the columns or that is no text.
    """
    if not path or not Path(path).is_file():
        raise DataError(f"{key} is {path!r}, which does not exist: name a csv with video,caption or a txt of prompts")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return _csv(path, file, text) if Path(path).suffix.lower() == ".csv" else _txt(file, text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error}): save it as UTF-8") from error


def _txt(file: Any, text: Any) -> tuple[list[Caption], dict[int, str]]:
    found = []
    for number, line in enumerate(file, 1):
        if prompts.clean(line):
            found.append(Caption(number, "", prompts.prepare(line, text.fps, text.camera)))
    return found, {}


def _csv(path: str, file: Any, text: Any) -> tuple[list[Caption], dict[int, str]]:
    reader = csv.DictReader(file, strict=True)
    for column in ("video", "caption"):
        if column not in (reader.fieldnames or ()):
            raise DataError(f"{path}, line 1: no column `{column}` among {reader.fieldnames}")
    found, bad, last = [], {}, 1
    try:
        for row in reader:
            last = reader.line_num
            try:
                found.append(Caption(last, row["video"], _texts(row, text)))
            except ConfigError as error:
                bad[last] = f"line {last}: {error}"
    except csv.Error as error:
        raise DataError(f"{path}, line {last + 1}: cannot be read as csv ({error}): mend its quotes") from error
    return found, bad


def _texts(row: dict, text: Any) -> dict[str, str]:
    if None in row or None in row.values():
        raise DataError("has more or fewer fields than the header: quote captions that contain commas")
    if not prompts.clean(row["caption"]):
        raise DataError("the caption is empty")
    image = video.is_image(Path(row["video"]))
    fps = 0 if image else text.fps
    try:
        fps = float(row["fps"]) if row.get("fps") else fps
    except ValueError as error:
        raise DataError(f"fps is {row['fps']!r}, expected a number") from error
    return prompts.prepare(row["caption"], fps, row.get("camera") or ("" if image else text.camera))
