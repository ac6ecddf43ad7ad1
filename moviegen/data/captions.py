"""Tables of prompts: a csv with `video,caption` (and, where known, `fps` and `camera`), or a txt with one in each line."""

from pathlib import Path
from typing import Any, NamedTuple

from moviegen.data import rows, video
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
    if Path(path).is_file() and Path(path).suffix.lower() != ".csv":
        return _txt(path, text), {}
    found, bad = [], {}
    for line, row in rows.read(path, ("video", "caption"), key):
        try:
            found.append(Caption(line, row["video"], _texts(row, text)))
        except ConfigError as error:
            bad[line] = f"line {line}: {error}"
    return found, bad


def _txt(path: str, text: Any) -> list[Caption]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error}): save it as UTF-8") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if prompts.clean(line)]
    return [Caption(number, "", prompts.prepare(line, text.fps, text.camera)) for number, line in numbered]


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
