"""Collectives over a group of ranks, in eager and in compiled code; gradients pass through all of them.

Each builder gives one function of a tensor, the identity on a group of one. MindSpore's CPU backend has AllReduce alone on
any group, so there the others are composed from it; on Ascend they are primitives, never run for want of a card.

The `start_` functions, for eager code that needs no gradient, give wait() -> the result, and may run beside what is
computed in between (`kernels.overlaps`).
"""

import functools
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import mint, nn, ops
from mindspore.ops import communication

from moviegen.nn import kernels
from moviegen.parallel.mesh import Group

Collective = Callable[[ms.Tensor], ms.Tensor]
Wait = Callable[[], ms.Tensor]


def identity(x: ms.Tensor) -> ms.Tensor:
    """Every collective of a group of one."""
    return x


@functools.cache
def all_reduce(group: Group) -> Collective:
    """Sum over the group of x, on every rank."""
    return identity if group.size == 1 else ops.AllReduce(ops.ReduceOp.SUM, group.name)


def all_gather(group: Group, axis: int = 0) -> Collective:
    """Every rank's x side by side along `axis`, in order of rank, on every rank. All have one shape."""
    return identity if group.size == 1 else kernels.form(_summed_gather, _native_gather)(group, axis)


@functools.cache
def _native_gather(group, axis):
    native = ops.AllGather(group.name)

    def gather(x):
        if axis == 0:
            return native(x)
        shape, order = x.shape, tuple(range(1, axis + 1)) + (0,) + tuple(range(axis + 1, len(x.shape) + 1))
        found = ops.transpose(ops.reshape(native(x), (group.size,) + shape), order)  # ranks before the axis
        return ops.reshape(found, shape[:axis] + (-1,) + shape[axis + 1 :])

    return gather


@functools.cache
def _summed_gather(group, axis):
    reduce, before, after = all_reduce(group), group.rank, group.size - 1 - group.rank

    def gather(x):
        empty = ops.zeros_like(x)
        return reduce(ops.concat((empty,) * before + (x,) + (empty,) * after, axis))

    return gather


def reduce_scatter(group: Group, axis: int = 0) -> Collective:
    """This rank's piece, of group.size equal ones along `axis`, of the sum over the group of x."""
    return identity if group.size == 1 else kernels.form(_summed_scatter, _native_scatter)(group, axis)


@functools.cache
def _native_scatter(group, axis):
    native = ops.ReduceScatter(ops.ReduceOp.SUM, group.name)

    def scatter(x):
        if axis == 0:
            return native(x)
        shape, order = x.shape, (axis,) + tuple(range(axis)) + tuple(range(axis + 1, len(x.shape) + 1))
        piece = shape[:axis] + (shape[axis] // group.size,) + shape[axis + 1 :]
        by_rank = ops.transpose(ops.reshape(x, shape[:axis] + (group.size,) + piece[axis:]), order)
        return ops.reshape(native(ops.reshape(by_rank, (group.size * piece[0],) + piece[1:])), piece)

    return scatter


@functools.cache
def _summed_scatter(group, axis):
    reduce = all_reduce(group)

    def scatter(x):
        return ops.split(reduce(x), x.shape[axis] // group.size, axis)[group.rank]

    return scatter


def all_to_all(group: Group, split: int, concat: int) -> Collective:
    """Cuts x along axis `split` into a piece for every rank; joins the pieces received along `concat`."""
    return identity if group.size == 1 else kernels.form(_exchange, _native_exchange)(group, split, concat)


@functools.cache
def _native_exchange(group, split, concat):
    return ops.AlltoAll(group.size, split, concat, group.name)


@functools.cache
def _exchange(group, split, concat):
    return _Exchange(group, split, concat)


@functools.cache
def broadcast(group: Group) -> Collective:
    """The first rank's x on every rank; all must have its shape."""
    if group.size == 1:
        return identity
    reduce, mine = all_reduce(group), float(group.rank == 0)

    def from_first(x):
        return reduce(x * mine)

    return from_first


_under_way: dict[object, tuple] = {}


def start_all_gather(group: Group, x: ms.Tensor) -> Wait:
    """`all_gather(group)(x)`, along the first axis."""
    if group.size == 1 or not kernels.overlaps():
        return functools.partial(all_gather(group), x)
    out = mint.empty((group.size * x.shape[0], *x.shape[1:]), dtype=x.dtype)
    return _started(out, x, communication.all_gather_into_tensor(out, x, group=group.name, async_op=True))


def start_reduce_scatter(group: Group, x: ms.Tensor) -> Wait:
    """`reduce_scatter(group)(x)`, along the first axis."""
    if group.size == 1 or not kernels.overlaps():
        return functools.partial(reduce_scatter(group), x)
    out = mint.empty((x.shape[0] // group.size, *x.shape[1:]), dtype=x.dtype)
    return _started(out, x, communication.reduce_scatter_tensor(out, x, group=group.name, async_op=True))


def start_all_reduce(group: Group, x: ms.Tensor) -> Wait:
    """`all_reduce(group)(x)`; x is the caller's no more, as the sum takes its place."""
    if group.size == 1 or not kernels.overlaps():
        return functools.partial(all_reduce(group), x)
    return _started(x, x, communication.all_reduce(x, group=group.name, async_op=True))


def _started(out: ms.Tensor, x: ms.Tensor, handle: Any) -> Wait:
    key = object()
    _under_way[key] = handle, x  # which is read until then

    def wait():
        if key in _under_way:
            _under_way.pop(key)[0].wait()
        return out

    return wait


def settle() -> None:
    """Waits for whatever is under way: what a step that raised an error left, or what shares a group with what comes next."""
    while _under_way:
        _under_way.popitem()[1][0].wait()


class _Exchange(nn.Cell):
    """An all-to-all made of sums: one for each rank, which takes its own, so that no more than x is there at once.

    Every sum waits for the one before, and the gradient is written out: ranks' graphs would differ in the sums' order.
    """

    def __init__(self, group: Group, split: int, concat: int):
        super().__init__()
        self.there, self.back = _rounds(group, split, concat), _rounds(group, concat, split)

    def construct(self, x):
        return self.there(x)

    def bprop(self, x, out, dout):
        return (self.back(dout),)


def _rounds(group: Group, split: int, concat: int) -> Collective:
    size, rank = group.size, group.rank
    reduce, depend, join, cut = all_reduce(group), ops.Depend(), ops.Concat(concat), ops.Split(split, size)
    zeros = ops.ZerosLike()

    def exchange(x):
        pieces = cut(x)
        empty = zeros(pieces[0])
        arrived, found = empty, empty
        for to in range(size):
            piece = depend(pieces[to], arrived)
            arrived = reduce(join((empty,) * rank + (piece,) + (empty,) * (size - 1 - rank)))
            if to == rank:
                found = arrived
        return depend(found, arrived)

    return exchange
