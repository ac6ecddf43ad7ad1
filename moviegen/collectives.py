"""Collectives over a group of ranks, in eager and in compiled code; gradients pass through all of them.

Each builder gives one function of a tensor, the identity on a group of one. MindSpore's CPU backend has AllReduce alone on
any group, so there the others are composed from it; on Ascend they are the native primitives, which have never run for
want of a card. Either way the gradient is the transposed collective: a gather's is a scatter of sums, and so on.
"""

import functools
from collections.abc import Callable

import mindspore as ms
from mindspore import ops

from moviegen import backend
from moviegen.mesh import Group

ON_ASCEND = backend.device() == "Ascend"
Collective = Callable[[ms.Tensor], ms.Tensor]


def _identity(x):
    return x


@functools.cache
def all_reduce(group: Group) -> Collective:
    """Sum over the group of x, on every rank."""
    return _identity if group.size == 1 else ops.AllReduce(ops.ReduceOp.SUM, group.name)


@functools.cache
def all_gather(group: Group, axis: int = 0) -> Collective:
    """Every rank's x side by side along `axis`, in order of rank, on every rank. All have one shape."""
    if group.size == 1:
        return _identity
    before, after = group.rank, group.size - 1 - group.rank
    if ON_ASCEND:
        native = ops.AllGather(group.name)

        def gather(x):
            if axis == 0:
                return native(x)
            return ops.concat(ops.unstack(native(ops.expand_dims(x, 0)), 0), axis)

        return gather
    reduce = all_reduce(group)

    def place_and_sum(x):
        empty = ops.zeros_like(x)
        return reduce(ops.concat((empty,) * before + (x,) + (empty,) * after, axis))

    return place_and_sum


@functools.cache
def reduce_scatter(group: Group, axis: int = 0) -> Collective:
    """This rank's piece, of group.size equal ones along `axis`, of the sum over the group of x."""
    if group.size == 1:
        return _identity
    size, rank = group.size, group.rank
    if ON_ASCEND:
        native = ops.ReduceScatter(ops.ReduceOp.SUM, group.name)

        def scatter(x):
            if axis == 0:
                return native(x)
            return native(ops.stack(ops.split(x, x.shape[axis] // size, axis), 0))[0]

        return scatter
    reduce = all_reduce(group)

    def sum_and_take(x):
        return ops.split(reduce(x), x.shape[axis] // size, axis)[rank]

    return sum_and_take


@functools.cache
def all_to_all(group: Group, split: int, concat: int) -> Collective:
    """Cuts x along axis `split` into a piece for every rank; joins the pieces that came here along `concat`.

    Going back is `all_to_all(group, concat, split)`.
    """
    if group.size == 1:
        return _identity
    size, rank = group.size, group.rank
    if ON_ASCEND:
        return ops.AlltoAll(size, split, concat, group.name)
    reduce, mine = all_reduce(group), tuple(float(r == rank) for r in range(size))

    def serve_each_in_turn(x):
        pieces = ops.split(x, x.shape[split] // size, split)
        empty, found = ops.zeros_like(pieces[0]), 0
        for to in range(size):  # as many bytes as gathering all and taking a part, but never more than x at once
            arrived = reduce(ops.concat((empty,) * rank + (pieces[to],) + (empty,) * (size - 1 - rank), concat))
            found = found + arrived * mine[to]
        return found

    return serve_each_in_turn


@functools.cache
def broadcast(group: Group) -> Collective:
    """The first rank's x on every rank; all must have its shape."""
    if group.size == 1:
        return _identity
    reduce, mine = all_reduce(group), float(group.rank == 0)

    def from_first(x):
        return reduce(x * mine)

    return from_first
