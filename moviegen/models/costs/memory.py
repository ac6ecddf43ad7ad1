"""The memory that a run will take on every rank, by kind, from its settings alone: without MindSpore, and at once."""

from typing import Any, NamedTuple

KINDS = (
    "weights",  # float32 shards, and what of them is there in the compute dtype besides
    "gradients",
    "moments",
    "average",
    "gathered layers",  # ZeRO stage 3: layers that are whole while they are computed with
    "kept activations",  # from the forward pass to the way back
    "working set",  # of the graph that takes most
    "constants",  # tables that graphs hold
    "communicators",
    "process",  # the interpreter, libraries, compiled graphs
    "checkpoint",  # the copy that is written in the background
)


class Memory(NamedTuple):
    """Bytes by kind, of KINDS, on the card and in the host's memory of one rank; a CPU has both in one memory."""

    device: dict[str, int]
    host: dict[str, int]

    @property
    def total(self) -> tuple[int, int]:
        """Bytes on the card and in the host."""
        return sum(self.device.values()), sum(self.host.values())


def of(config: Any, job: str, axes: dict[str, int], card: Any) -> Memory:
    """Memory of one rank at its peak; job "train", "train_tae", "sample" or "encode_video".

    `axes` are the mesh's {"data", "zero", "sp"}, `card` one of costs/cards.py. A kind that takes nothing is left out.
    """
    raise NotImplementedError(job)
