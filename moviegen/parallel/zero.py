"""ZeRO's exchanges: all-gather of parameters where they are used, reduction of gradients as soon as they exist."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import mindspore as ms
from mindspore import ops

from moviegen.nn import kernels, tree
from moviegen.parallel import collectives
from moviegen.parallel.mesh import Group, Mesh
from moviegen.parallel.sharding import Shape, axis, shard_shape

BUCKET = 1 << 24  # values: 64 MB in float32
Tree = Mapping[str, ms.Tensor]


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


def rows(x: ms.Tensor, size: int) -> ms.Tensor:
    """A whole tensor as (size, values of a shard): a shard in every row, padded with zeros."""
    at, shard = axis(x.shape, size), shard_shape(x.shape, size)
    missing = shard[at] * size - x.shape[at]
    if missing:
        x = ops.concat((x, ops.zeros((*x.shape[:at], missing, *x.shape[at + 1 :]), x.dtype)), at)
    if at:
        x = ops.reshape(x, (*x.shape[:at], size, *shard[at:]))
        x = ops.transpose(x, (at, *range(at), *range(at + 1, len(x.shape))))
    return ops.reshape(x, (size, -1))


def join(x: ms.Tensor, shape: Shape) -> ms.Tensor:
    """The inverse of `rows`: (size, values of a shard) -> the whole tensor of `shape`."""
    size = x.shape[0]
    at, shard = axis(shape, size), shard_shape(shape, size)
    if at:
        x = ops.transpose(ops.reshape(x, (size, *shard)), (*range(1, at + 1), 0, *range(at + 1, len(shard) + 1)))
    x = ops.reshape(x, (*shard[:at], size * shard[at], *shard[at + 1 :]))
    missing = size * shard[at] - shape[at]
    return ops.split(x, (shape[at], missing), at)[0] if missing else x


def _all_gather(group: Group, shards: tuple[ms.Tensor, ...], shapes: tuple[Shape, ...]) -> list[ms.Tensor]:
    """Shards of one dtype -> whole tensors of `shapes`, in one message."""
    flat = collectives.all_gather(group)(ops.concat(tuple(ops.reshape(x, (-1,)) for x in shards)))
    lengths = tuple(math.prod(shard_shape(shape, group.size)) for shape in shapes)
    pieces = ops.split(ops.reshape(flat, (group.size, -1)), lengths, 1)
    return [join(piece, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _reduce_scatter(group: Group, tensors: tuple[ms.Tensor, ...]) -> list[ms.Tensor]:
    """Whole tensors -> this rank's shards of their sums over the group, in one message."""
    shards = [shard_shape(x.shape, group.size) for x in tensors]
    flat = ops.reshape(ops.concat(tuple(rows(x, group.size) for x in tensors), 1), (-1,))
    pieces = ops.split(collectives.reduce_scatter(group)(flat), tuple(map(math.prod, shards)))
    return [ops.reshape(piece, shard) for piece, shard in zip(pieces, shards, strict=True)]


def _all_reduce(group: Group, tensors: tuple[ms.Tensor, ...]) -> list[ms.Tensor]:
    """Tensors -> their sums over the group, in one message."""
    flat = ops.concat(tuple(ops.reshape(x, (-1,)) for x in tensors))
    pieces = ops.split(collectives.all_reduce(group)(flat), tuple(math.prod(x.shape) for x in tensors))
    return [ops.reshape(piece, x.shape) for piece, x in zip(pieces, tensors, strict=True)]


def _by_bucket(exchange: Callable, group: Group, tensors: Tree) -> dict[str, ms.Tensor]:
    if group.size == 1:
        return dict(tensors)
    found = {}
    for bucket in buckets((path, tuple(x.shape)) for path, x in tensors.items()):
        found.update(zip(bucket, exchange(group, tuple(tensors[path] for path in bucket)), strict=True))
    return found


def whole(
    group: Group, shards: Tree, shapes: Mapping[str, Shape], dtypes: Mapping[str, str] = {}
) -> dict[str, ms.Tensor]:
    """All-gather of shards: the whole tensors, of `shapes`, on every rank, in `dtypes` (float32 where they name none)."""
    kinds = {path: dtypes.get(path, "float32") for path in shards}
    own = {path: _cast(x, getattr(ms, kinds[path])) for path, x in shards.items()}
    if group.size == 1:
        return own
    found = {}
    for kind in sorted(set(kinds.values())):
        for bucket in buckets((path, tuple(shapes[path])) for path in sorted(kinds) if kinds[path] == kind):
            pieces, whole_shapes = (tuple(map(table.get, bucket)) for table in (own, shapes))
            found.update(zip(bucket, _all_gather(group, pieces, whole_shapes), strict=True))
    return found


def _cast(x: ms.Tensor, dtype: Any) -> ms.Tensor:
    return x if x.dtype == dtype else x.astype(dtype)  # which would copy it


def by_layer(params: Tree, all_gather: Callable[[Tree], dict], num_layers: int, back: bool = False) -> Callable:
    """next_layer() -> whole parameters of the prologue, of each block, of "final" and, going `back`, all the way back."""
    there = ["", *(f"blocks/{i}" for i in range(num_layers))]  # "": whatever is in no layer
    layers = [*there, "final", *(reversed(there) if back else ())]

    def gather(layer):
        if layer:
            own = {path: x for path, x in params.items() if path.startswith(layer + "/")}
            return tree.sub(all_gather(own), layer)
        return all_gather({path: x for path, x in params.items() if not path.startswith(("blocks/", "final/"))})

    return prefetch(gather, layers)


def prefetch(fn: Callable[[Any], Any], items: Iterable[Any], asynchronous: bool = kernels.ON_ASCEND) -> Callable:
    """next_result() -> fn(the next item). An asynchronous device is given one more, to exchange while it computes."""
    waiting, left = deque(), deque(items)

    def next_result():
        while left and len(waiting) < 1 + asynchronous:
            waiting.append(fn(left.popleft()))
        return waiting.popleft()

    return next_result


def own(grads: Tree, shard: Group) -> dict[str, ms.Tensor]:
    """This rank's shards of whole tensors."""
    size = shard.size
    return {path: ops.reshape(rows(x, size)[shard.rank], shard_shape(x.shape, size)) for path, x in grads.items()}


def reducer(mesh: Mesh, stage: int) -> Callable[..., dict[str, ms.Tensor]]:
    """reduce(gradients of some parameters, last=False) -> the sums over all ranks of those that were exchanged.

    From stage 2 on the sums are shards; before, they are whole (at stage 1 the optimizer cuts them, once for all
    micro-batches). Gradients are held back until there are BUCKET values of them, or `last` says that none follow.
    """
    waiting: dict[str, ms.Tensor] = {}

    def reduce(grads, last=False):
        # In float32: a sum of many in bfloat16 loses the small ones.
        waiting.update({path: _cast(g, ms.float32) for path, g in grads.items()})
        if not last and sum(g.size for g in waiting.values()) < BUCKET:
            return {}
        done = dict(waiting)
        waiting.clear()
        if stage < 2:
            return _by_bucket(_all_reduce, mesh.world, done)
        return _by_bucket(_all_reduce, mesh.replicas, _by_bucket(_reduce_scatter, mesh.shard, done))

    return reduce
