"""Near duplicates: pictures as 64 bits that survive another size and coding, and which clips have all of them in common."""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from moviegen.data import cuts

SIDE = 32
_KEPT = 8  # lowest frequencies of each side


def phash(luma: np.ndarray) -> int:
    """A picture (h w) as 64 bits: which of its 8 x 8 lowest frequencies, of 32 x 32 means, are above their median."""
    basis = _cosines()
    coefficients = (basis @ cuts.pooled(luma, SIDE) @ basis.T).ravel()
    coefficients[0] = np.median(coefficients[1:])  # brightness tells nothing
    bits = coefficients > coefficients[0]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.cache
def _cosines() -> np.ndarray:
    place = (np.arange(SIDE) + 0.5) * math.pi / SIDE
    return np.cos(np.arange(_KEPT)[:, None] * place)


def near_better(hashes: Sequence[Sequence[int]], bits: int) -> list[int]:
    """Which clips are near duplicates of one that comes before them.

    hashes: of as many pictures of each clip, best clip first; two clips are near where each pair differs in at most `bits`.
    Of bits + 3 bands of the middle picture's 64 bits three at least are the same then: only clips that share three are
    compared, which are few.
    """
    if len(hashes) < 2:
        return []
    table = np.array(hashes, np.uint64)
    found = np.zeros(len(table), bool)
    edges = np.linspace(0, 64, bits + 4).astype(int)
    middle = table[:, table.shape[1] // 2]
    bands = [(middle >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1) for low, high in itertools.pairwise(edges)]
    for one, two, three in itertools.combinations(bands, 3):
        key = (one << np.uint64(44)) | (two << np.uint64(22)) | three
        order = np.argsort(key, kind="stable")
        ordered, at = key[order], np.arange(len(key))
        for step in range(1, len(key)):  # to the next but `step` of those with one key
            at = at[at + step < len(key)]
            at = at[ordered[at + step] == ordered[at]]
            if not len(at):
                break
            pairs = at[~found[order[at + step]]]
            first, later = order[pairs], order[pairs + step]
            near = (_count(table[first] ^ table[later]) <= bits).all(1)
            found[later[near]] = True
    return np.flatnonzero(found).tolist()


_BITS = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)  # numpy below 2 does not count them


def _count(words: np.ndarray) -> np.ndarray:
    """How many bits are set in each word of uint64 (n k)."""
    return _BITS[np.ascontiguousarray(words).view(np.uint8)].reshape(*words.shape, 8).sum(-1)
