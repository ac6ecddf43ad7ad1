"""Tables: csv files with `video` (of a piece of it `start`, `end`), for prompts `caption` (where known `fps`, `camera`) too,
or a txt of a prompt a line."""

import codecs
import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moviegen.data import pieces, rates, video
from moviegen.errors import ConfigError, DataError
from moviegen.parallel import buckets
from moviegen.storage.files import refused
from moviegen.text import prompts

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_START = 1 << 20


class Caption(NamedTuple):
    """Where a prompt stands, the video that it is of ("" in a txt) and the text for each encoder."""

    line: int
    video: str
    texts: dict[str, str]


def rows(path: str, columns: Sequence[str], key: str = "data.csv") -> list[tuple[int, dict]]:
    """Every row of a csv with the number of its last line; what a row lacks at its end is None.

    Raises DataError for a file that is missing (naming the config `key`), is no text or no csv, or has not one of each of
    `columns`.
    """
    return list(stream(path, columns, key))


def stream(path: str, columns: Sequence[str], key: str = "data.csv") -> Iterator[tuple[int, dict]]:
    """`rows`, one after another: those of a large table take several times the memory of its file."""
    if not path or not Path(path).is_file():
        raise DataError(f"{key} is {path!r}, which does not exist: name a csv file with {','.join(columns)}")
    csv.field_size_limit((1 << 31) - 1)  # a line is in memory already; the default refuses captions of 131 kB
    reader, last = csv.DictReader(_lines(path), strict=True), 1
    try:
        names = list(reader.fieldnames or ())
        for column in columns:
            if names.count(column) != 1:
                raise DataError(
                    f"{path}, line 1: {'two columns' if column in names else 'no column'} `{column}` among "
                    f"{reader.fieldnames}: the header names each column once, with commas between"
                )
        for row in reader:
            last = reader.line_num
            yield last, row
    except csv.Error as error:
        raise DataError(f"{path}, line {last + 1}: cannot be read as csv ({error}): mend its quotes") from error


def _lines(path: str) -> Iterator[str]:
    """The lines of `_decoded`, with their line breaks."""
    with refused(f"{path}: cannot be read", OSError), open(path, "rb") as file:
        start = file.read(_START)
    utf16 = start.startswith(_UTF16)
    if not utf16 and b"\0" in start:
        _decoded(path)
    encoding = "utf-16" if utf16 else "utf-8-sig"
    with refused(f"{path}: cannot be read", OSError), open(path, encoding=encoding, newline="") as file:
        try:
            for line in file:
                if "\0" in line:
                    raise UnicodeError("a zero byte")
                yield line
        except UnicodeError:
            _decoded(path)  # says in which line
            raise


def video_name(cell: str | None) -> str:
    """The name in a row's cell `video`. DataError where there is none."""
    if not cell or not cell.strip():
        raise DataError("the cell `video` is empty: name a file, or delete the line")
    return cell


def allow_outside(data: Any) -> bool:
    """What the key `allow_outside` of the section `data` says: whether rows may name files outside their folder."""
    return data.get("allow_outside", False)


def _decoded(path: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 where its first bytes say so: Excel writes both. DataError for others."""
    with refused(f"{path}: cannot be read", OSError), open(path, "rb") as file:
        content = file.read(_START)
        utf16 = content.startswith(_UTF16)
        if utf16 or b"\0" not in content:  # a film of many gigabytes, named by mistake, is refused by its start
            content += file.read()
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: is not UTF-8 text (line {line}: {error.reason}): save it as UTF-8") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(
            f"{path}, line {line}: holds a zero byte, as UTF-16 and damaged files do: save it as UTF-8 text"
        )
    return text


def refuse_too_many_bad(path: str, good: int, bad: Sequence[str], allowed: float, what: str, tell: bool = True) -> None:
    """Prints the first bad rows, and raises a DataError when they are more than a fraction `allowed`, or nothing is good."""
    total = good + len(bad)
    if bad and tell:
        print(f"{path}: {len(bad)} of {total} {what} cannot be used:\n  " + "\n  ".join(bad[:10]), flush=True)
    if not good or len(bad) > allowed * total:
        raise DataError(
            f"{path}: {len(bad)} bad {what} and {good} good ones, data.max_bad_fraction is {allowed}: first bad one, "
            f"{bad[0] if bad else 'none, the table is empty'}"
        )


def read(
    path: str,
    config: Any,
    key: str = "data.csv",
    cached: Mapping[str, float] | None = None,
    without: Collection[str] = (),
) -> tuple[list[Caption], dict[int, str]]:
    """The usable prompts of a file and what is wrong with the others, {line: "line N: ..."}.

    A csv's caption tells the rate at which its clip is shown (`rates.of`, with the rates of the latents that are
    `cached`) and its column `camera`, else `text.camera`; that of an image (`is_image`) neither. The lines of a
    txt are prompts for sampling. A row is bad with an empty `video` or caption, too many or too few fields, or an fps or
    camera that is none. Raises DataError as `rows` does.
    """
    if Path(path).is_file() and Path(path).suffix.lower() != ".csv":
        return _txt(path, config), {}
    found, bad = [], {}
    for line, row in rows(path, ("video", "caption"), key):
        try:
            video_name(row["video"])
            if (name := pieces.name(row)) not in without:
                found.append(Caption(line, name, _texts(row, config, cached or {})))
        except ConfigError as error:
            bad[line] = f"line {line}: {error}"
    return found, bad


def _txt(path: str, config: Any) -> list[Caption]:
    numbered = [(number, line) for number, line in enumerate(_decoded(path).split("\n"), 1) if prompts.clean(line)]
    return [Caption(number, "", prompts.of_request(line, config)) for number, line in numbered]


def is_image(config: Any, name: str) -> bool:
    """Whether a row is taken as an image: by its name, or as all are where an experiment trains on images alone."""
    return buckets.images_alone(config) or video.is_image(Path(name))


def _texts(row: dict, config: Any, cached: Mapping[str, float]) -> dict[str, str]:
    if None in row or None in row.values():
        raise DataError("has more or fewer fields than the header: quote captions that contain commas")
    if not prompts.clean(row["caption"]):
        raise DataError("the caption is empty")
    image = is_image(config, row["video"])
    fps = rates.of(row, config.data, cached) if config.text.tell_fps and not image else 0
    return prompts.prepare(row["caption"], fps, row.get("camera") or config.text.camera, image)
