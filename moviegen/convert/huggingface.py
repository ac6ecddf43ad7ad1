"""Text encoders in Hugging Face's layout: config.json as our config, arrays by their names as our parameters.

Arrays are read, cast and placed one at a time. What a file holds besides the encoder (a decoder, a vision tower) is ignored.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moviegen.convert.names import by_layers
from moviegen.errors import ConfigError
from moviegen.models.text import clip as clip_model, t5 as t5_model
from moviegen.models.text.shapes import FLOAT32
from moviegen.nn import backend, dtypes
from moviegen.nn.tree import match
from moviegen.storage import arraystore

Place = Callable[[str, np.ndarray], Any]

_T5_BLOCK = {
    "0.layer_norm.weight": "attn/norm",
    **{f"0.SelfAttention.{name}.weight": f"attn/{name}" for name in "qkvo"},
    "1.layer_norm.weight": "mlp/norm",
    "1.DenseReluDense.wi_0.weight": "mlp/gate",
    "1.DenseReluDense.wi_1.weight": "mlp/up",
    "1.DenseReluDense.wo.weight": "mlp/down",
}
_T5_REST = {
    "shared.weight": "embedding",
    "encoder.embed_tokens.weight": "embedding",  # the same tensor; a file may hold either or both
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "distance",
    "encoder.final_layer_norm.weight": "final/norm",
}
_T5_OTHERS = r"decoder\.|lm_head\."
_CLIP_BLOCK = {
    **{f"self_attn.{name}_proj.{leaf}": f"attn/{name}/{leaf[0]}" for name in "qkv" for leaf in ("weight", "bias")},
    **{f"self_attn.out_proj.{leaf}": f"attn/o/{leaf[0]}" for leaf in ("weight", "bias")},
    "layer_norm1.weight": "attn/norm/scale",
    "layer_norm1.bias": "attn/norm/bias",
    "layer_norm2.weight": "mlp/norm/scale",
    "layer_norm2.bias": "mlp/norm/bias",
    **{f"mlp.fc1.{leaf}": f"mlp/up/{leaf[0]}" for leaf in ("weight", "bias")},
    **{f"mlp.fc2.{leaf}": f"mlp/down/{leaf[0]}" for leaf in ("weight", "bias")},
}
_CLIP_REST = {
    "text_model.embeddings.token_embedding.weight": "embedding",
    "text_model.embeddings.position_embedding.weight": "position/token",
    "text_model.final_layer_norm.weight": "final/norm/scale",
    "text_model.final_layer_norm.bias": "final/norm/bias",
    "text_projection.weight": "final/projection",
}
_CLIP_OTHERS = r"vision_model\.|visual_projection\.|logit_scale$|text_model\.embeddings\.position_ids$"
# A layer is a dozen shapes: 10^9 of them would fill the memory before any is compared with a file's.
_MOST_LAYERS, _MOST_OF_A_SIZE = 1000, 10_000_000
_GATES = {"gated-gelu": "gelu", "gated-silu": "silu"}
# Keys of our configs by their keys in config.json.
_T5_KEYS = {
    "vocab_size": "vocab_size",
    "width": "d_model",
    "head_width": "d_kv",
    "ffn_size": "d_ff",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "activation": "feed_forward_proj",
}
# The same, and what config.json leaves out of `text_config` where it is the library's default.
_CLIP_KEYS = {
    "vocab_size": ("vocab_size", 49408),
    "width": ("hidden_size", 512),
    "ffn_size": ("intermediate_size", 2048),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 8),
    "positions": ("max_position_embeddings", 77),
    "projection_width": ("projection_dim", 512),
}


def t5_config(values: Mapping[str, Any]) -> ConfigDict:
    """Returns our config of a T5 encoder from its config.json. Raises ConfigError naming a key that is missing or unknown."""
    config = _config(values, _T5_KEYS)
    if config.activation not in _GATES:
        raise ConfigError(
            f"feed_forward_proj is {config.activation!r}, expected one of {', '.join(_GATES)}: ByT5, UL2 and T5 1.1 have "
            "these, the first T5 has not"
        )
    config.activation = _GATES[config.activation]
    config.distance_buckets = values.get("relative_attention_num_buckets", 32)
    config.max_distance = values.get("relative_attention_max_distance", 128)
    config.norm_eps = values.get("layer_norm_epsilon", 1e-6)
    return config


def clip_text_config(values: Mapping[str, Any]) -> ConfigDict:
    """Returns our config of CLIP's text tower from the config.json of the tower or of all of CLIP. Raises ConfigError."""
    if "text_config" in values:
        outside = {key: values[key] for key in ("projection_dim",) if key in values}
        values = {**dict(_CLIP_KEYS.values()), **values["text_config"], **outside}
    config = _config(values, {ours: theirs for ours, (theirs, _) in _CLIP_KEYS.items()})
    config.activation = values.get("hidden_act", "quick_gelu")
    config.norm_eps = values.get("layer_norm_eps", 1e-5)
    config.end_token = values.get("eos_token_id", 49407)
    clip_model.shapes(config)
    return config


def t5_names(arrays: Mapping[str, Any], cfg: Any) -> dict[str, str]:
    """Returns {path: name in `arrays`, whose shapes alone are read} of a T5 encoder. Raises ConfigError as `match` does."""
    own = [name for name in arrays if not re.match(_T5_OTHERS, name)]
    names, unknown = by_layers(own, r"encoder\.block\.(\d+)\.layer\.(.+)", _T5_BLOCK, _T5_REST)
    match({path: arrays[name] for path, name in names.items()}, unknown, t5_model.shapes(cfg), "")
    return names


def clip_text_names(arrays: Mapping[str, Any], cfg: Any) -> dict[str, str]:
    """Maps paths to names as `t5_names` does, for CLIP's text tower; its position table may be shorter than cfg.positions."""
    own = [name for name in arrays if not re.match(_CLIP_OTHERS, name)]
    names, unknown = by_layers(own, r"text_model\.encoder\.layers\.(\d+)\.(.+)", _CLIP_BLOCK, _CLIP_REST)
    wanted = clip_model.shapes(cfg)
    table = arrays[names["position/token"]].shape if "position/token" in names else ()
    if len(table) == 2 and 2 <= table[0] < cfg.positions:
        wanted["position/token"] = (table[0], cfg.width)
    match({path: arrays[name] for path, name in names.items()}, unknown, wanted, "")
    return names


def t5(arrays: Mapping[str, Any], cfg: Any, dtype: str = "float32", place: Place | None = None) -> dict:
    """Returns the parameters of a T5 encoder from arrays by name; matrices are stored in `dtype`, the rest is float32.

    `place(path, array)` makes a tensor of each array before the next is read, so that a rank can keep only its shard. Raises
    ConfigError as `t5_names` does.
    """
    return _read(arrays, t5_names(arrays, cfg), dtype, place, {})


def clip_text(arrays: Mapping[str, Any], cfg: Any, dtype: str = "float32", place: Place | None = None) -> dict:
    """Returns the parameters of CLIP's text tower as `t5` does; a shorter position table is stretched."""
    changes = {"position/token": lambda table: clip_model.stretch_positions(table, cfg.positions)}
    return _read(arrays, clip_text_names(arrays, cfg), dtype, place, changes)


def _read(arrays: Mapping, names: dict[str, str], dtype: str, place: Place | None, changes: Mapping) -> dict:
    params, kinds = {}, dtypes.by_path(names, dtype, FLOAT32)
    for path, name in names.items():
        array = dtypes.to_numpy(name, np.asarray(arrays[name]))
        array = arraystore.cast(changes[path](array) if path in changes else array, kinds[path])
        params[path] = place(path, array) if place else backend.tensor(array)
    return params


def _config(values: Mapping[str, Any], keys: Mapping[str, str]) -> ConfigDict:
    missing = [key for key in keys.values() if key not in values]
    if missing:
        raise ConfigError(f"config.json has no {', '.join(missing)}: it is not the config of such an encoder")
    for ours, theirs in keys.items():
        most = _MOST_LAYERS if ours == "num_layers" else _MOST_OF_A_SIZE
        if ours != "activation" and (type(values[theirs]) is not int or not 0 < values[theirs] <= most):
            raise ConfigError(f"{theirs} is {values[theirs]!r:.50}, expected a whole number from 1 to {most}")
    return ConfigDict({ours: values[theirs] for ours, theirs in keys.items()} | {"compute_dtype": "float32"})
