"""Blocks whose arithmetic is not that of a convolution alone, against the same written out in numpy."""

import numpy as np
import pytest

from moviegen.models.tae import blocks
from moviegen.nn import layerwise
from tests.numeric import assert_close


def draw(seed, **shapes):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def identity_conv(c):
    """A 3x3 and a temporal convolution that pass their input on."""
    spatial, temporal = np.zeros((c, c, 3, 3), np.float32), np.zeros((c, c, 3), np.float32)
    spatial[:, :, 1, 1] = temporal[:, :, 1] = np.eye(c)
    bias = np.zeros(c, np.float32)
    return {"spatial/w": spatial, "spatial/b": bias, "temporal/w": temporal, "temporal/b": bias}


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_upsampling_repeats_every_value_in_a_block_of_eight(padding):
    x = draw(0, x=(2, 3, 2, 3, 4))["x"]
    y = layerwise.run(blocks.make_upsample(padding, "float32"), identity_conv(3), x)
    assert_close(y, x.repeat(2, 2).repeat(2, 3).repeat(2, 4), tolerance=1e-6)


@pytest.mark.parametrize("frames, halved", [(1, 1), (4, 2), (5, 3)])
def test_downsampling_takes_every_second_value(frames, halved):
    x = draw(1, x=(2, 3, frames, 4, 6))["x"]
    p = identity_conv(3)
    p["spatial/w"] = np.roll(
        p["spatial/w"], (-1, -1), (2, 3)
    )  # padded right and below: the first tap is the pixel itself
    y = layerwise.run(blocks.make_downsample("float32"), p, x)
    assert y.shape == (2, 3, halved, 2, 3)
    assert_close(y, x[:, :, ::2, ::2, ::2], tolerance=1e-6)


@pytest.mark.parametrize("temporal", [False, True])
def test_attention_looks_at_a_frame_s_pixels_or_a_pixel_s_frames(temporal):
    c, x = 4, draw(2, x=(2, 4, 3, 2, 3))["x"]
    p = draw(3, **{f"{name}/w": (c, c) for name in ("q", "k", "v", "out")})
    p |= draw(4, **{f"{name}/b": (c,) for name in ("q", "k", "v", "out")}) | draw(5, **{"norm/bias": (c,)})
    p["norm/scale"] = np.array([0.5, 1, 1.5, 2], np.float32)

    grouped = x.reshape(2, 2, -1).astype(np.float64)
    normed = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-6)
    h = normed.reshape(x.shape) * p["norm/scale"].reshape(-1, 1, 1, 1) + p["norm/bias"].reshape(-1, 1, 1, 1)
    expected = x.astype(np.float64)
    sets = [(i, slice(None), j, k) for i in range(2) for j in range(2) for k in range(3)]
    for i, t, j, k in sets if temporal else [(i, t, slice(None), slice(None)) for i in range(2) for t in range(3)]:
        tokens = h[i, :, t, j, k].reshape(c, -1).T
        q, key, v = (tokens @ p[f"{name}/w"].T + p[f"{name}/b"] for name in "qkv")
        weights = np.exp(q @ key.T / c**0.5)
        out = weights / weights.sum(1, keepdims=True) @ v @ p["out/w"].T + p["out/b"]
        expected[i, :, t, j, k] += out.T.reshape(expected[i, :, t, j, k].shape)
    assert_close(layerwise.run(blocks.make_attention(2, temporal, "float32"), p, x), expected, tolerance=1e-5)


def test_equal_settings_give_the_same_function():
    """Else every layer would be compiled by itself."""
    assert blocks.make_norm_conv(4, "float32") is blocks.make_norm_conv(4, "float32")
    assert blocks.make_norm_conv(4, "float32") is not blocks.make_norm_conv(8, "float32")
