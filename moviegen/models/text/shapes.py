"""The shapes of the text encoders' parameters, by their configs alone."""

from typing import Any

from moviegen.errors import ConfigError
from moviegen.nn import tree

T5_ACTIVATIONS = ("gelu", "silu")  # of the gate; gelu in its tanh form
FLOAT32 = r"(^|/)norm(/|$)|/b$|^position/|^distance$"  # parameters that are float32 whatever the compute dtype
CLIP_ACTIVATIONS = ("quick_gelu", "gelu")


def t5(cfg: Any) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter. Raises ConfigError for an activation that no T5 of ours has."""
    _check_activation(cfg, T5_ACTIVATIONS)
    d, inner = cfg.width, cfg.num_heads * cfg.head_width
    table = {"embedding": (cfg.vocab_size, d), "distance": (cfg.distance_buckets, cfg.num_heads)}
    for i in range(cfg.num_layers):
        block = {"attn/norm": (d,), **{f"attn/{name}": (inner, d) for name in "qkv"}, "attn/o": (d, inner)}
        block |= {"mlp/norm": (d,), "mlp/gate": (cfg.ffn_size, d), "mlp/up": (cfg.ffn_size, d)}
        table |= tree.join({f"blocks/{i}": block | {"mlp/down": (d, cfg.ffn_size)}})
    return table | {"final/norm": (d,)}


def clip(cfg: Any) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter. Raises ConfigError for a config of which no text tower can be built."""
    _check_activation(cfg, CLIP_ACTIVATIONS)
    if cfg.width % cfg.num_heads:
        raise ConfigError(f"num_heads is {cfg.num_heads}, which does not divide width {cfg.width}")
    d = cfg.width
    table = {"embedding": (cfg.vocab_size, d), "position/token": (cfg.positions, d)}
    for i in range(cfg.num_layers):
        block = {f"{norm}/{leaf}": (d,) for norm in ("attn/norm", "mlp/norm") for leaf in ("scale", "bias")}
        for name in "qkvo":
            block |= {f"attn/{name}/w": (d, d), f"attn/{name}/b": (d,)}
        block |= {"mlp/up/w": (cfg.ffn_size, d), "mlp/up/b": (cfg.ffn_size,)}
        table |= tree.join({f"blocks/{i}": block | {"mlp/down/w": (d, cfg.ffn_size), "mlp/down/b": (d,)}})
    return table | {"final/norm/scale": (d,), "final/norm/bias": (d,), "final/projection": (cfg.projection_width, d)}


def _check_activation(cfg: Any, known: tuple[str, ...]) -> None:
    if cfg.activation not in known:
        raise ConfigError(f"activation is {cfg.activation!r}, expected one of {', '.join(known)}")
