"""The mesh: ranks on a grid with the axes data, zero and sp, and the groups of ranks that exchange along them.

The batch is split over data and zero, the sequence over sp; parameters and their state are sharded over zero x sp and
repeated along data. sp is innermost: the ranks of a sequence, which exchange most, are neighbours on the fastest links.
"""

import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

from moviegen.errors import ConfigError

AXES = ("data", "zero", "sp")


class Group(NamedTuple):
    """Some ranks: MindSpore's name for the group, how many they are, and this process's rank among them."""

    name: str = ""
    size: int = 1
    rank: int = 0


ALONE = Group()


class Mesh(NamedTuple):
    """Sizes of the axes, and this process's groups along them; without arguments, the mesh of a single process."""

    data: int = 1
    zero: int = 1
    sp: int = 1
    world: Group = ALONE
    sequence: Group = ALONE  # the ranks of one sequence: along sp
    shard: Group = ALONE  # the shard group, whose ranks hold one replica of parameters and state: along zero and sp
    replicas: Group = ALONE  # the data-parallel group, whose ranks hold the same shard: along data

    @property
    def batch(self) -> Group:
        """This process's piece of the global batch (rank) and the number of pieces (size); no collective runs on it."""
        return Group("", self.data * self.zero, self.world.rank // self.sp)


ONE = Mesh()


def ranks() -> int:
    """How many processes run this experiment together: what msrun says, else 1."""
    return int(os.environ.get("MS_WORKER_NUM", 1))


def rank() -> int:
    """Which of them this process is: what msrun says, else 0. Raises ConfigError where msrun leaves it open."""
    if os.environ.get("MS_ROLE") != "MS_WORKER":
        return 0
    if "MS_NODE_ID" not in os.environ:
        raise ConfigError(
            "this rank does not know its number: give msrun --node_rank, 0 on the first machine, 1 on the next"
        )
    return int(os.environ["MS_NODE_ID"])


def parse(text: str | None, ranks: int) -> dict[str, int]:
    """Axis sizes `{"data": D, "zero": Z, "sp": S}` from `data=D,zero=Z,sp=S`; an axis left out has size 1.

    Nothing at all means pure data parallel over `ranks`. Raises ConfigError unless the sizes are positive whole numbers.
    """
    if not text:
        return {"data": ranks, "zero": 1, "sp": 1}
    axes = dict.fromkeys(AXES, 1)
    for item in text.split(","):
        name, _, size = item.strip().partition("=")
        if name not in axes or not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"mesh {text!r}: {item!r} is not one of data=N, zero=N, sp=N with N of at least 1")
        axes[name] = int(size)
    return axes


def setup(axes: dict[str, int]) -> Mesh:
    """Joins the ranks that msrun started as a mesh; does nothing for a single process. The scheduler serves here and ends."""
    count = axes["data"] * axes["zero"] * axes["sp"]
    if count == 1:
        return ONE
    from mindspore import communication

    communication.init()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        os._exit(0)  # an orderly exit aborts where MindSpore's threads run already
    if communication.get_rank() != rank():
        raise ConfigError(
            f"msrun calls this rank {rank()}, MindSpore {communication.get_rank()}: are two runs on one port?"
        )
    return make(axes, range(count))


def make(axes: dict[str, int], members: Sequence[int]) -> Mesh:
    """The mesh of the ranks `members`, which include this process; rank = (data * Z + zero) * S + sp in their order."""
    import numpy as np  # not above: the command line is read without it

    sizes = tuple(axes[name] for name in AXES)
    grid = np.reshape(members, sizes)
    position = np.argwhere(grid == rank())[0]

    def group(*free: int) -> Group:
        """Ranks that differ from this one along the axes `free` alone."""
        return _group(
            tuple(grid[tuple(np.s_[:] if a in free else at for a, at in enumerate(position))].ravel().tolist())
        )

    return Mesh(*sizes, world=group(0, 1, 2), sequence=group(2), shard=group(1, 2), replicas=group(0))


@functools.cache
def _group(members: tuple[int, ...]) -> Group:
    if len(members) == 1:
        return ALONE
    from mindspore import communication

    name = communication.GlobalComm.WORLD_COMM_GROUP
    if len(members) < ranks():  # only the members may ask for a group; all derive the same name from who they are
        name = "ranks-" + "-".join(map(str, members))
        communication.create_group(name, list(members))
    return Group(name, len(members), members.index(rank()))
