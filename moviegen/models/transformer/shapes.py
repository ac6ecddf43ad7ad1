"""What the transformer's config alone says: the shapes of its parameters and how its sequences are split over ranks."""

import math
from typing import Any, NamedTuple

import numpy as np

from moviegen.errors import ConfigError
from moviegen.nn import dtypes, tree
from moviegen.parallel.mesh import ALONE, Group

ENCODERS = ("ul2", "metaclip", "byt5")  # order of their tokens in the context
AXES = ("t", "h", "w")
TIME_WIDTH = 256
# Parameters that are float32 whatever the compute dtype: gathered, computed with and exported so.
FLOAT32 = r"^(position|time)/|(^|/)(modulation|norm|norm_bias)$"
TEXT = r"^text/|/cross/[kv]$"  # parameters that see the text alone: sampling needs them once, not at every step


def shapes(cfg: Any) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter. Raises ConfigError for a config of which no model can be built."""
    _check(cfg)
    d, patch = cfg.hidden_size, cfg.latent_channels * int(np.prod(cfg.patch_size))
    table = {
        "patch": (d, patch),
        **{f"position/{axis}": (length, d) for axis, length in zip(AXES, cfg.position_lengths, strict=True)},
        "time/in": (d, TIME_WIDTH),
        "time/out": (d, d),
        "modulation": (6 * d, d),
    }
    for name in encoders(cfg):
        table |= {f"text/{name}/proj": (d, cfg.text_dims[name]), f"text/{name}/norm": (d,)}
        if cfg.text_norm == "layer":
            table[f"text/{name}/norm_bias"] = (d,)
    for i in range(cfg.num_layers):
        block = {"modulation": (6, d), "attn/norm": (d,), "mlp/norm": (d,)}
        block |= {f"{kind}/{name}": (d, d) for kind in ("attn", "cross") for name in "qkvo"}
        if cfg.cross_attention_norm:
            block["cross/norm"] = (d,)
        block |= {"mlp/gate": (cfg.ffn_size, d), "mlp/up": (cfg.ffn_size, d), "mlp/down": (d, cfg.ffn_size)}
        table |= tree.join({f"blocks/{i}": block})
    return table | {"final/modulation": (2, d), "final/norm": (d,), "final/proj": (patch, d)}


def parameter_dtypes(cfg: Any) -> dict[str, str]:
    """The dtype in which each parameter is computed with."""
    return dtypes.by_path(shapes(cfg), cfg.get("compute_dtype", "float32"), FLOAT32)


def recomputed(policy: str | int, num_layers: int) -> range:
    """The blocks that a training step computes again whole: "all", "none", or every so many, the first among them."""
    return range(0 if policy == "none" else num_layers)[:: 1 if policy in ("all", "none") else int(policy)]


def encoders(cfg: Any) -> tuple[str, ...]:
    """The text encoders that a model attends to, in the order of their tokens; one of width 0 is left out."""
    return tuple(name for name in ENCODERS if cfg.text_dims.get(name))


class SequenceShard(NamedTuple):
    """This rank's tokens of a sequence of patches on a `grid` (nt, nh, nw); every rank of `group` has as many.

    Where the ranks do not divide the patches, the last tokens are padding: no attention and no loss sees them.
    """

    grid: tuple[int, int, int]
    group: Group = ALONE

    @property
    def patches(self) -> int:
        """Number of patches of the whole sequence."""
        return int(np.prod(self.grid))

    @property
    def tokens(self) -> int:
        """Number of tokens on each rank, padding included."""
        return -(-self.patches // self.group.size)

    @property
    def padding(self) -> int:
        """Number of padding tokens of all ranks together."""
        return self.tokens * self.group.size - self.patches

    def indices(self) -> np.ndarray:
        """Index in the sequence of each of this rank's tokens; those from `patches` on are padding."""
        return np.arange(self.tokens) + self.group.rank * self.tokens

    def boxes(self) -> list[tuple[tuple[int, int], ...]]:
        """This rank's patches as boxes of the grid, ((t0, t1), (h0, h1), (w0, w1)), one behind the other; at most five."""
        _, height, width = self.grid
        at = min(self.group.rank * self.tokens, self.patches)
        stop = min(at + self.tokens, self.patches)
        found = []
        while at < stop:
            left, (t, h, w) = stop - at, map(int, np.unravel_index(at, self.grid))
            if w or left < width:  # a piece of a row
                box = (t, t + 1), (h, h + 1), (w, w + min(width - w, left))
            elif h or left < height * width:  # whole rows of a frame
                box = (t, t + 1), (h, h + min(height - h, left // width)), (0, width)
            else:
                box = (t, t + left // (height * width)), (0, height), (0, width)
            found.append(box)
            at += math.prod(b - a for a, b in box)
        return found


def _check(cfg: Any) -> None:
    if cfg.hidden_size % cfg.num_heads:
        raise ConfigError(f"num_heads is {cfg.num_heads}, which does not divide hidden_size {cfg.hidden_size}")
    if cfg.text_norm not in ("layer", "rms"):
        raise ConfigError(f"text_norm is {cfg.text_norm!r}: expected 'layer' (the paper's) or 'rms' (the seed's)")
    for key in ("patch_size", "position_lengths"):
        if len(cfg[key]) != 3:
            raise ConfigError(f"{key} is {tuple(cfg[key])}: expected three numbers, for time, height and width")
    if not encoders(cfg) or set(cfg.text_dims) - set(ENCODERS):
        given = ", ".join(f"{name}={width}" for name, width in cfg.text_dims.items()) or "nothing"
        raise ConfigError(f"text_dims names {given}: expected widths of {', '.join(ENCODERS)}, 0 for those left out")
