"""Each layer against numpy in float64, and its gradients against finite differences of that."""

import functools

import mindspore as ms
import numpy as np
import pytest

from moviegen.nn import composed, layers, layerwise
from tests.numeric import assert_close, slopes


def numpy_rms_norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def numpy_layer_norm(x, scale, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * scale + bias


def numpy_attention(q, k, v, seen=1):
    scores = np.where(seen, q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]), -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


# MindSpore compiles what has a name and lines of its own.


def rms_norm(x, scale):
    return layers.rms_norm(x, scale, 1e-3)


def layer_norm(x, scale, bias):
    return layers.layer_norm(x, scale, bias, 1e-3)


def embedding_of_8(t):
    return layers.timestep_embedding(t, 8)


def embedding_of_256(t):
    return layers.timestep_embedding(t, 256)


# name -> (function of MindSpore tensors, the same in numpy, shapes of its arguments)
CASES = {
    "linear": (layers.linear, lambda x, w: x @ w.T, dict(x=(2, 3, 5), w=(4, 5))),
    "linear with bias": (layers.linear, lambda x, w, b: x @ w.T + b, dict(x=(2, 3, 5), w=(4, 5), b=(4,))),
    "rms_norm": (
        rms_norm,
        functools.partial(numpy_rms_norm, eps=1e-3),
        dict(x=(2, 3, 8), scale=(8,)),
    ),
    "layer_norm": (
        layer_norm,
        functools.partial(numpy_layer_norm, eps=1e-3),
        dict(x=(2, 3, 8), scale=(8,), bias=(8,)),
    ),
    "attention": (layers.attention, numpy_attention, dict(q=(2, 2, 5, 4), k=(2, 2, 3, 4), v=(2, 2, 3, 4))),
    "attention with a mask": (
        layers.attention,
        numpy_attention,
        dict(q=(2, 2, 5, 4), k=(2, 2, 3, 4), v=(2, 2, 3, 4), seen=(2, 1, 1, 3)),
    ),
    "square_sum": (layers.square_sum, lambda x: (x**2).sum(), dict(x=(2, 3, 4))),
    "square_sums": (layers.square_sums, lambda x: (x**2).sum((1, 2)), dict(x=(2, 3, 4))),
}


def positional(layer):
    def function(p, *inputs):
        return layer(*inputs)

    return function


def arrays(shapes, seed=0):
    rng = np.random.default_rng(seed)
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: np.float32(x > -0.5) if name == "seen" else x for name, x in drawn.items()}


def compare(layer, reference, given, checked=None, tolerance=1e-4):
    """Value and gradients of `layer` against `reference`; the first `checked` of the arrays are differentiated."""
    expected = reference(**{name: value.astype(np.float64) for name, value in given.items()})
    dout = np.random.default_rng(9).standard_normal(expected.shape).astype(np.float32)
    out, pullback = layerwise.vjp(positional(layer), {}, *given.values(), wrt=checked)
    assert_close(out, expected, tolerance=tolerance / 10)
    _, found = pullback(dout)
    numeric = slopes(lambda **a: (reference(**a) * dout).sum(), given)
    for name, gradient in zip(list(given)[:checked], found, strict=True):
        assert_close(gradient, numeric[name], f"d{name}", tolerance)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case):
    layer, reference, shapes = CASES[case]
    compare(layer, reference, arrays(shapes), 3 if case == "attention with a mask" else None)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("rows", [2, 4], ids=["chunks of 2", "4 and 1"])
def test_attention_in_chunks_is_the_same(monkeypatch, rows, masked):
    monkeypatch.setattr(composed, "_SCORE_BYTES", rows * 4 * 2 * 2 * 3)
    names = ("q", "k", "v", "seen") if masked else ("q", "k", "v")
    given = {name: arrays(CASES["attention with a mask"][2])[name] for name in names}
    compare(layers.attention, numpy_attention, given, 3)


def test_a_mask_hides_keys_wholly():
    given = arrays(CASES["attention"][2])
    seen = np.ones((2, 1, 1, 3), np.float32)
    seen[0, ..., 2] = 0
    out = layers.attention(*map(ms.Tensor, given.values()), ms.Tensor(seen)).asnumpy()
    trimmed = numpy_attention(given["q"][:1], given["k"][:1, :, :2], given["v"][:1, :, :2])
    np.testing.assert_allclose(out[:1], trimmed, atol=1e-5)
    np.testing.assert_allclose(out[1:], numpy_attention(*(a[1:] for a in given.values())), atol=1e-5)


def test_attention_of_large_scores_stays_finite():
    given = {name: 100 * value for name, value in arrays(CASES["attention"][2]).items()}
    out = layers.attention(*map(ms.Tensor, given.values())).asnumpy()
    assert_close(out, numpy_attention(*given.values()))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("start, stop", [(0, 6), (0, 4), (3, 6), (1, 3)])
def test_a_cut_is_a_slice_and_so_is_its_gradient(start, stop, dtype):
    def cut(p, x):
        return layers.cut(x, start, stop, 1)

    x = arrays(dict(x=(2, 6, 3)))["x"].astype(dtype)
    out, pullback = layerwise.vjp(cut, {}, x)
    np.testing.assert_array_equal(out.asnumpy(), x[:, start:stop])
    _, (found,) = pullback(x[:, start:stop])
    expected = np.zeros_like(x)
    expected[:, start:stop] = x[:, start:stop]
    np.testing.assert_array_equal(found.asnumpy(), expected)


def test_norms_of_constant_rows():
    x, one, zero = ms.Tensor(np.full((2, 8), 3, np.float32)), ms.ops.ones(8), ms.ops.zeros(8)
    np.testing.assert_allclose(layers.rms_norm(x, one, 0.0).asnumpy(), 1, rtol=1e-5)
    np.testing.assert_allclose(layers.layer_norm(x, one, zero + 2, 1e-5).asnumpy(), 2, atol=1e-3)


@pytest.mark.parametrize("dim, embedding", [(8, embedding_of_8), (256, embedding_of_256)])
def test_timestep_embedding(dim, embedding):
    t = np.array([0.0, 0.5, 137.25, 1000.0], np.float32)
    angles = t[:, None].astype(np.float64) * 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    found = layerwise.run(positional(embedding), {}, t).asnumpy()
    np.testing.assert_allclose(found, np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=2e-4)


def test_simulated_bfloat16_rounds_both_operands():
    import ml_dtypes

    given = arrays(dict(x=(3, 5), w=(4, 5)))
    rounded = [value.astype(ml_dtypes.bfloat16).astype(np.float64) for value in given.values()]
    tensors = list(map(ms.Tensor, given.values()))
    found = layers.linear(*tensors, dtype="bfloat16_simulated").asnumpy()
    np.testing.assert_allclose(found, rounded[0] @ rounded[1].T, atol=1e-6)
    assert abs(found - layers.linear(*tensors).asnumpy()).max() > 1e-4


def test_compute_dtypes_of_operands():
    x = ms.Tensor([1.0, 1 + 2**-10])
    assert layers.to_compute(x, "float32") is x
    assert layers.to_compute(x, "bfloat16").dtype == ms.bfloat16
    assert layers.to_compute(x, "float16").dtype == ms.float16
    simulated = layers.to_compute(x, "bfloat16_simulated")
    assert simulated.dtype == ms.float32
    np.testing.assert_array_equal(simulated.asnumpy(), [1, 1])


def test_a_table_of_one_row_is_repeated():
    table = np.arange(4.0).reshape(1, 4)
    np.testing.assert_array_equal(layers.resize_table(table, 3), np.repeat(table, 3, 0))
