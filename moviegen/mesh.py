"""The mesh: ranks on a grid with the axes data, zero and sp, and the groups of ranks that talk to each other.

The batch is split over data and zero, the sequence over sp; parameters and their state are sharded over zero x sp and
repeated along data. sp is innermost: the ranks of one sequence, which talk in every layer, are neighbours on the fastest
links, then those of one copy of the parameters, then the copies.
"""

import functools
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moviegen.errors import ConfigError

AXES = ("data", "zero", "sp")
LARGE_WASTE = 0.05  # of the work of a sequence: above it a run says what its padding costs


class Group(NamedTuple):
    """Some ranks: the name MindSpore knows them by, how many they are, which of them this process is."""

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
    sequence: Group = ALONE  # one sequence: along sp
    shard: Group = ALONE  # one copy of parameters and state: along zero and sp
    copies: Group = ALONE  # the same shard of every copy: along data

    @property
    def batch(self) -> Group:
        """Which of how many parts of the global batch this process works on; not a group to talk in."""
        return Group("", self.data * self.zero, self.world.rank // self.sp)


ONE = Mesh()
_current = ONE


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
        if name not in axes or not size.isdigit() or int(size) < 1:
            raise ConfigError(f"mesh {text!r}: {item!r} is not one of data=N, zero=N, sp=N with N of at least 1")
        axes[name] = int(size)
    return axes


def current() -> Mesh:
    """The mesh that this run was set up with."""
    return _current


def adopt(mesh: Mesh) -> Mesh:
    """Make a mesh the one that this run uses."""
    global _current
    _current = mesh
    return mesh


def setup(axes: dict[str, int]) -> Mesh:
    """Joins the ranks that msrun started, one process per rank, as a mesh; does nothing for a single process.

    msrun also runs the script once as its scheduler, which has no rank: it serves the ranks in here and then ends.
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
    return adopt(make(axes, range(count)))


def make(axes: dict[str, int], members: Sequence[int]) -> Mesh:
    """The mesh of the ranks `members`, this process among them, rank = (data * Z + zero) * S + sp in their order."""
    _, z, s = sizes = tuple(axes[name] for name in AXES)
    mine = list(members).index(rank())
    position = mine // (z * s), mine // s % z, mine % s

    def group(*free: int) -> Group:
        """Ranks that differ from this one along the axes `free` alone."""
        return _group(
            tuple(
                member
                for i, member in enumerate(members)
                if all(a in free or at == position[a] for a, at in enumerate((i // (z * s), i // s % z, i % s)))
            )
        )

    return Mesh(*sizes, world=group(0, 1, 2), sequence=group(2), shard=group(1, 2), copies=group(0))


@functools.cache
def _group(members: tuple[int, ...]) -> Group:
    if len(members) == 1:
        return ALONE
    from mindspore import communication

    # Only the members may ask for a group; all of them derive the same name from who they are.
    name = (
        "ranks-" + "-".join(map(str, members)) if len(members) < ranks() else communication.GlobalComm.WORLD_COMM_GROUP
    )
    if len(members) < ranks():
        communication.create_group(name, list(members))
    return Group(name, len(members), members.index(rank()))


def agree(value: int, group: Group) -> int:
    """What the group's first rank says; up to 2^24, as it travels in a float32."""
    if group.size == 1:
        return value
    import numpy as np

    from moviegen import backend, collectives

    return int(collectives.broadcast(group)(backend.tensor(np.float32([value]))).asnumpy()[0])


def barrier(group: Group) -> None:
    """Waits until every rank of the group is here."""
    agree(0, group)


def first_rank_alone(do: Callable[[], None], marker: Path) -> None:
    """Rank 0 does something; the others wait until it has, however long that takes.

    They wait for the file `marker` in a shared folder: a collective gives up on a rank that comes late.
    """
    world = current().world
    if world.rank == 0:
        marker.unlink(missing_ok=True)  # of an earlier run
    barrier(world)
    if world.rank == 0:
        do()
        if world.size > 1:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
    while world.rank and not marker.is_file():
        time.sleep(0.5 + random.random())  # a thousand ranks do not look, nor read what is there then, all at once
    barrier(world)


def found_by_first(find: Callable[[], Any], leave: Callable[[Any], None], take: Callable[[], Any], file: Path) -> Any:
    """What `find` gives on rank 0; it leaves that in `file`, from where the other ranks take it."""
    found = None

    def work() -> None:
        nonlocal found
        found = find()
        if current().world.size > 1:
            file.parent.mkdir(parents=True, exist_ok=True)
            leave(found)

    first_rank_alone(work, file.with_suffix(".done"))
    return take() if found is None else found


def violations(axes: dict[str, int], ranks: int, config: Any, job: str) -> list[str]:
    """Every rule of the mesh that an experiment on so many ranks breaks, each with what would mend it."""
    found, parts = [], axes["data"] * axes["zero"]
    if parts * axes["sp"] != ranks:
        found.append(
            f"it has {parts * axes['sp']} ranks, but there {'is 1' if ranks == 1 else f'are {ranks}'}: "
            f"change the mesh or start --workers={parts * axes['sp']}"
        )
    if job == "train_tae" and axes["sp"] > 1:
        found.append(f"sp={axes['sp']}: the autoencoder has no sequence to split, use zero or data")
    if job in ("train", "sample") and config.model.num_heads % axes["sp"]:
        found.append(
            f"sp={axes['sp']} does not divide model.num_heads = {config.model.num_heads}, and each rank of a sequence "
            "attends with its share of the heads"
        )
    if job in ("train", "train_tae"):
        if config.train.zero_stage not in range(4):
            found.append(f"train.zero_stage is {config.train.zero_stage}, expected 0, 1, 2 or 3")
        if config.train.rank_timeout <= 0:
            found.append(f"train.rank_timeout is {config.train.rank_timeout}, expected a number of seconds above 0")
        if config.train.keep_checkpoints < 1:
            found.append(f"train.keep_checkpoints is {config.train.keep_checkpoints}, expected 1 or more")
        pieces = parts * config.optim.get("accumulate", 1)
        if config.train.batch_size % pieces:
            found.append(
                f"train.batch_size is {config.train.batch_size}, not a multiple of {pieces}: data {axes['data']} x zero "
                f"{axes['zero']} x optim.accumulate"
            )
        if job == "train_tae" and config.data.image_fraction and config.data.image_batch_size % pieces:
            found.append(
                f"data.image_batch_size is {config.data.image_batch_size}, not a multiple of {pieces}: data "
                f"{axes['data']} x zero {axes['zero']} x optim.accumulate"
            )
    return found


def notes(axes: dict[str, int], config: Any, job: str) -> list[str]:
    """What is allowed and yet costs much: sequences that sp does not divide well, each with its cost."""
    found = []
    for kind, tokens in token_counts(config).items() if job == "train" else ():
        each = -(-tokens // axes["sp"])
        waste = each * axes["sp"] / tokens - 1
        if waste >= LARGE_WASTE:
            found.append(
                f"sp={axes['sp']} does not divide the {tokens} tokens of {kind}: each rank takes {each}, padding "
                f"included, {waste:.0%} more work than there is"
            )
    return found


def token_counts(config: Any) -> dict[str, int]:
    """Length of the sequences that an experiment trains on: "a video" and "an image", those that it has."""
    data, shares = config.data, {}
    if data.num_frames > 1 and data.image_fraction < 1:
        shares["a video"] = -(-data.num_frames // 8)
    if data.num_frames == 1 or data.image_fraction:
        shares["an image"] = 1
    _, *patch = config.model.patch_size
    height, width = (data[side] // 8 // p for side, p in zip(("height", "width"), patch, strict=True))
    return {kind: max(1, frames // config.model.patch_size[0]) * height * width for kind, frames in shares.items()}
