"""What Ascend's libraries are told before they start: the config's section `runtime`.

Nothing of it has run, for want of a card.
"""

import glob
import os
import re
from typing import Any

from moviegen.errors import ConfigError

# The second generation (910B1 to 910B4) and the third (910_93..., sold as 910C). The first has 910A, 910ProA, 910B, 910ProB.
WITH_BFLOAT16 = re.compile(r"910B\d|910_93")
_told: dict[str, Any] = {}  # what MindSpore takes once in a process


def cards() -> list[str]:
    """The device files of this machine's Ascend cards."""
    return sorted(glob.glob("/dev/davinci[0-9]*"))


def tell(config: Any) -> None:
    """Tells HCCL and, on a machine with cards, MindSpore what `config.runtime` says; without that section nothing.

    What the environment sets already goes first. ConfigError where an earlier run of this process was told otherwise, or
    where the card cannot compute in the config's dtype.
    """
    settings = config.get("runtime")
    if not settings:
        return
    os.environ.setdefault("HCCL_BUFFSIZE", str(settings.hccl_buffer_mb))
    os.environ.setdefault("HCCL_CONNECT_TIMEOUT", str(settings.hccl_connect_timeout))
    if not cards():
        return
    import mindspore as ms

    if ms.get_context("device_target") != "Ascend":
        return
    for key, set_once in (
        ("deterministic", ms.set_deterministic),
        ("conv_allow_hf32", ms.device_context.ascend.op_precision.conv_allow_hf32),
    ):
        if key not in _told:
            set_once(settings[key])
            _told[key] = settings[key]
        elif _told[key] != settings[key]:
            raise ConfigError(
                f"runtime.{key} is {settings[key]}, but an earlier run of this process had {_told[key]}, and MindSpore takes "
                "it once: start a process for each"
            )
    ms.set_context(jit_config={"jit_level": settings.jit_level})
    check_card(ms.hal.get_device_name(0), config)


def check_card(name: str, config: Any) -> None:
    """Raises ConfigError where a model of the config computes in bfloat16 and the card of this name has none."""
    if WITH_BFLOAT16.search(name):
        return
    for section in ("model", "tae"):
        if config.get(section, {}).get("compute_dtype") == "bfloat16":
            raise ConfigError(
                f"{section}.compute_dtype is 'bfloat16', which this card, {name}, does not have, nor has it the attention "
                "kernel: Movie Gen's sizes need an Ascend 910B1 to 910B4 or 910C (BUILD.md); 'float32' runs, slowly"
            )
