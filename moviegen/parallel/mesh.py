"""The mesh: ranks on a grid with the axes data, zero and sp, and the groups of ranks that exchange along them.

The batch is split over data and zero, the sequence over sp; parameters and their state are sharded over zero x sp and
repeated along data. sp is innermost: the ranks of a sequence, which exchange most, are neighbours on the fastest links.
"""

import functools
import os
from collections.abc import Collection, Sequence
from typing import NamedTuple

from moviegen.errors import ConfigError

AXES = ("data", "zero", "sp")
# Groups of ranks, and the axes along which their members differ.
_FREE = {"world": AXES, "sequence": ("sp",), "shard": ("zero", "sp"), "replicas": ("data",)}


class Group(NamedTuple):
    """Some ranks: MindSpore's name for the group ("": no collective runs on it), how many, this process's rank among them."""

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
    def axes(self) -> dict[str, int]:
        """Sizes of the axes by name, as `parse` gives them."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def batch(self) -> Group:
        """This process's piece of the global batch (rank) and the number of pieces (size)."""
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


def setup(axes: dict[str, int], opened: Collection[str] = tuple(_FREE)) -> Mesh:
    """Joins the ranks that msrun started as a mesh; does nothing for a single process. The scheduler serves here and ends.

    `opened`: the groups that get a communicator, see `rules.communicators`.
    """
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
    return make(axes, range(count), opened)


def make(axes: dict[str, int], members: Sequence[int], opened: Collection[str] = tuple(_FREE)) -> Mesh:
    """The mesh of the ranks `members`, which include this process; rank = (data * Z + zero) * S + sp in their order."""
    import numpy as np  # not above: the command line is read without it

    sizes = tuple(axes[name] for name in AXES)
    grid = np.reshape(members, sizes)
    position = np.argwhere(grid == rank())[0]

    def group(kind: str) -> Group:
        at = tuple(np.s_[:] if axis in _FREE[kind] else i for axis, i in zip(AXES, position, strict=True))
        found = tuple(grid[at].ravel().tolist())
        if len(found) == grid.size and kind != "sequence":  # see rules.communicators
            kind = "world"
        return _group(found, kind if kind in opened else "")

    return Mesh(*sizes, **{kind: group(kind) for kind in _FREE})


@functools.cache
def _group(members: tuple[int, ...], kind: str) -> Group:
    if len(members) == 1:
        return ALONE
    name = ""
    if kind:
        from mindspore import communication

        name = communication.GlobalComm.WORLD_COMM_GROUP
        if kind != "world" or len(members) < ranks():
            # Only the members may ask for a group. All derive the same name, a short one, from who they are.
            name = f"{kind}-{members[0]}-{members[-1]}-{len(members)}"
            communication.create_group(name, list(members))
    return Group(name, len(members), members.index(rank()))
