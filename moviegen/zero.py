"""ZeRO's exchanges: shards gathered where they are used, gradients summed or scattered the moment they exist.

`gathered` wraps a model's stage so that it takes shards: the parameters of one stage alone exist whole, and the gradient of
the gather is a reduce-scatter, so each rank gets its shard of the summed gradients when the stage's backward pass ends.
Small tensors travel together: a message takes its time however little is in it.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import mindspore as ms
from mindspore import ops

from moviegen import collectives
from moviegen.mesh import Group, Mesh
from moviegen.sharding import Shape, axis, shard_shape

BUCKET = 1 << 24  # values: 64 MB in float32
Tree = Mapping[str, ms.Tensor]
_make_dict = ops.functional.make_dict


def buckets(shapes: Iterable[tuple[str, Shape]]) -> list[tuple[str, ...]]:
    """Paths in groups of at most BUCKET values; a larger tensor is alone."""
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


def rows(x: ms.Tensor, size: int) -> ms.Tensor:
    """A whole tensor as (size, values of a shard): a shard in every row, padded with zeros."""
    at, part = axis(x.shape, size), shard_shape(x.shape, size)
    missing = part[at] * size - x.shape[at]
    if missing:
        x = ops.concat((x, ops.zeros((*x.shape[:at], missing, *x.shape[at + 1 :]), x.dtype)), at)
    if at:
        x = ops.reshape(x, (*x.shape[:at], size, *part[at:]))
        x = ops.transpose(x, (at, *range(at), *range(at + 1, len(x.shape))))
    return ops.reshape(x, (size, -1))


def join(x: ms.Tensor, shape: Shape) -> ms.Tensor:
    """The inverse of `rows`: (size, values of a shard) -> the whole tensor of `shape`."""
    size = x.shape[0]
    at, part = axis(shape, size), shard_shape(shape, size)
    if at:
        x = ops.transpose(ops.reshape(x, (size, *part)), (*range(1, at + 1), 0, *range(at + 1, len(part) + 1)))
    x = ops.reshape(x, (*part[:at], size * part[at], *part[at + 1 :]))
    missing = size * part[at] - shape[at]
    return ops.split(x, (shape[at], missing), at)[0] if missing else x


@functools.cache
def _gather(group: Group, shapes: tuple[Shape, ...]) -> Callable:
    """(shards of one dtype) -> (whole tensors of `shapes`), in one message."""
    gather, size, n = collectives.all_gather(group), group.size, len(shapes)
    lengths = tuple(math.prod(shard_shape(shape, size)) for shape in shapes)

    def gather_all(shards):
        flat = ()
        for shard in shards:
            flat = flat + (ops.reshape(shard, (-1,)),)
        pieces = ops.split(ops.reshape(gather(ops.concat(flat)), (size, -1)), lengths, 1)
        full = ()
        for i in range(n):
            full = full + (join(pieces[i], shapes[i]),)
        return full

    return gather_all


def _scatter(group: Group, tensors: tuple[ms.Tensor, ...]) -> list[ms.Tensor]:
    """Whole tensors -> this rank's shards of their sums over the group, in one message."""
    parts = [shard_shape(x.shape, group.size) for x in tensors]
    flat = ops.reshape(ops.concat(tuple(rows(x, group.size) for x in tensors), 1), (-1,))
    pieces = ops.split(collectives.reduce_scatter(group)(flat), tuple(math.prod(part) for part in parts))
    return [ops.reshape(piece, part) for piece, part in zip(pieces, parts, strict=True)]


def _sum(group: Group, tensors: tuple[ms.Tensor, ...]) -> list[ms.Tensor]:
    """Tensors -> their sums over the group, in one message."""
    flat = ops.concat(tuple(ops.reshape(x, (-1,)) for x in tensors))
    pieces = ops.split(collectives.all_reduce(group)(flat), tuple(math.prod(x.shape) for x in tensors))
    return [ops.reshape(piece, x.shape) for piece, x in zip(pieces, tensors, strict=True)]


def _by_bucket(exchange: Callable, group: Group, tree: Tree) -> dict[str, ms.Tensor]:
    if group.size == 1:
        return dict(tree)
    found = {}
    for bucket in buckets((path, tuple(x.shape)) for path, x in tree.items()):
        found.update(zip(bucket, exchange(group, tuple(tree[path] for path in bucket)), strict=True))
    return found


def whole(group: Group, shards: Tree, shapes: Mapping[str, Shape]) -> dict[str, ms.Tensor]:
    """Every tensor of a tree of shards put together, on every rank; `shapes` are those of the whole tensors."""
    if group.size == 1:
        return dict(shards)
    found = {}
    for bucket in buckets((path, tuple(shapes[path])) for path in shards):
        gather = _gather(group, tuple(tuple(shapes[path]) for path in bucket))
        found.update(zip(bucket, gather(tuple(shards[path] for path in bucket)), strict=True))
    return found


@functools.cache
def gathered(fn: Callable, group: Group, shapes: tuple[tuple[str, Shape], ...], dtype: str = "float32") -> Callable:
    """`fn(p, *inputs)` as a function of shards; `shapes` are those of the whole parameters.

    Matrices are cast to `dtype`, that of the products they go into, before they travel.
    """
    if group.size == 1:
        return fn
    table = dict(shapes)
    lower = [item for item in shapes if dtype == "bfloat16" and _is_matrix(*item)]
    kept = [item for item in shapes if item not in lower]
    messages = tuple(
        (bucket, kind, _gather(group, tuple(table[path] for path in bucket)))
        for kind, items in ((ms.bfloat16, lower), (ms.float32, kept))
        for bucket in buckets(items)
    )
    order = tuple(path for bucket, _, _ in messages for path in bucket)

    def on_shards(p, *inputs):
        full = ()
        for bucket, kind, gather in messages:
            shards = ()
            for path in bucket:
                shards = shards + (ops.cast(p[path], kind),)
            full = full + gather(shards)
        return fn(_make_dict(order, full), *inputs)

    return on_shards


def _is_matrix(path: str, shape: Shape) -> bool:
    return len(shape) > 1 and "modulation" not in path and not path.startswith("position/")


def own(grads: Tree, shard: Group) -> dict[str, ms.Tensor]:
    """This rank's shards of whole tensors."""
    return {
        path: ops.reshape(rows(x, shard.size)[shard.rank], shard_shape(x.shape, shard.size))
        for path, x in grads.items()
    }


def reducer(mesh: Mesh, stage: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What turns the gradients of one stage of the model on this rank into the sums that the optimizer works with.

    ZeRO stage 3: shards already summed over one copy, to be summed over the copies. 2: whole, wanted as shards. 1 and 0:
    whole and wanted whole (stage 1 cuts them when the optimizer takes them, once for all micro-batches).
    """

    def reduce(grads):
        if stage < 2:
            return _by_bucket(_sum, mesh.world, grads)
        return _by_bucket(_sum, mesh.copies, grads if stage == 3 else _by_bucket(_scatter, mesh.shard, grads))

    return reduce
