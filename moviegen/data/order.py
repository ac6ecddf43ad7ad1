"""The order in which the rows of a table are drawn: another in every epoch, and one that survives a change of the table."""

import collections
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from moviegen import streams
from moviegen.streams import Stream


class Place(NamedTuple):
    """How far a table has been drawn: the epoch, and how many of its rows in it."""

    epoch: int = 0
    index: int = 0


class Order:
    """The orders of rows with these names: an epoch's is by a hash of seed, epoch and name.

    A row that is added or taken out leaves the others in their order. Rows of one name count as different.
    """

    def __init__(self, seed: int, names: Sequence[str]):
        self.seed, seen, digests = seed, collections.Counter(), []
        for name in names:
            seen[name] += 1
            text = f"{name}\n{seen[name]}".encode(errors="surrogatepass")
            digests.append(hashlib.blake2b(text, digest_size=8).digest())
        self._hashes = np.frombuffer(b"".join(digests), "<u8")
        self._sorted = functools.lru_cache(maxsize=2)(self._sort)  # a batch may lie in two epochs

    def after(self, start: Place, count: int) -> Place:
        """The place `count` samples after another one."""
        epochs, index = divmod(start.index + count, len(self._hashes))
        return Place(start.epoch + epochs, index)

    def row(self, place: Place) -> int:
        """The number in the table of the row that is drawn there."""
        return int(self._sorted(place.epoch)[1][place.index])

    def note(self, place: Place) -> dict[str, Any]:
        """A place as JSON holds it, with the last key drawn, which stays a place in the order when the table changes."""
        last = int(self._sorted(place.epoch)[0][place.index - 1]) if place.index else -1
        return place._asdict() | {"last": last, "rows": len(self._hashes), "table": self.digest()}

    def find(self, noted: dict[str, Any]) -> Place:
        """The place that was noted, perhaps of another table: of the epoch's rows none comes twice and none is left out."""
        return Place(noted["epoch"], int(np.searchsorted(self._sorted(noted["epoch"])[0], noted["last"], "right")))

    def digest(self) -> str:
        """A checksum of the names, whatever the order in which they stand."""
        return hashlib.blake2b(np.sort(self._hashes).tobytes(), digest_size=8).hexdigest()

    def _sort(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The keys of all rows in an epoch, rising, and the number of the row of each."""
        salt = streams.rng(Stream.ORDER, self.seed, epoch).integers(2**64, dtype=np.uint64)
        keys = self._hashes + salt
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # of splitmix64, by Vigna
            keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
        keys = ((keys ^ (keys >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        return keys[order], order
