"""Seconds that some work takes on a card: a few shares of its peaks, and what of the exchanges is not hidden."""

from typing import NamedTuple

from moviegen.models.costs.cards import Card
from moviegen.models.costs.work import Message, Work

# Shares of a card's peak. Large products: measured by others, 328 of 354 TFLOP/s on a 910B. The other two make the rows
# come out that docs/numbers.md names.
PRODUCTS, ATTENTION, CONVOLUTIONS = 0.93, 0.5, 0.14
BANDWIDTH = 0.8  # of the memory's, for operations that are no products: assumed
LAUNCH = 10e-6  # seconds of the host for a kernel, aclnn: assumed


class Times(NamedTuple):
    """Seconds of one step, by what they go to.

    Args:
        compute: products.
        memory: all other operations.
        waiting: where the host starts kernels more slowly than the card runs them.
        communication: exchanges that the card waits for.
        host: moments, and the average, between the card and the host.
        hidden: exchanges while the card computes; not in `seconds`.
    """

    compute: float = 0.0
    memory: float = 0.0
    waiting: float = 0.0
    communication: float = 0.0
    host: float = 0.0
    hidden: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return sum(self[:5])


def of(work: Work, card: Card, dtype: str) -> Times:
    """The seconds of some work, its products in `dtype`. Only for cards whose peak is known."""
    peak = card.tflops["float32" if dtype == "bfloat16_simulated" else dtype] * 1e12
    compute = (work.products / PRODUCTS + work.attention / ATTENTION + work.convolutions / CONVOLUTIONS) / peak
    memory = work.traffic / (BANDWIDTH * card.bandwidth)
    waiting = max(0.0, work.launches * LAUNCH - compute - memory)
    busy = compute + memory + waiting
    hidden = sum(travel(m, card) for m in work.messages if m.hidden)
    shown = sum(travel(m, card) for m in work.messages if not m.hidden)
    # What does not fit behind the computing is waited for.
    return Times(compute, memory, waiting, shown + max(0.0, hidden - busy), work.host / card.host, min(hidden, busy))


def travel(message: Message, card: Card) -> float:
    """Seconds of some messages, as HCCL arranges them: within a machine, and one of its cards with those of other machines.

    So of a tensor that is gathered every card takes 1/8 from other machines and the rest from its neighbours.
    """
    inside = max(1, min(message.ranks, card.cards // message.stride))
    machines = message.ranks / inside
    if message.parts:
        near = message.size * (inside - 1) / message.ranks
        far = message.size * (message.ranks - inside) / message.ranks
    else:
        near = message.size * (inside - 1) / inside
        far = message.size / inside * (machines - 1) / machines
    # The links of a card inside a machine are one to each neighbour: fewer cards use fewer of them.
    return near / (card.inside * inside / card.cards) + far / card.between
