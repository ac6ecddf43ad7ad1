"""The temporal autoencoder's compiled blocks: functions, or builders of functions, of (parameters, x (b c t h w))."""

import functools

from mindspore import ops

from moviegen.nn import layers
from moviegen.nn.kernels import (
    doubling_conv,
    group_norm,
    group_norm_silu,
    halving_conv,
    spatial_conv,
    temporal_conv,
    temporal_doubling_conv,
)


def conv(p, x):
    """A convolution over space, then one over time."""
    return temporal_conv(spatial_conv(x, p["spatial/w"], p["spatial/b"]), p["temporal/w"], p["temporal/b"])


def downsample(p, x):
    """Halves height, width and time, t -> ceil(t/2)."""
    return temporal_conv(halving_conv(x, p["spatial/w"], p["spatial/b"]), p["temporal/w"], p["temporal/b"], 2)


@functools.lru_cache
def make_norm_conv(groups: int):
    def norm_conv(p, x):
        h = group_norm_silu(x, p["norm/scale"], p["norm/bias"], groups)
        h = spatial_conv(h, p["conv/spatial/w"], p["conv/spatial/b"])
        return temporal_conv(h, p["conv/temporal/w"], p["conv/temporal/b"])

    return norm_conv


@functools.lru_cache
def make_attention(groups: int, temporal: bool):
    """Single-head self-attention over a frame's pixels, or over a pixel's frames, with GroupNorm and a residual."""
    order = (0, 3, 4, 2, 1) if temporal else (0, 2, 3, 4, 1)  # b h w t c, or b t h w c
    back = (0, 4, 3, 1, 2) if temporal else (0, 4, 1, 2, 3)

    def attention(p, x):
        h = ops.transpose(group_norm(x, p["norm/scale"], p["norm/bias"], groups), order)
        b, i, j, k, c = h.shape
        rows = ops.reshape(h, (b * i * j, 1, k, c) if temporal else (b * i, 1, j * k, c))
        q = layers.linear(rows, p["q/w"], p["q/b"])
        key = layers.linear(rows, p["k/w"], p["k/b"])
        v = layers.linear(rows, p["v/w"], p["v/b"])
        out = layers.linear(layers.attention(q, key, v), p["out/w"], p["out/b"])
        return x + ops.transpose(ops.reshape(out, (b, i, j, k, c)), back)

    return attention


@functools.lru_cache
def make_upsample(padding: str):
    def upsample(p, x):
        x = doubling_conv(x, p["spatial/w"], p["spatial/b"])
        return temporal_doubling_conv(x, p["temporal/w"], p["temporal/b"], padding)

    return upsample
