"""Checkpoints of the MindSpore Movie Gen example (mindone, examples/moviegen) as parameters of our models."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moviegen.errors import ConfigError
from moviegen.models.tae import model as tae_model
from moviegen.models.transformer import model as transformer_model
from moviegen.nn import backend
from moviegen.nn.positions import resize_table
from moviegen.nn.tree import match

# Our path of every parameter outside the layers, by the seed's name.
GLOBAL = {
    "latent_embedder.proj.weight": "patch",
    "pos_embedding_table_t.embedding_table": "position/t",
    "pos_embedding_table_h.embedding_table": "position/h",
    "pos_embedding_table_w.embedding_table": "position/w",
    "timestep_embedder.mlp.0.weight": "time/in",
    "timestep_embedder.mlp.2.weight": "time/out",
    "adaLN_modulation.1.weight": "modulation",
    "final_layer.scale_shift_table": "final/modulation",
    "final_layer.input_layernorm.weight": "final/norm",
    "final_layer.proj.weight": "final/proj",
    **{f"text_projector.{e}_linear.weight": f"text/{e}/proj" for e in transformer_model.ENCODERS},
    **{f"text_projector.{e}_layernorm.weight": f"text/{e}/norm" for e in transformer_model.ENCODERS},
}
LAYER = {
    "scale_shift_table": "modulation",
    "input_layernorm.weight": "attn/norm",
    "post_attention_layernorm.weight": "mlp/norm",
    **{f"self_attn.{name}_proj.weight": f"attn/{name}" for name in "qkvo"},
    **{f"cross_attn.{name}_proj.weight": f"cross/{name}" for name in "qkvo"},
    **{f"mlp.{name}_proj.weight": f"mlp/{name}" for name in ("gate", "up", "down")},
}


def strip_prefixes(arrays: Mapping[str, Any], components: str) -> dict[str, Any]:
    """Names without any leading run of the components ("ema|network|model"), as training wrappers put before them.

    Raises ConfigError where two names fall together: the file then holds several sets of weights, say EMA beside plain.
    """
    origin: dict[str, str] = {}
    stripped = {}
    for name, value in arrays.items():
        short = re.sub(rf"^(?:(?:{components})\.)+", "", name)
        if short in origin:
            raise ConfigError(
                f"{origin[short]!r} and {name!r} are the same parameter of two sets of weights: pass the arrays of one "
                "of the two prefixes alone"
            )
        origin[short] = name
        stripped[short] = value
    return stripped


def transformer(arrays: Mapping[str, np.ndarray], cfg: Any) -> dict:
    """Parameters of our transformer from the seed's arrays by name, in float32.

    Takes any run of the prefixes `ema.`, `network.`, `model.`; a linear or a convolutional patch embedder; position
    tables of another length, which are interpolated. Raises ConfigError naming every missing, extra or wrongly shaped
    parameter.
    """
    wanted = transformer_model.shapes(cfg)
    found, unknown = {}, []
    for name, value in strip_prefixes(arrays, "ema|network|model").items():
        path = _path(name)
        if path is None:
            unknown.append(name)
            continue
        value = np.asarray(value).astype(np.float32)
        if path.endswith("/modulation") and path.startswith("blocks/") and value.shape[:1] == (1,):
            value = value[0]
        elif path == "patch" and value.ndim == 5:
            value = value.reshape(len(value), -1)
        elif path.startswith("position/") and value.ndim == 2 and len(value) and path in wanted:
            value = resize_table(value, wanted[path][0])
        found[path] = value
    ours = any(path.endswith(("cross/norm", "/norm_bias")) for path in wanted.keys() - found.keys())
    match(found, unknown, wanted, "; the seed's weights need a config with compat='seed'" if ours else "")
    return backend.to_tensors(found)


def _path(name: str) -> str | None:
    """Our path of the seed's (unprefixed) name, or None."""
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if layer is None:
        return GLOBAL.get(name)
    return f"blocks/{layer[1]}/{LAYER[layer[2]]}" if layer[2] in LAYER else None


# Path of the seed's autoencoder below its encoder or decoder -> ours; the last component of a name follows TAE_LEAVES.
TAE_MODULES = (
    (r"\.conv_spat$", "/spatial"),
    (r"\.conv_temp$", "/temporal"),
    (r"\.(down|up)sample_(spat|temp)\.conv$", lambda m: f".{m[1]}sample/{'spatial' if m[2] == 'spat' else 'temporal'}"),
    (r"\.mid\.block_([12])", lambda m: f".mid.block.{int(m[1]) - 1}"),
    (r"\.mid\.attn_1\.([01])\.", lambda m: f".mid.{('spatial', 'temporal')[int(m[1])]}_attention."),
    (r"attention\.to_([qkv])$", r"attention.\1"),
    (r"attention\.proj_out$", "attention.out"),
    (r"\.nin_shortcut", ".shortcut"),
    (r"^(encoder|decoder)\.norm_out$", r"\1.head.norm"),
    (r"^(encoder|decoder)\.conv_out", r"\1.head.conv"),
)
TAE_LEAVES = {"weight": "w", "bias": "b", "gamma": "scale", "beta": "bias"}


def tae(arrays: Mapping[str, np.ndarray], cfg: Any) -> dict:
    """Parameters of our autoencoder from the seed's arrays by name, in float32.

    Takes any run of the prefixes `ema.`, `network.`, `model.`, `autoencoder.`, the wrapper's `_backbone.` anywhere, and
    files with or without the unused `temb_proj`. Raises ConfigError naming every missing, extra or wrongly shaped
    parameter.
    """
    cleaned = {name.replace("_backbone.", ""): value for name, value in arrays.items()}
    found = {}
    for name, value in strip_prefixes(cleaned, "ema|network|model|autoencoder").items():
        if ".temb_proj." in name:
            continue  # never read by the seed's model either
        module, _, leaf = name.rpartition(".")
        for pattern, replacement in TAE_MODULES:
            module = re.sub(pattern, replacement, module)
        path = f"{module}/{TAE_LEAVES.get(leaf, leaf)}".replace(".", "/")
        found[path] = _tae_array(path, np.asarray(value).astype(np.float32))
    match(found, [], tae_model.shapes(cfg), "")
    return backend.to_tensors(found)


def _tae_array(path: str, value: np.ndarray) -> np.ndarray:
    if path.endswith("temporal/w") and value.ndim == 4 and value.shape[2] == 1:
        return value[:, :, 0]  # the seed's 1-D kernels are 1 x k
    if "attention/" in path and value.ndim == 4:
        return value.reshape(value.shape[:2])  # its 1x1 convolutions are projections
    return value
