"""Checkpoints of the MindSpore Movie Gen example (mindone, examples/moviegen) as parameters of our models."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from moviegen.convert.names import by_layers, strip_prefixes, swap
from moviegen.convert.tae_names import SEED
from moviegen.models.tae import model as tae_model
from moviegen.models.transformer import shapes as transformer_shapes
from moviegen.nn import backend
from moviegen.nn.layers import resize_table
from moviegen.nn.tree import match
from moviegen.storage.arraystore import Lazy

# Our path of every parameter outside the layers, by the seed's name.
GLOBAL = {
    "latent_embedder.proj.weight": "patch",
    **{f"pos_embedding_table_{axis}.embedding_table": f"position/{axis}" for axis in "thw"},
    "timestep_embedder.mlp.0.weight": "time/in",
    "timestep_embedder.mlp.2.weight": "time/out",
    "adaLN_modulation.1.weight": "modulation",
    "final_layer.scale_shift_table": "final/modulation",
    "final_layer.input_layernorm.weight": "final/norm",
    "final_layer.proj.weight": "final/proj",
    **{f"text_projector.{e}_linear.weight": f"text/{e}/proj" for e in transformer_shapes.ENCODERS},
    **{f"text_projector.{e}_layernorm.weight": f"text/{e}/norm" for e in transformer_shapes.ENCODERS},
}
LAYER = {
    "scale_shift_table": "modulation",
    "input_layernorm.weight": "attn/norm",
    "post_attention_layernorm.weight": "mlp/norm",
    **{f"self_attn.{name}_proj.weight": f"attn/{name}" for name in "qkvo"},
    **{f"cross_attn.{name}_proj.weight": f"cross/{name}" for name in "qkvo"},
    **{f"mlp.{name}_proj.weight": f"mlp/{name}" for name in ("gate", "up", "down")},
}


def transformer(arrays: Mapping[str, np.ndarray], cfg: Any) -> dict:
    """Returns the parameters of our transformer, tensors in float32, as `lazy_transformer` does."""
    return backend.to_tensors(lazy_transformer(arrays, cfg))


def lazy_transformer(arrays: Mapping[str, np.ndarray | Lazy], cfg: Any) -> dict[str, Lazy]:
    """Returns the parameters of our transformer from the seed's arrays by name, float32, each read when it is needed.

    Takes any run of the prefixes `ema.`, `network.`, `model.`; a linear or a convolutional patch embedder; position
    tables of another length, which are interpolated. Raises ConfigError naming every missing, extra or wrongly shaped
    parameter, before the first is read.
    """
    wanted = transformer_shapes.shapes(cfg)
    arrays = strip_prefixes(arrays, "ema|network|model")
    names, unknown = by_layers(arrays, r"layers\.(\d+)\.(.+)", LAYER, GLOBAL)
    found = {}
    for path, name in names.items():
        shape = _shape(path, arrays[name].shape, wanted)
        found[path] = Lazy(shape, np.dtype(np.float32), functools.partial(_read, path, arrays[name], shape))
    ours = any(path.endswith(("cross/norm", "/norm_bias")) for path in wanted.keys() - found.keys())
    match(found, unknown, wanted, "; the seed's weights need a config with compat='seed'" if ours else "")
    return found


def _shape(path: str, shape: tuple[int, ...], wanted: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of our array, given the seed's."""
    if path.startswith("blocks/") and path.endswith("/modulation") and shape[:1] == (1,):
        return shape[1:]
    if path == "patch" and len(shape) == 5:
        return shape[0], math.prod(shape[1:])
    if path.startswith("position/") and len(shape) == 2 and shape[0] and path in wanted:
        return wanted[path][0], shape[1]
    return shape


def _read(path: str, array: np.ndarray | Lazy, shape: tuple[int, ...]) -> np.ndarray:
    value = np.asarray(array).astype(np.float32)
    return resize_table(value, shape[0]) if path.startswith("position/") else value.reshape(shape)


def tae(arrays: Mapping[str, np.ndarray], cfg: Any) -> dict:
    """Returns the parameters of our autoencoder from the seed's arrays by name, in float32.

    Takes any run of the prefixes `ema.`, `network.`, `model.`, `autoencoder.`, the wrapper's `_backbone.` anywhere, and
    files with or without the unused `temb_proj`. Raises ConfigError naming every missing, extra or wrongly shaped
    parameter.
    """
    cleaned = {name.replace("_backbone.", ""): value for name, value in arrays.items()}
    found = {}
    for name, value in strip_prefixes(cleaned, "ema|network|model|autoencoder").items():
        if ".temb_proj." in name:
            continue  # never read by the seed's model either
        path = swap(name, SEED, back=True).replace(".", "/")
        found[path] = _tae_array(path, np.asarray(value).astype(np.float32))
    match(found, [], tae_model.shapes(cfg), "")
    return backend.to_tensors(found)


def _tae_array(path: str, value: np.ndarray) -> np.ndarray:
    if path.endswith("temporal/w") and value.ndim == 4 and value.shape[2] == 1:
        return value[:, :, 0]  # the seed's 1-D kernels are 1 x k
    if "attention/" in path and value.ndim == 4:
        return value.reshape(value.shape[:2])  # its 1x1 convolutions are projections
    return value
