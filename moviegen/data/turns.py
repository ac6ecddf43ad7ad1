"""Which bucket each step trains on: a pure function of seed and step, in proportion to what the buckets hold."""

import functools
import math
from collections.abc import Mapping

import numpy as np

from moviegen import streams
from moviegen.parallel.buckets import Bucket, image_steps
from moviegen.streams import Stream


class Turns:
    """The buckets of all steps. A fraction of the steps trains on images, those of a kind share its steps.

    A bucket's share is rows x weight / batch size, so that its samples are drawn as often as rows x weight.
    rows: how many each bucket has, at least one; its weight is above 0.
    """

    def __init__(self, seed: int, image_fraction: float, rows: Mapping[Bucket, int]):
        found = {kind: [each for each in rows if each.kind == kind] for kind in ("video", "image")}
        self._fraction = image_fraction if all(found.values()) else float(not found["video"])
        self._of, self.shares, self._sequences = found, {}, {}
        for kind, fraction in (("video", 1 - self._fraction), ("image", self._fraction)):
            parts = [rows[each] * each.weight / each.batch_size for each in found[kind]]
            shares = tuple(part / math.fsum(parts) for part in parts)
            self.shares |= {each.name: fraction * share for each, share in zip(found[kind], shares, strict=True)}
            names = tuple(each.name for each in found[kind])
            self._sequences[kind] = functools.lru_cache(maxsize=1)(functools.partial(sequence, seed, names, shares))

    def at(self, step: int) -> Bucket:
        """The bucket of a step."""
        images, after = (image_steps(self._fraction, n) for n in (step, step + 1))
        kind, index = ("image", images) if after > images else ("video", step - images)
        return self._of[kind][self._first(kind, index + 1)[index]]

    def steps(self, bucket: Bucket, start: int, end: int) -> int:
        """How many of the steps from `start` on and before `end` are of this bucket."""
        first, last = (image_steps(self._fraction, n) for n in (start, end))
        if bucket.kind == "video":
            first, last = start - first, end - last
        chosen = self._first(bucket.kind, last)[first:last]
        return int(np.count_nonzero(chosen == self._of[bucket.kind].index(bucket)))

    def _first(self, kind: str, steps: int) -> np.ndarray:
        return self._sequences[kind](1 << max(10, steps.bit_length()))  # seldom another length


def sequence(seed: int, names: tuple[str, ...], shares: tuple[float, ...], steps: int) -> np.ndarray:
    """The numbers of the buckets of the first `steps` steps of a kind; more steps begin with the same ones.

    A bucket of share s has its turns at the times (j + u) / s for j = 0, 1, ..., with u in [0, 1) of its own by the seed;
    all turns follow each other by their times. So of any steps a bucket has its share, to within one or two.
    """
    horizon, times = steps + len(names), []  # by which at least so many have come
    for name, share in zip(names, shares, strict=True):
        offset = streams.rng(Stream.BUCKET, seed, name).random()
        times.append((np.arange(math.ceil(horizon * share)) + offset) / share)
    numbers = np.repeat(np.arange(len(names), dtype=np.int16), [len(own) for own in times])
    return numbers[np.argsort(np.concatenate(times), kind="stable")[:steps]]
