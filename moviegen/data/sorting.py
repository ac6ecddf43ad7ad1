"""Files sorted into an experiment's buckets by their headers alone; what is lost and what is cut off is counted."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from moviegen.data import files, fit, metadata, rates
from moviegen.errors import DataError
from moviegen.parallel import buckets
from moviegen.storage.writers import Progress

_AT_ONCE = 1000  # headers, so that a million files are not as many waiting tasks
_LOST = "lost "
NAMED = 5  # of the files that are lost for a reason
_CUT = ("seconds", "rows", "columns")  # of a Fit


def sort(listed: Sequence[files.File], config: Any, rank: int = 0) -> list[fit.Fit | DataError]:
    """How each file becomes a sample, or why not: `fit.Lost` where no bucket takes it, another DataError where it is bad."""
    table, lookup, found = buckets.table(config), metadata.read(config), []

    def one(file: files.File) -> fit.Fit | DataError:
        try:
            return fit.fit(table, lookup(file), config.data.buckets.max_upscale, rates.parse(file.fps))
        except DataError as error:
            return error

    progress = Progress("headers", len(listed), rank)
    with ThreadPoolExecutor(files.THREADS) as pool:
        for at in range(0, len(listed), _AT_ONCE):
            found += pool.map(one, listed[at : at + _AT_ONCE])
            progress.update(len(found))
    return found


def counts(found: Iterable[fit.Fit | DataError | None]) -> dict[str, float]:
    """Files in each bucket, sums of what is cut off them, files lost for each reason: numbers that ranks add up."""
    numbers: Counter[str] = Counter()
    for each in found:
        if isinstance(each, fit.Fit):
            numbers[each.bucket.name] += 1
            for what in _CUT:
                numbers[f"{each.bucket.name} {what}"] += getattr(each, what)
        elif isinstance(each, fit.Lost):
            numbers[f"{_LOST}{each.reason}"] += 1
    return dict(numbers)


def lines(config: Any, counts: Mapping[str, float]) -> list[str]:
    """A table of `counts`: of each bucket the files and the means of what is cut off them, and what is lost."""
    rows = [("bucket", "files", "seconds cut", "rows cut", "columns cut")]
    for each in buckets.table(config):
        if count := counts.get(each.name, 0):
            seconds, *shares = (counts[f"{each.name} {what}"] / count for what in _CUT)
            rows.append((each.name, str(count), f"{seconds:.2f}", *(f"{100 * share:.1f}%" for share in shares)))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = ["  ".join(cell.rjust(n) for cell, n in zip(row, wide, strict=True)) for row in rows]
    gone = [f"{count} {key.removeprefix(_LOST)}" for key, count in counts.items() if key.startswith(_LOST)]
    return [*shown, f"in no bucket: {', '.join(gone) or 'none'}"]


def total_lost(counts: Mapping[str, float]) -> int:
    """How many files no bucket takes."""
    return sum(count for key, count in counts.items() if key.startswith(_LOST))


def lost(listed: Sequence[files.File], found: Sequence[fit.Fit | DataError | None]) -> list[str]:
    """A line for each of the first files of every reason for which no bucket takes them."""
    shown: Counter[str] = Counter()
    told = []
    for file, each in zip(listed, found, strict=True):
        if isinstance(each, fit.Lost):
            shown[each.reason] += 1
            if shown[each.reason] <= NAMED:
                told.append(f"{each.reason}: {f'line {file.line}: ' if file.line else ''}{file.name} {each}")
    return told
