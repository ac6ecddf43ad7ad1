"""Barriers, and what the first rank does for all: a value, a file, tensors that the other ranks receive from it."""

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.nn import backend
from moviegen.parallel import collectives, heartbeat
from moviegen.parallel.mesh import Group


def agree(value: int, group: Group) -> int:
    """The first rank's value on every rank of the group; whole numbers up to 2^24, since it is sent as a float32."""
    if group.size == 1:
        return value
    return int(collectives.broadcast(group)(backend.tensor(np.float32([value]))).asnumpy()[0])


def barrier(group: Group) -> None:
    """Returns when every rank of the group has called it."""
    agree(0, group)


def wait(world: Group) -> None:
    """Like `barrier` of all ranks, which here may come minutes apart: after work that one does longer than others."""
    if world.size > 1 and not heartbeat.meet():
        barrier(world)


def first_rank_alone(world: Group, do: Callable[[], None], marker: Path) -> None:
    """Calls `do` on rank 0; the other ranks wait until it is done, however long that takes."""
    # For a file in a shared folder: a collective gives up on a rank that comes late.
    if world.rank == 0:
        marker.unlink(missing_ok=True)  # of an earlier run
    wait(world)
    if world.rank == 0:
        do()
        if world.size > 1:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
    while world.rank and not marker.is_file():
        time.sleep(0.5 + random.random())  # a thousand ranks do not look, nor read what is there then, all at once
    barrier(world)


def found_by_first(
    world: Group, find: Callable[[], Any], leave: Callable[[Any], None], take: Callable[[], Any], file: Path
) -> Any:
    """The result of `find` on rank 0, which leaves it in `file` (`leave`) for the other ranks to read (`take`)."""
    found = None

    def work() -> None:
        nonlocal found
        found = find()
        if world.size > 1:
            file.parent.mkdir(parents=True, exist_ok=True)
            leave(found)

    first_rank_alone(world, work, file.with_suffix(".done"))
    return take() if found is None else found


def from_first(
    group: Group, read: Callable[[], Mapping[str, ms.Tensor]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, ms.Tensor]:
    """The float32 tensors of `shapes` that `read` gives on the first rank, which alone calls it, on every rank."""
    found = read() if group.rank == 0 else {path: ops.zeros(shape, ms.float32) for path, shape in shapes.items()}
    return {path: collectives.broadcast(group)(found[path]) for path in shapes}
