"""Our autoencoder's arrays under the names that others use: the seed's, and diffusers' for its image layers."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moviegen.convert.names import swap
from moviegen.nn import backend

# Pieces of our paths and theirs, for `names.swap`.
SEED = (
    ("sample.spatial.", "sample_spat.conv."),
    ("sample.temporal.", "sample_temp.conv."),
    (".spatial.", ".conv_spat."),
    (".temporal.", ".conv_temp."),
    (".mid.block.0.", ".mid.block_1."),
    (".mid.block.1.", ".mid.block_2."),
    (".spatial_attention.", ".attn_1.0."),
    (".temporal_attention.", ".attn_1.1."),
    *((f".attn_1.1.{name}.", f".attn_1.1.to_{name}.") for name in "qkv"),
    (".out.", ".proj_out."),
    (".shortcut.", ".nin_shortcut."),
    (".head.norm.", ".norm_out."),
    (".head.conv.", ".conv_out."),
    (".scale.", ".gamma."),
    (".bias.", ".beta."),
    (".w.", ".weight."),
    (".b.", ".bias."),
)
# Without the last component and our `spatial`, and with diffusers' levels of the decoder (`turned`).
DIFFUSERS = (
    (".block.", ".resnets."),
    (".spatial_attention.", ".attentions.0."),
    (".mid.", ".mid_block."),
    (".attentions.0.norm.", ".attentions.0.group_norm."),
    (".attentions.0.out.", ".attentions.0.to_out.0."),
    *((f".attentions.0.{name}.", f".attentions.0.to_{name}.") for name in "qkv"),
    (".down.", ".down_blocks."),
    (".up.", ".up_blocks."),
    ("sample.", "samplers.0.conv."),
    (".shortcut.", ".conv_shortcut."),
    (".head.norm.", ".conv_norm_out."),
    (".head.conv.", ".conv_out."),
)


def turned(name: str, levels: int) -> str:
    """Returns a name of diffusers with the level of its decoder's block counted from the other end."""
    return re.sub(r"(?<=\.up_blocks\.)\d+", lambda match: str(levels - 1 - int(match[0])), name)


def export(params: Mapping[str, Any], cfg: Any, naming: str) -> dict[str, np.ndarray]:
    """Returns arrays, float32, by their names in "moviegen", "seed" or "diffusers" (which has the image layers alone)."""
    arrays = {path: value.astype(np.float32) for path, value in backend.to_numpy(params).items()}
    if naming == "seed":
        return {swap(path, SEED): _shaped(path, value) for path, value in arrays.items()}
    if naming == "diffusers":
        levels = len(cfg.channel_multipliers)
        return {_diffusers(path, levels): value for path, value in arrays.items() if "/temporal" not in path}
    return arrays


def _diffusers(path: str, levels: int) -> str:
    module, _, leaf = path.rpartition("/")
    name = turned(swap(module.removesuffix("/spatial"), DIFFUSERS), levels)
    return f"{name}.{'weight' if leaf in ('w', 'scale') else 'bias'}"


def _shaped(path: str, value: np.ndarray) -> np.ndarray:
    if path.endswith("temporal/w"):
        return value[:, :, None]  # the seed's 1-D kernels are 1 x k
    if "spatial_attention/" in path and value.ndim == 2:
        return value[:, :, None, None]  # its projections are 1x1 convolutions
    return value
