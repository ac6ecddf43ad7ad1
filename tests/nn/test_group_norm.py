import numpy as np
import pytest

from moviegen.nn import kernels, layerwise
from tests.numeric import assert_close, slopes


def numpy_group_norm(x, scale, bias, groups, eps=1e-6):
    rows = x.reshape(len(x), groups, -1)
    centred = rows - rows.mean(-1, keepdims=True)
    normed = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)).reshape(x.shape)
    return normed * scale.reshape(1, -1, 1, 1, 1) + bias.reshape(1, -1, 1, 1, 1)


def numpy_silu(y):
    return y / (1 + np.exp(-y))


@pytest.mark.parametrize("on_ascend", [False, True], ids=["CPU", "Ascend"])
@pytest.mark.parametrize("silu", [False, True], ids=["norm", "norm and SiLU"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_value_and_gradients(groups, silu, on_ascend, monkeypatch):
    monkeypatch.setattr(kernels, "ON_ASCEND", on_ascend)
    norm = kernels.group_norm_silu if silu else kernels.group_norm

    def function(p, x):
        return norm(x, p["scale"], p["bias"], groups)

    def reference(**given):
        normed = numpy_group_norm(**given, groups=groups)
        return numpy_silu(normed) if silu else normed

    rng = np.random.default_rng(groups)
    x = (3 + 2 * rng.standard_normal((2, 4, 2, 3, 2))).astype(np.float32)
    p = {"scale": (1 + 0.5 * rng.standard_normal(4)).astype(np.float32), "bias": rng.standard_normal(4).astype("f")}
    given = {"x": x} | p
    expected = reference(**{k: v.astype(np.float64) for k, v in given.items()})
    dout = rng.standard_normal(x.shape).astype(np.float32)
    out, pullback = layerwise.vjp(function, p, x)
    assert_close(out, expected, tolerance=1e-5)
    grads, (dx,) = pullback(dout)
    numeric = slopes(lambda **a: (reference(**a) * dout).sum(), given)
    for name, found in (grads | {"x": dx}).items():
        assert_close(found, numeric[name], name)
