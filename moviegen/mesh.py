"""The mesh: named axes over the ranks."""

import os
import sys
from typing import Any

from moviegen.errors import ConfigError

AXES = ("data", "zero", "sp")


def ranks() -> int:
    """How many processes run this experiment together: what msrun says, else 1."""
    return int(os.environ.get("MS_WORKER_NUM", 1))


def rank() -> int:
    """Which of them this process is: what msrun says, else 0."""
    return int(os.environ.get("RANK_ID", 0)) if "MS_ROLE" in os.environ else 0


def parse(text: str | None, ranks: int) -> dict[str, int]:
    """Axis sizes `{"data": D, "zero": Z, "sp": S}` from `data=D,zero=Z,sp=S`; an axis left out has size 1.

    Nothing at all means pure data parallel. Raises ConfigError unless the sizes are positive whole numbers that
    multiply to `ranks`.
    """
    if not text:
        return {"data": ranks, "zero": 1, "sp": 1}
    axes = dict.fromkeys(AXES, 1)
    for item in text.split(","):
        name, _, size = item.strip().partition("=")
        if name not in axes or not size.isdigit() or int(size) < 1:
            raise ConfigError(f"mesh {text!r}: {item!r} is not one of data=N, zero=N, sp=N with N of at least 1")
        axes[name] = int(size)
    for name in ("zero", "sp"):
        if axes[name] > 1:
            raise ConfigError(
                f"mesh {text!r}: this release runs data parallel only, so {name} must be 1: use data={ranks}"
            )
    product = axes["data"] * axes["zero"] * axes["sp"]
    if product != ranks:
        raise ConfigError(
            f"mesh {text!r} has {product} ranks, but there {'is 1' if ranks == 1 else f'are {ranks}'}: "
            f"change the mesh or start --workers={product}"
        )
    return axes


def setup(axes: dict[str, int]) -> None:
    """Joins the ranks that msrun started, one process per rank; does nothing for a single process.

    msrun also runs the script once as its scheduler, which has no rank: it serves the ranks in here and then ends.
    """
    if axes["data"] * axes["zero"] * axes["sp"] == 1:
        return
    from mindspore import communication

    communication.init()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        sys.exit()


def barrier() -> None:
    """Waits until every rank is here."""
    if ranks() > 1:
        import numpy as np

        all_reduce_mean({"barrier": np.zeros(1, np.float32)})["barrier"].asnumpy()


def all_reduce_mean(tree: dict[str, Any]) -> dict[str, Any]:
    """The mean over the ranks of every tensor of a tree; the tree itself on a single rank."""
    if ranks() == 1:
        return tree
    from mindspore import ops

    from moviegen import backend

    reduce = ops.AllReduce()
    return {path: reduce(backend.tensor(value)) / ranks() for path, value in tree.items()}
