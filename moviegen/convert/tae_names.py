"""Our autoencoder's arrays under the names that others use: the seed's, and diffusers' for its image layers."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moviegen.convert.names import rename
from moviegen.nn import backend

NAMINGS = ("moviegen", "seed", "diffusers")
# Applied in order to our path with dots for slashes, without its last component.
_SEED = (
    (r"\.(down|up)sample\.spatial$", r".\1sample_spat.conv"),
    (r"\.(down|up)sample\.temporal$", r".\1sample_temp.conv"),
    (r"\.spatial$", ".conv_spat"),
    (r"\.temporal$", ".conv_temp"),
    (r"\.mid\.block\.(\d)", lambda m: f".mid.block_{int(m[1]) + 1}"),
    (r"\.spatial_attention\.out$", ".attn_1.0.proj_out"),
    (r"\.temporal_attention\.out$", ".attn_1.1.proj_out"),
    (r"\.temporal_attention\.([qkv])$", r".attn_1.1.to_\1"),
    (r"\.spatial_attention\.", ".attn_1.0."),
    (r"\.temporal_attention\.", ".attn_1.1."),
    (r"\.shortcut", ".nin_shortcut"),
    (r"\.head\.norm$", ".norm_out"),
    (r"\.head\.conv", ".conv_out"),
)
_DIFFUSERS = (
    (r"\.spatial$", ""),
    (r"\.mid\.block\.", ".mid_block.resnets."),
    (r"\.mid\.spatial_attention\.norm$", ".mid_block.attentions.0.group_norm"),
    (r"\.mid\.spatial_attention\.out$", ".mid_block.attentions.0.to_out.0"),
    (r"\.mid\.spatial_attention\.([qkv])$", r".mid_block.attentions.0.to_\1"),
    (r"\.down\.(\d+)\.", r".down_blocks.\1."),
    (r"\.block\.", ".resnets."),
    (r"\.(down|up)sample$", r".\1samplers.0.conv"),
    (r"\.shortcut", ".conv_shortcut"),
    (r"\.head\.norm$", ".conv_norm_out"),
    (r"\.head\.conv", ".conv_out"),
)
_LEAVES = {"w": "weight", "b": "bias"}
_NORMS = {"seed": {"scale": "gamma", "bias": "beta"}, "diffusers": {"scale": "weight", "bias": "bias"}}


def export(params: Mapping[str, Any], cfg: Any, naming: str) -> dict[str, np.ndarray]:
    """Returns arrays, float32, by their names in "moviegen", "seed" or "diffusers": the inverse of `seed.tae`, `sd35.tae`.

    diffusers has no temporal layers, so that naming holds the image layers alone.
    """
    arrays = {path: value.astype(np.float32) for path, value in backend.to_numpy(params).items()}
    if naming == "moviegen":
        return arrays
    if naming == "diffusers":
        arrays = {path: value for path, value in arrays.items() if "/temporal" not in path}
    levels = len(cfg.channel_multipliers)
    return {_name(path, naming, levels): _shaped(path, value, naming) for path, value in arrays.items()}


def _name(path: str, naming: str, levels: int) -> str:
    module, _, leaf = path.replace("/", ".").rpartition(".")
    module = rename(module, _SEED if naming == "seed" else _DIFFUSERS)
    if naming == "diffusers":
        module = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", module)
    return f"{module}.{_LEAVES.get(leaf) or _NORMS[naming][leaf]}"


def _shaped(path: str, value: np.ndarray, naming: str) -> np.ndarray:
    if naming == "seed" and path.endswith("temporal/w"):
        return value[:, :, None]  # its 1-D kernels are 1 x k
    if naming == "seed" and "spatial_attention/" in path and value.ndim == 2:
        return value[:, :, None, None]  # its projections are 1x1 convolutions
    return value
