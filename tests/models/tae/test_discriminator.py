import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.models.tae import discriminator
from moviegen.nn import backend


def settings(dims):
    return ConfigDict(dict(weight=0.5, start=0, dims=dims, channels=2))


def random_params(cfg, seed=0):
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in discriminator.shapes(cfg).items():
        value = rng.standard_normal(shape)
        params[path] = (value * np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2 * value).astype(np.float32)
        if path.endswith("scale"):
            params[path] += 1
    return params


def clips(seed, frames=3):
    return np.tanh(np.random.default_rng(seed).standard_normal((2, 3, frames, 16, 24))).astype(np.float32)


def hinge(cfg, params, real, fake):
    up, down = (discriminator.judge(params, cfg, x).asnumpy().astype(np.float64) for x in (real, fake))
    return 0.5 * (np.maximum(1 - up, 0).mean() + np.maximum(1 + down, 0).mean())


@pytest.mark.parametrize("dims, shape", [(2, (6, 1, 1, 2, 3)), (3, (2, 1, 1, 2, 3))])
def test_every_patch_has_a_verdict(dims, shape):
    cfg = settings(dims)
    assert discriminator.judge(random_params(cfg), cfg, clips(0)).shape == shape
    assert any("temporal" in path for path in discriminator.shapes(cfg)) == (dims == 3)


def test_in_two_dimensions_frames_do_not_see_each_other():
    cfg, x = settings(2), clips(0)
    params = random_params(cfg)
    before = discriminator.judge(params, cfg, x).asnumpy().reshape(2, 3, 2, 3)
    x[0, :, 1] = 0
    after = discriminator.judge(params, cfg, x).asnumpy().reshape(2, 3, 2, 3)
    changed = (before != after).any((2, 3))
    assert changed.tolist() == [[False, True, False], [False] * 3]


def directional(value, arrays, grads, seed, rel):
    """A difference quotient along signs of the gradient in most places and random ones elsewhere."""
    rng = np.random.default_rng(seed)
    directions = {
        name: np.where(rng.random(g.shape) < 0.8, np.sign(g), rng.choice([-1, 1], g.shape)).astype(np.float32)
        for name, g in grads.items()
    }
    step = 1e-3 / np.sqrt(sum(d.size for d in directions.values()))
    sides = [value({name: arrays[name] + s * step * d for name, d in directions.items()}) for s in (1, -1)]
    expected = sum(float((grads[name] * d).sum()) for name, d in directions.items())
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_of_the_weights_equal_finite_differences(dims):
    cfg = settings(dims)
    params, real, fake = random_params(cfg), clips(0), clips(1)
    last = "temporal" if dims == 3 else "spatial"
    params[f"discriminator/3/{last}/b"] += 1  # else every patch is in doubt, and no gradient left
    losses, grads = discriminator.loss_and_grads(params, cfg, real, fake)
    grads = backend.to_numpy(grads)
    assert float(losses["discriminator"]) == pytest.approx(hinge(cfg, params, real, fake), rel=1e-5)
    assert {path: g.shape for path, g in grads.items()} == discriminator.shapes(cfg)
    largest = max(abs(g).max() for g in grads.values())
    assert all(abs(g).max() > 1e-5 * largest for g in grads.values())
    for i, kind in enumerate({path.split("/", 2)[2] for path in grads}):
        own = {path: g for path, g in grads.items() if path.endswith("/" + kind)}
        directional(lambda moved: hinge(cfg, params | moved, real, fake), params, own, i, 0.05)
    again = backend.to_numpy(discriminator.loss_and_grads(params, cfg, real, fake)[1])
    for path, g in grads.items():
        np.testing.assert_allclose(again[path], g, atol=1e-6 * largest)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_generator_loss_s_gradient_equals_finite_differences(dims):
    cfg = settings(dims)
    params, fake = random_params(cfg), clips(1)
    value, slope = discriminator.generator_loss(params, cfg, fake)
    assert slope.shape == fake.shape

    def verdict(x):
        return -discriminator.judge(params, cfg, x["x"]).asnumpy().astype(np.float64).mean()

    assert float(value) == pytest.approx(verdict({"x": fake}), rel=1e-5)
    for seed in range(3):
        directional(verdict, {"x": fake}, {"x": slope.asnumpy()}, seed, 0.05)


def test_init_depends_on_seed_and_path():
    one, other = (backend.to_numpy(discriminator.init(settings(d), 0)) for d in (2, 3))
    assert {path: value.shape for path, value in other.items()} == discriminator.shapes(settings(3))
    for path in one:
        np.testing.assert_array_equal(one[path], other[path])
    kernel = other["discriminator/1/temporal/w"]
    assert (kernel[:, :, 1] == np.eye(4)).all() and not kernel[:, :, ::2].any()
