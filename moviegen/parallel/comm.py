"""What a model's step exchanges with other ranks, in one object that is the identity on one rank."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mindspore as ms

from moviegen.parallel import collectives, zero
from moviegen.parallel.mesh import ALONE, Group, Mesh
from moviegen.parallel.sharding import Shape

Tree = dict[str, ms.Tensor]


class AllGather(NamedTuple):
    """all_gather(some of the parameters as given) -> whole, to compute with. start(...) -> wait() -> the same."""

    start: Callable[[Mapping[str, Any]], Callable[[], Tree]]

    def __call__(self, params: Mapping[str, Any]) -> Tree:
        return self.start(params)()


def _kept() -> Callable[..., Tree]:
    return lambda grads, last=False: grads


class Comm(NamedTuple):
    """The exchanges of one model on one mesh; without arguments, those of a single rank."""

    sequence: Group = ALONE  # ranks that share each sequence of tokens
    batches: int = 1  # pieces that the global batch is in; every loss is a mean over all of them
    sharded: bool = False  # whether the parameters that a model is given are shards (ZeRO stage 3)
    all_gather: Callable[[Mapping[str, Any]], Tree] = dict  # some of the parameters as given -> whole, to compute with
    reducer: Callable[[], Callable[..., Tree]] = _kept  # -> reduce(grads, last=False) of one step, see zero.reducer
    all_reduce: Callable[[Any], Any] = collectives.identity  # the sum of a tensor over all ranks


LOCAL = Comm()


def make(mesh: Mesh, zero_stage: int, shapes: Mapping[str, Shape], dtypes: Mapping[str, str] = {}) -> Comm:
    """The exchanges on `mesh` of a model with parameters of these whole shapes, computed with in `dtypes` (or float32)."""
    group = mesh.shard if zero_stage == 3 else ALONE

    def start(params: Mapping[str, Any]) -> Callable[[], Tree]:
        return zero.start_whole(group, params, {path: shapes[path] for path in params}, dtypes)

    def all_reduce(x: ms.Tensor) -> ms.Tensor:
        collectives.settle()  # one group must not be used by two streams at once
        return collectives.all_reduce(mesh.world)(x)

    def reducer() -> Callable[..., Tree]:
        return zero.reducer(mesh, zero_stage)

    return Comm(mesh.sequence, mesh.batch.size, group.size > 1, AllGather(start), reducer, all_reduce)
