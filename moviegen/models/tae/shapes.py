"""The autoencoder and its discriminator as data: their blocks in order of execution, and the shapes of all parameters."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from moviegen.errors import ConfigError
from moviegen.nn import dtypes, tree

Shapes = dict[str, tuple[int, ...]]
DISCRIMINATOR = "discriminator/"  # starts its parameters' paths, beside the autoencoder's "encoder/" and "decoder/"
DISCRIMINATOR_LEVELS = 3  # halvings
# Parameters that are float32 whatever the compute dtype: gathered and computed with so.
FLOAT32 = r"/norm\d?/"


class Block(NamedTuple):
    """A block of a network."""

    kind: str  # a key of PARAMETERS, or "patches" in the discriminator
    prefix: str  # of its parameters' paths
    inputs: int
    outputs: int
    level: int | None = None  # 0 has the pixels' resolution, each next one half of it


def _conv(inputs: int, outputs: int, size: int = 3) -> Shapes:
    spatial = {"spatial/w": (outputs, inputs, size, size), "spatial/b": (outputs,)}
    return spatial | {"temporal/w": (outputs, outputs, size), "temporal/b": (outputs,)}


def _norm_conv(inputs: int, outputs: int, number: str = "") -> Shapes:
    return tree.join({f"norm{number}": _norm(inputs), f"conv{number}": _conv(inputs, outputs)})


def _norm(channels: int) -> Shapes:
    return {"scale": (channels,), "bias": (channels,)}


def _residual(inputs: int, outputs: int) -> Shapes:
    found = _norm_conv(inputs, outputs, "1") | _norm_conv(outputs, outputs, "2")
    return found | (tree.join({"shortcut": _conv(inputs, outputs, 1)}) if inputs != outputs else {})


def _attention(inputs: int, outputs: int) -> Shapes:
    linear = {"w": (outputs, inputs), "b": (outputs,)}
    return tree.join({"norm": _norm(inputs), "q": linear, "k": linear, "v": linear, "out": linear})


# Kind of block -> the shapes of its parameters, from its channels.
PARAMETERS = {
    "conv": _conv,
    "residual": _residual,
    "spatial_attention": _attention,
    "temporal_attention": _attention,
    "downsample": _conv,
    "upsample": _conv,
    "head": _norm_conv,
}


def plan(cfg: Any, side: str) -> list[Block]:
    """The blocks of the "encoder" or the "decoder" in order of execution."""
    _check(cfg)
    widths, latents = [cfg.base_channels * m for m in cfg.channel_multipliers], cfg.latent_channels
    c, order = widths[-1], range(len(widths))
    kinds = ("spatial", "temporal") if cfg.temporal_attention else ("spatial",)
    middle = [
        Block("residual", f"{side}/mid/block/0", c, c),
        *(Block(f"{kind}_attention", f"{side}/mid/{kind}_attention", c, c) for kind in kinds),
        Block("residual", f"{side}/mid/block/1", c, c),
    ]
    if side == "encoder":
        levels = _levels("encoder/down", "downsample", widths, order, cfg.num_res_blocks)
        ends = Block("conv", "encoder/conv_in", 3, widths[0]), Block("head", "encoder/head", c, 2 * latents)
        return [ends[0], *levels, *middle, ends[1]]
    levels = _levels("decoder/up", "upsample", widths, order[::-1], cfg.num_res_blocks + 1)
    ends = Block("conv", "decoder/conv_in", latents, c), Block("head", "decoder/head", widths[0], 3)
    return [ends[0], *middle, *levels, ends[1]]


def _levels(prefix: str, resample: str, widths: list[int], order: range, residuals: int) -> list[Block]:
    """The levels in this order: so many residual blocks each, and between two levels what halves or doubles."""
    found, c = [], widths[order[0]]
    for level in order:
        for i in range(residuals):
            found.append(Block("residual", f"{prefix}/{level}/block/{i}", c, widths[level], level))
            c = widths[level]
        if level != order[-1]:
            found.append(Block(resample, f"{prefix}/{level}/{resample}", c, c, level))
    return found


def parameters(block: Block) -> Shapes:
    """Name, below the block's prefix, and shape of each parameter of a block of the autoencoder."""
    return PARAMETERS[block.kind](block.inputs, block.outputs)


def shapes(cfg: Any, adversarial: Mapping[str, Any] | None = None) -> Shapes:
    """Path and shape of every parameter, with the discriminator's if `loss.adversarial` is given. Raises ConfigError."""
    found = tree.join({block.prefix: parameters(block) for side in ("encoder", "decoder") for block in plan(cfg, side)})
    return found | (discriminator(adversarial) if adversarial else {})


def parameter_dtypes(cfg: Any, adversarial: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The dtype in which each parameter of `shapes` is computed with."""
    return dtypes.by_path(shapes(cfg, adversarial), cfg.get("compute_dtype", "float32"), FLOAT32)


def discriminator_plan(cfg: Any) -> list[Block]:
    """The discriminator's blocks in order of execution; cfg is `loss.adversarial`. Raises ConfigError."""
    if cfg.dims not in (2, 3):
        raise ConfigError(f"loss.adversarial.dims is {cfg.dims}, expected 2 (frames by themselves) or 3 (clips)")
    if cfg.channels < 1:
        raise ConfigError(f"loss.adversarial.channels is {cfg.channels}, expected at least 1")
    widths = [3, *(cfg.channels * 2**level for level in range(DISCRIMINATOR_LEVELS)), 1]
    pairs = itertools.pairwise(widths)
    return [Block("patches", f"{DISCRIMINATOR}{level}", *pair, level) for level, pair in enumerate(pairs)]


def discriminator_parameters(cfg: Any, block: Block) -> Shapes:
    """Name, below the block's prefix, and shape of each parameter of a block of the discriminator."""
    found = _conv(block.inputs, block.outputs)
    if cfg.dims == 2:
        found = {name: shape for name, shape in found.items() if name.startswith("spatial")}
    return found | (tree.join({"norm": _norm(block.inputs)}) if block.level else {})


def discriminator(cfg: Any) -> Shapes:
    """Path and shape of every parameter of the discriminator; cfg is `loss.adversarial`."""
    return tree.join({block.prefix: discriminator_parameters(cfg, block) for block in discriminator_plan(cfg)})


def _check(cfg: Any) -> None:
    for m in cfg.channel_multipliers:
        if cfg.base_channels * m % cfg.norm_groups:
            raise ConfigError(
                f"tae.norm_groups is {cfg.norm_groups}, which does not divide the width "
                f"{cfg.base_channels} x {m} = {cfg.base_channels * m}: choose a divisor of every width"
            )
    if cfg.temporal_upsample_padding not in ("replicate", "zeros"):
        raise ConfigError(
            f"tae.temporal_upsample_padding is {cfg.temporal_upsample_padding!r}, expected 'replicate' or 'zeros'"
        )
