"""Tables as csv files: their rows with line numbers, and the judgement of how many of them may be bad."""

import csv
from collections.abc import Sequence
from pathlib import Path

from moviegen.errors import DataError


def read(path: str, columns: Sequence[str], key: str = "data.csv") -> list[tuple[int, dict]]:
    """Every row of a csv in UTF-8 with the number of its last line.

    Raises DataError for a file that is missing (naming the config `key`), is no text or no csv, or lacks one of `columns`.
    """
    if not path or not Path(path).is_file():
        raise DataError(f"{key} is {path!r}, which does not exist: name a csv file with {','.join(columns)}")
    found, last = [], 1
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            for column in columns:
                if column not in (reader.fieldnames or ()):
                    raise DataError(f"{path}, line 1: no column `{column}` among {reader.fieldnames}")
            for row in reader:
                last = reader.line_num
                found.append((last, row))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error}): save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {last + 1}: cannot be read as csv ({error}): mend its quotes") from error
    return found


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
