"""The cards that a plan can be made for: peak, memory, bandwidths, and where each number is from.

Nothing here was measured by us: no card was at hand.
"""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from moviegen.errors import ConfigError

GB, GIB = 10**9, 2**30
DEVICES, GROUPS, CONTROL = Path("/dev"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class Card(NamedTuple):
    """One card, that is what one rank has to itself (of a 910C one of its two dies).

    Args:
        name: as `plan.card` names it.
        tflops: peak of matrix products by dtype of their operands, in 10^12 operations a second; none where unknown.
        memory: bytes that there are.
        usable: bytes of it that a run can take.
        bandwidth: bytes a second between the memory and the cores.
        inside: bytes a second that a card receives from the others of its machine, all of them at it together.
        between: bytes a second that a card receives from other machines.
        cards: how many there are in a machine.
        host: bytes a second between the card and pinned memory of its machine.
        host_memory: bytes of memory of a machine, None where unknown.
        sources: where the numbers are from, in words.
    """

    name: str
    tflops: dict[str, float]
    memory: float
    usable: float
    bandwidth: float = 0.0
    inside: float = 0.0
    between: float = 0.0
    cards: int = 1
    host: float = 0.0
    host_memory: float | None = None
    sources: dict[str, str] = {}


_SOURCES = {
    "tflops": "cores x 16^3 x 2 x clock: Ascend910B2(C).ini (gitcode W4termy/runtime); float32 a quarter of it, "
    "as others measured: 328 in bfloat16, 87 in float32 (github gameofdimension/limulidae)",
    "memory": "npu-smi: 65536 MB (910B4: 32768 MB)",
    "usable": "59 of 64 GB: what the seed's launch scripts let MindSpore take",
    "bandwidth": "light-llm-simulator, conf/hardware_config.py",
    "inside": "all_gather on 8 cards, measured by limulidae: 149 GB/s of a peak of 196 (38 and 64 on 2 and 4)",
    "between": "one 200 Gbit/s RoCE port a card (gitcode cann/ops-cv issue 997: 25 to 50 GB/s)",
    "host": "PCIe 4 x16, pinned: assumed",
}


def _ascend(name: str, tflops: float, memory: int, bandwidth: float, links: tuple[float, float], **source: str) -> Card:
    speeds = {"bfloat16": tflops, "float16": tflops, "float32": tflops / 4}
    usable = memory * GIB * 59 / 64
    rates = (rate * GB for rate in (bandwidth, *links))
    return Card(name, speeds, memory * GIB, usable, *rates, 8, 25 * GB, None, _SOURCES | source)


CARDS = {
    card.name: card
    for card in (
        _ascend("910B2", 354, 64, 1600, (149, 25)),
        _ascend("910B3", 295, 64, 1600, (149, 25), inside="taken over from 910B2, whose links it has"),
        _ascend(
            "910B4",
            246,
            32,
            800,
            (24, 24),
            inside="PCIe at 32 GB/s (cann/ops-cv issue 997), and 910B2's share of a peak",
        ),
        _ascend("910C", 354, 64, 1600, (149, 149), between="in a pod as in a machine: assumed of Huawei's 196 GB/s"),
    )
}
NAMES = (*CARDS, "CPU")
DEFAULT = "910B2"


def named(name: str) -> Card:
    """The card of this name; "" is the one at hand, as far as that can be told without MindSpore.

    Raises ConfigError for a name that there is not.
    """
    name = name or (DEFAULT if any(DEVICES.glob("davinci[0-9]*")) else "CPU")
    if name not in NAMES:
        raise ConfigError(f"plan.card is {name!r}, expected one of {', '.join(NAMES)}")
    return CARDS.get(name) or cpu()


def cpu() -> Card:
    """This machine: one rank has all of its memory, or of its control group's, and time is not predicted."""
    memory = min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()])
    source = {"memory": "what the operating system, or the control group, says of this machine"}
    return Card("CPU", {}, memory, memory, host_memory=memory, sources=source)


def _group_limits() -> list[int]:
    """Limits of the control groups that this process is in (version 2 or 1), as far as they can be seen from here."""
    found, places = [], []
    lines = GROUPS.read_text(encoding="utf-8").splitlines() if GROUPS.is_file() else ()
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds in ("", "memory"):  # version 2, or 1
            name = "memory.limit_in_bytes" if kinds else "memory.max"
            own = CONTROL / kinds / path.lstrip("/")  # in a container its own group is seen as the root
            places += [folder / name for folder in (own, *own.parents) if folder.is_relative_to(CONTROL)]
    for place in places:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(place.read_text(encoding="ascii")))
    return found
