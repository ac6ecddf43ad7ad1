"""Ascend's asynchronous collectives, which a CPU lacks, out of its AllReduce: what is under way cannot be read as a result.

Until it is waited for, every value of a result is not a number; `started` and `waited` count the exchanges.
"""

import mindspore as ms
import numpy as np
from mindspore import communication, ops
from mindspore.ops import communication as native

from moviegen.nn import kernels
from moviegen.parallel import collectives

started, waited = [], []
all_reduce_of_the_cpu = native.all_reduce


class Handle:
    def __init__(self, out, total, group, take):
        self.out, self.total, self.take = out, total, take
        out.copy_(ms.Tensor(np.full(out.shape, np.nan, np.float32)).astype(out.dtype))
        self.handle = all_reduce_of_the_cpu(total, group=group, async_op=True)
        started.append(self)

    def wait(self):
        assert self not in waited
        waited.append(self)
        self.handle.wait()
        self.out.copy_(self.take(self.total))


def all_gather_into_tensor(out, x, group, async_op):
    assert async_op and out.dtype == x.dtype
    before, size = communication.get_rank(group), communication.get_group_size(group)
    empty = ops.zeros_like(x)
    total = ops.concat((*[empty] * before, x, *[empty] * (size - 1 - before)))
    return Handle(out, total, group, lambda total: total)


def reduce_scatter_tensor(out, x, group, async_op):
    assert async_op and out.dtype == x.dtype
    rank, size = communication.get_rank(group), communication.get_group_size(group)
    return Handle(out, x + 0, group, lambda total: ops.split(total, total.shape[0] // size)[rank] + 0)


def all_reduce(x, group, async_op):
    assert async_op
    return Handle(x, x + 0, group, lambda total: total)


def use() -> None:
    """From now on exchanges overlap with what is computed, as on Ascend."""
    kernels.overlaps = lambda: True
    for stand_in in (all_gather_into_tensor, reduce_scatter_tensor, all_reduce):
        setattr(collectives.communication, stand_in.__name__, stand_in)


def leave() -> None:
    """From now on they do not; all that were started have been waited for once."""
    kernels.overlaps = lambda: False
    assert started and sorted(map(id, started)) == sorted(map(id, waited)) and not collectives._under_way
    started.clear()
    waited.clear()
