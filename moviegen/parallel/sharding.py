"""Equal shards of parameters over a group of ranks: how an array is cut, and where each shard lies in it."""

import functools
import math
from collections.abc import Iterable

import numpy as np

from moviegen.parallel.mesh import Group
from moviegen.storage import arraystore

Shape = tuple[int, ...]
BUCKET = 1 << 24  # values that travel in one message: 64 MB in float32


def axis(shape: Shape, size: int) -> int:
    """The axis to cut into `size` shards: the one with the least padding, the first of equals."""
    padding = [-n % size / max(n, 1) for n in shape]
    return padding.index(min(padding))


@functools.cache
def shard_shape(shape: Shape, size: int) -> Shape:
    """Shape of one of `size` shards, padding included."""
    cut = axis(shape, size)
    return tuple(-(-n // size) if i == cut else n for i, n in enumerate(shape))


def bounds(shape: Shape, group: Group) -> tuple[slice, ...]:
    """Where in the whole array this rank's shard lies, without padding; empty where there is padding alone."""
    cut = axis(shape, group.size)
    length = shard_shape(shape, group.size)[cut]
    start = min(group.rank * length, shape[cut])
    own = slice(start, min(start + length, shape[cut]))
    return tuple(own if i == cut else slice(0, n) for i, n in enumerate(shape))


def part(shape: Shape, shard: np.ndarray, group: Group) -> arraystore.Part:
    """This rank's shard of an array of `shape`, without padding, as a checkpoint stores it."""
    if group.size == 1:
        return arraystore.whole(shard)
    where = bounds(shape, group)
    at = axis(shape, group.size)
    return arraystore.Part(shard[tuple(slice(0, s.stop - s.start) for s in where)], shape, where, at, shard.shape[at])


def pad(own: np.ndarray, shape: Shape, group: Group) -> np.ndarray:
    """This rank's shard of an array of `shape`, given without padding, as it is kept in memory: padded with zeros."""
    if group.size == 1:
        return own
    shard = np.zeros(shard_shape(shape, group.size), own.dtype)
    shard[tuple(slice(0, n) for n in own.shape)] = own
    return shard


def cut(array: np.ndarray, group: Group) -> np.ndarray:
    """This rank's shard of a whole array, padded with zeros; the array itself on a group of one."""
    return pad(array[bounds(array.shape, group)], array.shape, group)


def buckets(shapes: Iterable[tuple[str, Shape]]) -> list[tuple[str, ...]]:
    """Paths in groups of at most BUCKET values, to share a message's latency; a larger tensor is alone."""
    found: list[list[str]] = []
    filled = BUCKET
    for path, shape in shapes:
        size = math.prod(shape)
        if filled + size > BUCKET:
            found.append([])
            filled = 0
        found[-1].append(path)
        filled += size
    return [tuple(bucket) for bucket in found]
