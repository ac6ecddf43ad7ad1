from pathlib import Path

import numpy as np
import pytest

from moviegen.convert import lpips as convert
from moviegen.errors import ConfigError
from moviegen.models import lpips
from moviegen.nn import backend, kernels, layerwise
from moviegen.storage import safetensors_io
from tests.golden.recipe import golden_array
from tests.nn import stand_ins
from tests.numeric import assert_close

GOLDEN = Path(__file__).parents[1] / "golden" / "lpips_vgg.npz"
WIDTHS = (4, 4, 6, 6, 6)


def small(seed=0):
    """A network of the same make with few channels; heads are never negative."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in lpips.shapes(WIDTHS).items():
        value = rng.standard_normal(shape) * (1.4 * np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1)
        params[path] = (abs(value) if path.startswith("head") else value).astype(np.float32)
    return params


def pictures(n, height=24, width=32, seed=0):
    return np.tanh(np.random.default_rng(seed).standard_normal((n, 3, height, width))).astype(np.float32)


@pytest.fixture(scope="module")
def full():
    stored = np.load(GOLDEN)
    arrays = {}
    for layer, (w, b) in zip(
        convert.CONVS, list(zip(*[iter(lpips.shapes().items())] * 2, strict=False))[:13], strict=True
    ):
        arrays[f"features.{layer}.weight"] = 1.4 * golden_array(f"features.{layer}.weight", w[1])
        arrays[f"features.{layer}.bias"] = golden_array(f"features.{layer}.bias", b[1])
    heads = {name.replace("__", "."): stored[name] for name in stored.files if name.startswith("lin")}
    return stored, convert.vgg(arrays | {"classifier.0.weight": np.zeros((2, 2))}, heads)


def test_equals_the_lpips_package(full):
    stored, params = full
    found = lpips.distance(params, stored["a"], stored["b"]).asnumpy()
    np.testing.assert_allclose(found, stored["distance"].ravel(), rtol=1e-4)


def test_equal_pictures_are_no_distance_apart():
    a = pictures(2)
    np.testing.assert_array_equal(lpips.distance(small(), a, a).asnumpy(), 0)


def test_the_gradient_equals_torch_s():
    stored = np.load(GOLDEN.with_name("lpips_gradient.npz"))
    params, a, b = small(), pictures(2), pictures(2, seed=1)
    weights = np.float32([0.5, 2.0])
    found, pull = lpips.distance_and_pull(params, a, b)
    np.testing.assert_allclose(found.asnumpy(), stored["distance"], rtol=1e-5)
    assert_close(pull(weights), stored["slope"])
    for _ in range(2):  # MindSpore has gradients that are right at the first call alone
        assert_close(lpips.distance_and_pull(params, a, b)[1](weights), stored["slope"])


def test_clips_are_taken_frame_by_frame_some_at_a_time(monkeypatch):
    params, rng = small(), np.random.default_rng(3)
    a, b = (rng.uniform(-1, 1, (2, 3, 3, 16, 16)).astype(np.float32) for _ in range(2))
    each = np.stack([lpips.distance(params, a[:, :, t], b[:, :, t]).asnumpy() for t in range(3)], 1)
    monkeypatch.setattr(lpips, "FRAMES", 4)  # six frames: four and two
    np.testing.assert_allclose(lpips.of_clips(params, a, b), each, rtol=1e-5)
    mean, slope = lpips.mean_and_pull(params, backend.tensor(a), backend.tensor(b), 0.25)
    assert float(mean) == pytest.approx(0.25 * each.mean(), rel=1e-5)
    _, pull = lpips.distance_and_pull(params, a[:, :, 1], b[:, :, 1])
    np.testing.assert_allclose(slope.asnumpy()[:, :, 1], pull(np.full(2, 0.25 / 6, np.float32)).asnumpy(), atol=1e-8)


def test_pixels_without_any_feature_give_no_nan():
    params = small()
    for path in params:
        if path.endswith("/b"):
            params[path][:] = -100.0
    a, b = pictures(1), pictures(1, seed=1)
    found, pull = lpips.distance_and_pull(params, a, b)
    assert float(found) == 0 and not pull(np.ones(1, np.float32)).asnumpy().any()


def test_without_weights_one_is_told_where_they_are_and_how_to_go_on(tmp_path):
    with pytest.raises(ConfigError, match=r"a.b is 'x', no file: .*vgg16-397923af.pth.*or go without: --c=0"):
        lpips.load("x", "a.b", "--c=0")
    safetensors_io.write(small(), tmp_path / "small.safetensors")
    with pytest.raises(ConfigError, match="small.safetensors: conv/0/w, .* no LPIPS weights"):
        lpips.load(str(tmp_path / "small.safetensors"), "a.b", "--c=0")


def test_a_file_is_read_back_and_moved_to_the_card_once(full, tmp_path, card):
    safetensors_io.write(full[1], tmp_path / "vgg.safetensors")
    found = lpips.load(str(tmp_path / "vgg.safetensors"), "", "")
    assert sorted(map(id, card)) == sorted(map(id, found.values()))
    for path, value in found.items():
        np.testing.assert_array_equal(value.asnumpy(), full[1][path].asnumpy())


def test_pooled_features_are_those_of_each_picture():
    params, x = small(), pictures(11)
    expected = [lpips.features(params, x[i : i + 1])[-1].asnumpy().mean((2, 3)) for i in range(11)]
    np.testing.assert_allclose(lpips.pooled(params, x), np.concatenate(expected), rtol=1e-5)


@pytest.mark.parametrize("sides", [(6, 8), (7, 5)], ids=["even", "odd"])
def test_pooling_has_one_value_and_gradient_in_both_forms(sides, monkeypatch):
    monkeypatch.setattr(kernels, "_narrow", stand_ins.narrow)  # which has no CPU kernel
    x = np.random.default_rng(0).standard_normal((2, 3, *sides)).astype(np.float32)
    dout = np.random.default_rng(1).standard_normal((2, 3, sides[0] // 2, sides[1] // 2)).astype(np.float32)
    (value, slope), (other, other_slope) = of_both_forms(monkeypatch, kernels.halve, x, dout)
    np.testing.assert_array_equal(value, other)
    np.testing.assert_array_equal(slope, other_slope)
    flat = of_both_forms(monkeypatch, kernels.halve, np.ones((1, 1, *sides), np.float32), dout[:1, :1])
    assert_close(flat[1][1].sum(), flat[0][1].sum())  # equal values have no more of a gradient than one of them


@pytest.mark.parametrize("axis", [1, 2])
def test_sums_have_one_value_and_gradient_in_both_forms(axis, monkeypatch):
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    dout = np.random.default_rng(1).standard_normal(x.sum(axis, keepdims=True).shape).astype(np.float32)

    def sums(x):
        return kernels.sums(x, axis)

    for value, slope in of_both_forms(monkeypatch, sums, x, dout):
        np.testing.assert_allclose(value, x.sum(axis, keepdims=True), atol=1e-6)
        np.testing.assert_array_equal(slope, np.broadcast_to(dout, x.shape))


@pytest.mark.parametrize("axis", [None, 1])
def test_means_have_one_value_and_gradient_in_both_forms(axis, monkeypatch):
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    dout = np.random.default_rng(1).standard_normal(x.mean(axis, keepdims=True).shape).astype(np.float32)

    def mean(x):
        return kernels.mean(x, axis, True)

    for value, slope in of_both_forms(monkeypatch, mean, x, dout):
        np.testing.assert_allclose(value, x.mean(axis, keepdims=True), atol=1e-6)
        np.testing.assert_allclose(slope, np.broadcast_to(dout, x.shape) * (dout.size / x.size), rtol=1e-6)


def of_both_forms(monkeypatch, operation, x, dout):
    """The value and gradient of the CPU's form, then of Ascend's."""
    found = []
    for on_ascend in (False, True):
        monkeypatch.setattr(kernels, "ON_ASCEND", on_ascend)

        def apply(p, x):
            return operation(x)

        value, pull = layerwise.vjp(apply, {}, x)
        found.append((value.asnumpy(), pull(dout)[1][0].asnumpy()))
    return found


def test_pictures_that_are_too_small_are_refused():
    with pytest.raises(ConfigError, match="sides of 16 or more"):
        lpips.distance(small(), pictures(1, 8), pictures(1, 8))
