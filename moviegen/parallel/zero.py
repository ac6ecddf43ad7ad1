"""ZeRO's exchanges: all-gather of parameters where they are used, reduction of gradients as soon as they exist."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import mindspore as ms
from mindspore import ops

from moviegen.nn import kernels, tree
from moviegen.parallel import collectives, sharding
from moviegen.parallel.mesh import Group, Mesh
from moviegen.parallel.sharding import Shape, axis, shard_shape

Tree = Mapping[str, ms.Tensor]
Wait = Callable[[], list[ms.Tensor]]


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


def _all_gather(group: Group, shards: tuple[ms.Tensor, ...], shapes: tuple[Shape, ...]) -> Wait:
    """Shards of one dtype -> whole tensors of `shapes`, in one message."""
    arrived = collectives.start_all_gather(group, ops.concat(tuple(ops.reshape(x, (-1,)) for x in shards)))
    lengths = tuple(math.prod(shard_shape(shape, group.size)) for shape in shapes)

    def wait():
        pieces = ops.split(ops.reshape(arrived(), (group.size, -1)), lengths, 1)
        return [join(piece, shape) for piece, shape in zip(pieces, shapes, strict=True)]

    return wait


def _reduce_scatter(group: Group, tensors: tuple[ms.Tensor, ...]) -> Wait:
    """Whole tensors -> this rank's shards of their sums over the group, in one message."""
    shards = [shard_shape(x.shape, group.size) for x in tensors]
    flat = ops.reshape(ops.concat(tuple(rows(x, group.size) for x in tensors), 1), (-1,))
    return _cut(collectives.start_reduce_scatter(group, flat), shards)


def _all_reduce(group: Group, tensors: tuple[ms.Tensor, ...]) -> Wait:
    """Tensors -> their sums over the group, in one message."""
    flat = ops.concat(tuple(ops.reshape(x, (-1,)) for x in tensors))
    return _cut(collectives.start_all_reduce(group, flat), [x.shape for x in tensors])


def _cut(arrived: collectives.Wait, shapes: Sequence[Shape]) -> Wait:
    def wait():
        pieces = ops.split(arrived(), tuple(map(math.prod, shapes)))
        return [ops.reshape(piece, shape) for piece, shape in zip(pieces, shapes, strict=True)]

    return wait


def _send(messages: Iterable[tuple[tuple[str, ...], Callable[[], Wait]]]) -> Callable[[], dict[str, ms.Tensor]]:
    """Starts messages, each (paths, start() -> wait() -> their tensors); wait() -> all tensors by path.

    Where exchanges do not overlap with computing, each is started when it is waited for: one is in memory at a time.
    """
    overlaps = kernels.overlaps()
    left = deque((paths, start() if overlaps else start) for paths, start in messages)

    def wait():
        found = {}
        while left:
            paths, arrived = left.popleft()
            found.update(zip(paths, arrived() if overlaps else arrived()(), strict=True))
        return found

    return wait


def start_whole(
    group: Group, shards: Tree, shapes: Mapping[str, Shape], dtypes: Mapping[str, str] = {}
) -> Callable[[], dict[str, ms.Tensor]]:
    """All-gather of shards; wait() -> the whole tensors, of `shapes`, in `dtypes` (float32 where they name none)."""
    kinds = {path: dtypes.get(path, "float32") for path in shards}

    def cast():
        return {path: _cast(x, getattr(ms, kinds[path])) for path, x in shards.items()}

    if group.size == 1:
        return cast
    own, messages = cast(), []
    for kind in sorted(set(kinds.values())):
        for bucket in sharding.buckets((path, tuple(shapes[path])) for path in sorted(kinds) if kinds[path] == kind):
            pieces, whole_shapes = (tuple(map(table.get, bucket)) for table in (own, shapes))
            messages.append((bucket, partial(_all_gather, group, pieces, whole_shapes)))
    return _send(messages)


def whole(
    group: Group, shards: Tree, shapes: Mapping[str, Shape], dtypes: Mapping[str, str] = {}
) -> dict[str, ms.Tensor]:
    """The same at once: on every rank the whole tensors."""
    return start_whole(group, shards, shapes, dtypes)()


def _cast(x: ms.Tensor, dtype: Any) -> ms.Tensor:
    return x if x.dtype == dtype else x.astype(dtype)  # which would copy it


def by_layer(params: Tree, all_gather: Callable[[Tree], dict], num_layers: int, back: bool = False) -> Callable:
    """next_layer() -> whole parameters of the prologue, of each block, of "final" and, going `back`, all the way back.

    Those of the next layer are under way then, where exchanges overlap with computing and all_gather has a `start`.
    """
    collectives.settle()  # nothing of a walk that an error has ended is under way in this one
    there = ["", *(f"blocks/{i}" for i in range(num_layers))]  # "": whatever is in no layer
    layers = [*there, "final", *(reversed(there) if back else ())]

    def start(layer):
        if layer:
            own = {path: x for path, x in params.items() if path.startswith(layer + "/")}
        else:
            own = {path: x for path, x in params.items() if not path.startswith(("blocks/", "final/"))}
        arrived = all_gather.start(own) if hasattr(all_gather, "start") else partial(all_gather, own)
        return (lambda: tree.sub(arrived(), layer)) if layer else arrived

    return prefetch(start, layers)


def prefetch(start: Callable[[Any], Callable[[], Any]], items: Iterable[Any]) -> Callable:
    """next_result() -> what the start of the next item gives when waited for.

    Where exchanges overlap with computing, the item after it is under way by then: at most two are in memory.
    """
    started, left = deque(), deque(items)

    def next_result():
        while left and len(started) < 1 + kernels.overlaps():
            started.append(start(left.popleft()))
        return started.popleft()()

    return next_result


def own(grads: Tree, shard: Group) -> dict[str, ms.Tensor]:
    """This rank's shards of whole tensors."""
    size = shard.size
    return {path: ops.reshape(rows(x, size)[shard.rank], shard_shape(x.shape, size)) for path, x in grads.items()}


def reducer(mesh: Mesh, stage: int) -> Callable[..., dict[str, ms.Tensor]]:
    """reduce(gradients of some parameters, last=False) -> the sums over all ranks of those that were exchanged.

    From stage 2 on the sums are shards; before, they are whole (at stage 1 the optimizer cuts them, once for all
    micro-batches). Gradients are held back until there are `sharding.BUCKET` values of them, or `last` says that none
    follow. Where exchanges overlap with computing, they are returned when the next ones are given, and all of them with
    the `last`.
    """
    exchanges = (
        [(_all_reduce, mesh.world)] if stage < 2 else [(_reduce_scatter, mesh.shard), (_all_reduce, mesh.replicas)]
    )
    exchanges = [(exchange, group) for exchange, group in exchanges if group.size > 1]
    waiting: dict[str, ms.Tensor] = {}
    under_way: list[Callable[[], dict]] = [dict] * len(exchanges)

    def advance(tensors: dict[str, ms.Tensor]) -> dict[str, ms.Tensor]:
        """Every exchange is started for what has been through the one before; returns what has been through all."""
        for i, (exchange, group) in enumerate(exchanges):
            arrived = under_way[i]()  # before more is sent: what one call gave is under way, what this one gave at hand
            sizes = [(path, tuple(x.shape)) for path, x in tensors.items()]
            messages = (
                (paths, partial(exchange, group, tuple(map(tensors.pop, paths)))) for paths in sharding.buckets(sizes)
            )
            under_way[i], tensors = _send(messages), arrived
        return tensors

    def reduce(grads, last=False):
        # In float32: a sum of many in bfloat16 loses the small ones.
        waiting.update({path: _cast(g, ms.float32) for path, g in grads.items()})
        if not last and sum(g.size for g in waiting.values()) < sharding.BUCKET:
            return {}
        done = dict(waiting)
        waiting.clear()
        found = advance(done)
        for _ in exchanges if last or not kernels.overlaps() else ():
            found |= advance({})
        return found

    return reduce
