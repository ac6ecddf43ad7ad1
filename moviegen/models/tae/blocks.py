"""The temporal autoencoder's compiled blocks: builders of functions of (parameters, x (b c t h w) float32).

Convolutions, projections and attention are in the compute `dtype`, norms in float32. So is what a block returns: residuals
are added to it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import mindspore as ms
from mindspore import ops

from moviegen.nn import kernels, layers


def convolve(conv: Callable, p: Mapping[str, Any], name: str, x: ms.Tensor, dtype: str, *settings: Any) -> ms.Tensor:
    """A convolution of kernels.py with the weights `name` of p, in the compute dtype."""
    w = layers.to_compute(p[name + "/w"], dtype)
    return conv(layers.to_compute(x, dtype), w, ops.cast(p[name + "/b"], w.dtype), *settings)


@functools.lru_cache
def make_conv(dtype: str):
    """A convolution over space, then one over time."""

    def conv(p, x):
        x = convolve(kernels.spatial_conv, p, "spatial", x, dtype)
        return ops.cast(convolve(kernels.temporal_conv, p, "temporal", x, dtype), ms.float32)

    return conv


@functools.lru_cache
def make_downsample(dtype: str):
    """Halves height, width and time, t -> ceil(t/2)."""

    def downsample(p, x):
        x = convolve(kernels.halving_conv, p, "spatial", x, dtype)
        return ops.cast(convolve(kernels.temporal_conv, p, "temporal", x, dtype, 2), ms.float32)

    return downsample


@functools.lru_cache
def make_norm_conv(groups: int, dtype: str):
    def norm_conv(p, x):
        x = kernels.group_norm_silu(x, p["norm/scale"], p["norm/bias"], groups)
        x = convolve(kernels.spatial_conv, p, "conv/spatial", x, dtype)
        return ops.cast(convolve(kernels.temporal_conv, p, "conv/temporal", x, dtype), ms.float32)

    return norm_conv


@functools.lru_cache
def make_attention(groups: int, temporal: bool, dtype: str):
    """Single-head self-attention over a frame's pixels, or over a pixel's frames, with GroupNorm and a residual."""
    order = (0, 3, 4, 2, 1) if temporal else (0, 2, 3, 4, 1)  # b h w t c, or b t h w c
    back = (0, 4, 3, 1, 2) if temporal else (0, 4, 1, 2, 3)

    def attention(p, x):
        h = ops.transpose(kernels.group_norm(x, p["norm/scale"], p["norm/bias"], groups), order)
        b, i, j, k, c = h.shape
        rows = ops.reshape(h, (b * i * j, 1, k, c) if temporal else (b * i, 1, j * k, c))
        q = layers.linear(rows, p["q/w"], p["q/b"], dtype)
        key = layers.linear(rows, p["k/w"], p["k/b"], dtype)
        v = layers.linear(rows, p["v/w"], p["v/b"], dtype)
        out = ops.cast(layers.linear(layers.attention(q, key, v), p["out/w"], p["out/b"], dtype), ms.float32)
        return x + ops.transpose(ops.reshape(out, (b, i, j, k, c)), back)

    return attention


@functools.lru_cache
def make_upsample(padding: str, dtype: str):
    def upsample(p, x):
        x = convolve(kernels.doubling_conv, p, "spatial", x, dtype)
        return ops.cast(convolve(kernels.temporal_doubling_conv, p, "temporal", x, dtype, padding), ms.float32)

    return upsample
