"""Parameters cut into equal shards over a group of ranks (ZeRO), and put together again where they are used.

A tensor is cut along the axis that needs the least padding, so any shape can be cut. `gathered` wraps a model's stage so
that it takes shards: the parameters of one stage alone exist whole, and the gradient of the gather is a reduce-scatter,
so each rank gets its shard of the summed gradients the moment the stage's backward pass ends.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen import arraystore, collectives
from moviegen.mesh import Group, Mesh

Shape = tuple[int, ...]
_make_dict = ops.functional.make_dict


def axis(shape: Shape, size: int) -> int:
    """The axis to cut into `size` shards: the one with the least padding, the first of equals."""
    padding = [-n % size / max(n, 1) for n in shape]
    return padding.index(min(padding))


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
    """A shard as it is kept in memory, of its part of an array of `shape`: the rest is zeros."""
    if group.size == 1:
        return own
    shard = np.zeros(shard_shape(shape, group.size), own.dtype)
    shard[tuple(slice(0, n) for n in own.shape)] = own
    return shard


def cut(array: np.ndarray, group: Group) -> np.ndarray:
    """This rank's shard of a whole array, padded with zeros; the array itself on a group of one."""
    return pad(array[bounds(array.shape, group)], array.shape, group)


@functools.cache
def whole(group: Group, shape: Shape) -> Callable:
    """shard -> the whole tensor of `shape`."""
    if group.size == 1:
        return lambda x: x
    at = axis(shape, group.size)
    gather, length = collectives.all_gather(group, at), shape[at]

    def put_together(x):
        x = gather(x)
        return x if x.shape[at] == length else ops.split(x, (length, x.shape[at] - length), at)[0]

    return put_together


@functools.cache
def scatter_sum(group: Group, shape: Shape) -> Callable:
    """A whole tensor of `shape` -> this rank's shard of its sum over the group."""
    if group.size == 1:
        return lambda x: x
    at = axis(shape, group.size)
    padding = list(shape)
    padding[at] = -shape[at] % group.size
    scatter = collectives.reduce_scatter(group, at)

    def sum_and_cut(x):
        return scatter(ops.concat((x, ops.zeros(tuple(padding), x.dtype)), at) if padding[at] else x)

    return sum_and_cut


@functools.cache
def gathered(fn: Callable, group: Group, shapes: tuple[tuple[str, Shape], ...], dtype: str = "float32") -> Callable:
    """`fn(p, *inputs)` as a function of shards; `shapes` are those of the whole parameters.

    Matrices are cast to `dtype`, that of the products they go into, before they travel.
    """
    if group.size == 1:
        return fn
    paths = tuple(path for path, _ in shapes)
    table = tuple(
        (path, whole(group, shape), dtype == "bfloat16" and _is_matrix(path, shape)) for path, shape in shapes
    )

    def on_shards(p, *inputs):
        full = ()
        for path, gather, lower in table:
            full = full + (gather(ops.cast(p[path], ms.bfloat16) if lower else p[path]),)
        return fn(_make_dict(paths, full), *inputs)

    return on_shards


def _is_matrix(path: str, shape: Shape) -> bool:
    return len(shape) > 1 and "modulation" not in path and not path.startswith("position/")


def own(grads: Mapping[str, ms.Tensor], shard: Group) -> dict[str, ms.Tensor]:
    """This rank's shards of whole tensors."""
    found = {}
    for path, x in grads.items():
        at = axis(x.shape, shard.size)
        length = shard_shape(x.shape, shard.size)[at]
        padding = list(x.shape)
        padding[at] = length * shard.size - x.shape[at]
        if padding[at]:
            x = ops.concat((x, ops.zeros(tuple(padding), x.dtype)), at)
        found[path] = ops.split(x, length, at)[shard.rank]
    return found


def refresh(params: dict[str, ms.Tensor], shards: Mapping[str, ms.Tensor], shard: Group) -> None:
    """Gathers the updated shards into the whole parameters that ZeRO stages 1 and 2 compute with."""
    for path, value in params.items():
        value.assign_value(whole(shard, tuple(value.shape))(shards[path]))


def reducer(mesh: Mesh, stage: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What turns the gradients of one stage of the model on this rank into the sums that the optimizer works with.

    ZeRO stage 3: shards already summed over one copy, to be summed over the copies. 2: whole, wanted as shards. 1 and 0:
    whole and wanted whole (stage 1 cuts them when the optimizer takes them, once for all micro-batches).
    """
    copies, world = collectives.all_reduce(mesh.copies), collectives.all_reduce(mesh.world)

    def reduce(grads):
        if stage == 3:
            return {path: copies(g) for path, g in grads.items()}
        if stage == 2:
            return {path: copies(scatter_sum(mesh.shard, tuple(g.shape))(g)) for path, g in grads.items()}
        return {path: world(g) for path, g in grads.items()}

    return reduce
