"""What a survey of a table of clips has found: rows of each bucket, lost ones by reason, what is cut away, the worst."""

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moviegen.data import files
from moviegen.data.fit import Fit, Metadata
from moviegen.parallel import buckets
from moviegen.parallel.buckets import Bucket

# Why a row is lost to training, in the order in which a row is looked at; and what is said of rows that are taken.
LOST = (
    *("bad row", "duplicate row", "missing", "unreadable", "no bucket", "too short", "too small"),
    *("no caption", "no embedding", "no latents", "other latents"),
)
BAD = ("bad row", "missing", "unreadable", "no caption", "no embedding", "no latents")  # of data.max_bad_fraction
TAKEN = ("duplicate content", "in the validation table")
SHOWN, WORST, NAMED = 8, 10, 10  # clips of a bucket's contact sheet; worst rows; rows named of each reason


class Sample(NamedTuple):
    """A row that is taken; bucket None where neither a file nor latents tell it."""

    line: int
    file: files.File
    caption: str
    meta: Metadata | None
    fit: Fit | None
    bucket: Bucket | None


class Length(NamedTuple):
    """How texts of an encoder are measured: in "tokens" or "words", by what, and after how many they are cut (0: unknown)."""

    unit: str
    of: Callable[[list[str]], list[int]]
    budget: int


class Sums(NamedTuple):
    """Over the rows of a bucket: how many, their seconds, those cut off, shares of pictures cut off, and how many enlarged."""

    rows: int = 0
    seconds: float = 0.0
    seconds_cut: float = 0.0
    pixels_cut: float = 0.0
    enlarged: int = 0


class Survey:
    """What was found in one table."""

    def __init__(self) -> None:
        self.rows = 0
        self.lost: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}
        self.sums: dict[str, Sums] = {}
        self.lengths: dict[str, array] = {}
        self.names: list[str] = []
        self.keys = array("Q")  # of size and length, equal for files of one content
        self.shown: dict[str, list] = {}
        self.worst: list = []

    @property
    def taken(self) -> int:
        return self.rows - sum(self.lost[reason] for reason in LOST)

    def note(self, reason: str, line: int, why: Any) -> str:
        """Counts a row's reason, and names the first rows."""
        self.lost[reason] += 1
        told = f"line {line}: {why}" if line else str(why)
        if self.lost[reason] <= NAMED:
            self.first.setdefault(reason, []).append(told)
        return told

    def take(self, sample: Sample, key: int, order: int) -> None:
        """Counts a row that is taken. `key`: of its content; `order`: a random number, of which the lowest are shown."""
        self.names.append(sample.file.name)
        self.keys.append(key)
        if sample.bucket is None:
            return
        name, own = sample.bucket.name, sample.fit
        sums = self.sums.get(name, Sums())
        more = Sums(1)
        if own and sample.meta:
            pixels = 1 - (1 - own.rows) * (1 - own.columns)
            more = Sums(1, sample.meta.seconds, own.seconds, pixels, own.scale > 1 + 1e-6)
            _keep(self.shown.setdefault(name, []), SHOWN, -order, sample)
            if (badness := loss(sample)[0]) > 0:
                _keep(self.worst, WORST, badness, sample)
        self.sums[name] = Sums(*map(sum, zip(sums, more, strict=True)))


def _keep(heap: list, most: int, value: float, sample: Sample) -> None:
    """Keeps the samples of the highest values."""
    entry = (value, -sample.line, sample.file.name, sample)
    if len(heap) < most:
        heapq.heappush(heap, entry)
    elif entry[:3] > heap[0][:3]:
        heapq.heapreplace(heap, entry)


def loss(sample: Sample) -> tuple[float, str]:
    """How much of a sample is cut away or made up, the worst of three shares, in words."""
    own, seconds = sample.fit, sample.meta.seconds
    shares = {
        "of its picture is cut away": 1 - (1 - own.rows) * (1 - own.columns),
        "of its seconds are cut away": own.seconds / seconds if seconds else 0.0,
        "of its pixels are made up by enlarging it": 1 - 1 / own.scale**2 if own.scale > 1 else 0.0,
    }
    words, share = max(shares.items(), key=lambda each: each[1])
    return share, f"{share:.0%} {words}"


def mend(config: Any, bucket: Bucket, rows: int) -> str:
    """What would make a bucket fill a batch; "" where it does, or has no rows to train on."""
    if not bucket.weight or not 0 < rows < bucket.batch_size:
        return ""
    lacking = bucket.batch_size - rows
    more = f"{lacking} more row{'s' * (lacking > 1)}"
    if not buckets.configured(config):
        return f"{more}, or train.batch_size={rows}"
    return (
        f"{more}, or data.buckets.batch_sizes=('{bucket.name}={rows}',), or data.buckets.weights=('{bucket.name}=0',) "
        f"to leave its rows out"
    )


def counts(found: Survey) -> dict[str, Any]:
    """The rows of a table, those lost and those doubtful by reason."""
    lost, doubtful = (
        {each: {"rows": found.lost[each], "first": found.first[each]} for each in reasons if found.lost[each]}
        for reasons in (LOST, TAKEN)
    )
    return {"rows": found.rows, "taken": found.taken, "lost": lost, "doubtful": doubtful}


def report(config: Any, shapes: Sequence[Bucket], lengths: Mapping[str, Length], found: Survey) -> dict[str, Any]:
    """What was found in a table, as JSON holds it."""
    rows, told = [], {}
    for each in shapes:
        sums = found.sums.get(each.name, Sums())
        rows.append(
            {
                "bucket": each.name,
                "rows": sums.rows,
                "batch": each.batch_size,
                "weight": each.weight,
                "batches_an_epoch": -(-sums.rows // each.batch_size) if each.weight else 0,
                "seconds": round(sums.seconds, 3),
                "seconds_cut": round(sums.seconds_cut, 3),
                "pixels_cut": round(sums.pixels_cut / sums.rows, 5) if sums.rows else 0.0,
                "enlarged": int(sums.enlarged),
                "mend": mend(config, each, sums.rows),
            }
        )
    for name, (unit, _, most) in lengths.items():
        if len(found.lengths.get(name, ())):
            own = np.array(found.lengths[name])
            median, high = (int(v) for v in np.percentile(own, (50, 95)))
            cut = int((own > most).sum()) if most else None
            told[name] = {"unit": unit, "median": median, "p95": high, "most": int(own.max())}
            told[name] |= {"budget": most or None, "cut": cut}
    worst = sorted(found.worst, key=lambda each: each[:3], reverse=True)
    return counts(found) | {
        "buckets": rows,
        "captions": told,
        "worst": [
            {"line": s.line, "video": s.file.name, "bucket": s.bucket.name, "why": loss(s)[1]} for *_, s in worst
        ],
    }
