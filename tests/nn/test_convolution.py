"""Each convolution, in its form for the CPU and in Ascend's, against sums over the taps in numpy and their slopes."""

import functools

import numpy as np
import pytest

from moviegen.nn import convolution as convolutions, kernels, layerwise
from tests.nn import stand_ins
from tests.numeric import assert_close, slopes


def numpy_spatial(x, w, b, stride=1, before=1, after=1):
    """x (b c t h w), w (out, in, k, k); `before` and `after` rows and columns of zeros on each side."""
    k = w.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (0, 0), (before, after), (before, after)))
    height, width = ((n - k) // stride + 1 for n in x.shape[3:])
    y = np.zeros((x.shape[0], len(w), x.shape[2], height, width)) + b.reshape(1, -1, 1, 1, 1)
    for i in range(k):
        for j in range(k):
            rows = slice(i, i + (height - 1) * stride + 1, stride)
            columns = slice(j, j + (width - 1) * stride + 1, stride)
            y += np.einsum("bcthw,oc->bothw", x[:, :, :, rows, columns], w[:, :, i, j])
    return y


def numpy_temporal(x, w, b, stride=1, mode="edge"):
    k = w.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (0, 0), (0, 0)), mode=mode)
    frames = (x.shape[2] - k) // stride + 1
    y = b.reshape(1, -1, 1, 1, 1)
    for i in range(k):
        y = y + np.einsum("bcthw,oc->bothw", x[:, :, i : i + (frames - 1) * stride + 1 : stride], w[:, :, i])
    return y


def numpy_doubling(x, w, b):
    return numpy_spatial(x.repeat(2, 3).repeat(2, 4), w, b)


def numpy_temporal_doubling(x, w, b, mode="edge"):
    return numpy_temporal(x.repeat(2, 2), w, b, mode=mode)


@functools.lru_cache
def convolution(form, kind, *settings):
    """A function for each form, as what is compiled is kept by function."""
    function = FUNCTIONS[kind]

    def apply(p, x):
        return function(x, p["w"], p["b"], *settings)

    return apply


FUNCTIONS = {
    "spatial": kernels.spatial_conv,
    "halving": kernels.halving_conv,
    "doubling": kernels.doubling_conv,
    "temporal": kernels.temporal_conv,
    "parts": kernels.temporal_conv,
    "temporal-doubling": kernels.temporal_doubling_conv,
    "doubling-parts": kernels.temporal_doubling_conv,
}


@pytest.fixture(params=["CPU", "Ascend"])
def form(request, monkeypatch):
    if request.param == "Ascend":
        monkeypatch.setattr(kernels, "ON_ASCEND", True)
        monkeypatch.setattr(kernels, "_conv3d", stand_ins.conv3d)
        monkeypatch.setattr(kernels, "_narrow", stand_ins.narrow)
    return request.param


CASES = {
    "spatial-1": (("spatial",), (4, 3, 1, 1), 3, functools.partial(numpy_spatial, before=0, after=0)),
    "spatial-3": (("spatial",), (4, 3, 3, 3), 3, numpy_spatial),
    "spatial-3-image": (("spatial",), (4, 3, 3, 3), 1, numpy_spatial),
    "halving": (("halving",), (4, 3, 3, 3), 3, functools.partial(numpy_spatial, stride=2, before=0)),
    "temporal-1": (("temporal",), (4, 3, 1), 3, numpy_temporal),
    "temporal-3": (("temporal",), (4, 3, 3), 3, numpy_temporal),
    "temporal-3-in-parts": (("parts",), (4, 3, 3), 3, numpy_temporal),
    "temporal-3-image": (("temporal",), (4, 3, 3), 1, numpy_temporal),
    "temporal-halving-odd": (("temporal", 2), (4, 3, 3), 3, functools.partial(numpy_temporal, stride=2)),
    "temporal-halving-even": (("temporal", 2), (4, 3, 3), 4, functools.partial(numpy_temporal, stride=2)),
    "temporal-halving-image": (("temporal", 2), (4, 3, 3), 1, functools.partial(numpy_temporal, stride=2)),
    "doubling": (("doubling",), (4, 3, 3, 3), 3, numpy_doubling),
    "doubling-image": (("doubling",), (4, 3, 3, 3), 1, numpy_doubling),
    "temporal-doubling": (("temporal-doubling",), (4, 3, 3), 3, numpy_temporal_doubling),
    "temporal-doubling-in-parts": (("doubling-parts",), (4, 3, 3), 3, numpy_temporal_doubling),
    "temporal-doubling-image": (("temporal-doubling",), (4, 3, 3), 1, numpy_temporal_doubling),
    "temporal-doubling-zeros": (
        ("temporal-doubling", "zeros"),
        (4, 3, 3),
        3,
        functools.partial(numpy_temporal_doubling, mode="constant"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case, form, monkeypatch):
    key, kernel, frames, reference = CASES[case]
    if "parts" in key[0]:
        monkeypatch.setattr(convolutions, "_LARGE", 0)
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, frames, 4, 6), kernel, kernel[:1]))
    expected = reference(x.astype(np.float64), w.astype(np.float64), b.astype(np.float64))
    dout = rng.standard_normal(expected.shape).astype(np.float32)
    out, pullback = layerwise.vjp(convolution(form, *key), {"w": w, "b": b}, x)
    assert_close(out, expected, tolerance=1e-5)
    pullback(dout)  # a compiled gradient may be right once and wrong from then on
    grads, (dx,) = pullback(dout)
    numeric = slopes(lambda x, w, b: (reference(x, w, b) * dout).sum(), {"x": x, "w": w, "b": b}, step=0.5)
    for name, found in (("x", dx), ("w", grads["w"]), ("b", grads["b"])):
        assert_close(found, numeric[name], f"d{name}", tolerance=1e-5)


def test_frames_do_not_leak_into_each_other_in_space(form):
    rng = np.random.default_rng(1)
    p = {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "b": np.zeros(4, np.float32)}
    x = rng.standard_normal((2, 3, 3, 4, 6)).astype(np.float32)
    changed = x.copy()
    changed[:, :, 1] = 100
    for kind in ("spatial", "halving", "doubling"):
        before, after = (layerwise.run(convolution(form, kind), p, each).asnumpy() for each in (x, changed))
        np.testing.assert_array_equal(before[:, :, ::2], after[:, :, ::2])
        assert abs(before[:, :, 1] - after[:, :, 1]).min() > 0
