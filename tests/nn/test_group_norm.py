import numpy as np
import pytest

from moviegen.nn import layerwise
from moviegen.nn.group_norm import group_norm_silu
from tests.numeric import assert_close, slopes


def numpy_group_norm_silu(x, scale, bias, groups, eps=1e-6):
    rows = x.reshape(len(x), groups, -1)
    centred = rows - rows.mean(-1, keepdims=True)
    normed = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)).reshape(x.shape)
    y = normed * scale.reshape(1, -1, 1, 1, 1) + bias.reshape(1, -1, 1, 1, 1)
    return y / (1 + np.exp(-y))


def in_two_groups(p, x):
    return group_norm_silu(x, p["scale"], p["bias"], 2)


def in_one_group(p, x):
    return group_norm_silu(x, p["scale"], p["bias"], 1)


def one_group_each(p, x):
    return group_norm_silu(x, p["scale"], p["bias"], 4)


@pytest.mark.parametrize("groups, function", [(1, in_one_group), (2, in_two_groups), (4, one_group_each)])
def test_value_and_gradients(groups, function):
    rng = np.random.default_rng(groups)
    x = (3 + 2 * rng.standard_normal((2, 4, 2, 3, 2))).astype(np.float32)
    p = {"scale": (1 + 0.5 * rng.standard_normal(4)).astype(np.float32), "bias": rng.standard_normal(4).astype("f")}
    given = {"x": x} | p
    expected = numpy_group_norm_silu(**{k: v.astype(np.float64) for k, v in given.items()}, groups=groups)
    dout = rng.standard_normal(x.shape).astype(np.float32)
    out, pullback = layerwise.vjp(function, p, x)
    assert_close(out, expected, tolerance=1e-5)
    grads, (dx,) = pullback(dout)
    numeric = slopes(lambda **a: (numpy_group_norm_silu(**a, groups=groups) * dout).sum(), given)
    for name, found in (grads | {"x": dx}).items():
        assert_close(found, numeric[name], name)
