import re

import mindspore as ms
import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.errors import ConfigError
from moviegen.models import lpips
from moviegen.models.tae import (
    discriminator,
    losses as tae_losses,
    model as tae,
    shapes as tae_shapes,
    step as tae_step,
)
from moviegen.nn import backend, layerwise
from moviegen.parallel import comm
from moviegen.parallel.comm import LOCAL
from moviegen.parallel.mesh import ONE
from tests.models.tae.tiny_tae import WRONG_VIDEOS, random_params, tiny, video

WEIGHTS = {"l1": 0.5, "mse": 2.0, "kl": 0.1}
ADVERSARIAL = ConfigDict(dict(weight=0.5, start=0, dims=3, channels=2))


@pytest.fixture(scope="module")
def step():
    """One training step of 9 frames: two latent frames, so that temporal attention has a choice."""
    cfg = tiny()
    params, clip = random_params(cfg), video(9)
    noise = np.random.default_rng(1).standard_normal((2, 16, 2, 2, 2)).astype(np.float32)
    losses, grads = tae_step.loss_and_grads(params, cfg, clip, noise, WEIGHTS)
    return cfg, params, clip, noise, losses, backend.to_numpy(grads)


def numpy_losses(cfg, params, clip, noise):
    """The losses by their formulas in float64, around the compiled encoder and decoder."""
    mean, logvar = (x.asnumpy().astype(np.float64) for x in tae.encode(params, cfg, clip))
    z = mean + np.exp(0.5 * logvar) * noise
    decoded = tae.decode(params, cfg, z.astype(np.float32), num_frames=clip.shape[2]).asnumpy().astype(np.float64)
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean()
    mse = ((decoded - clip) ** 2).mean()
    return WEIGHTS["l1"] * abs(decoded - clip).mean() + WEIGHTS["mse"] * mse + WEIGHTS["kl"] * kl, mse, kl


def test_losses_equal_their_formulas(step):
    cfg, params, clip, noise, losses, _ = step
    expected = numpy_losses(cfg, params, clip, noise)
    for key, value in zip(("loss", "mse", "kl"), expected, strict=True):
        assert float(losses[key]) == pytest.approx(value, rel=1e-4), key


def test_no_gradient_is_missing_or_zero(step):
    cfg, params, _, _, _, grads = step
    assert {path: g.shape for path, g in grads.items()} == tae.shapes(cfg)
    largest = max(abs(g).max() for g in grads.values())
    for path, g in grads.items():
        assert g.dtype == np.float32 and np.isfinite(g).all(), path
        if path.endswith("attention/k/b"):  # the same for every key, so softmax does not see it
            assert abs(g).max() < 1e-5 * largest, path
        else:
            assert abs(g).max() > 1e-5 * largest, path


def test_gradients_are_the_same_at_every_call(step):
    """MindSpore has kernels whose compiled gradient is right once and garbage from the second call on."""
    cfg, params, clip, noise, _, grads = step
    for _ in range(2):
        _, again = tae_step.loss_and_grads(params, cfg, clip, noise, WEIGHTS)
        for path, value in backend.to_numpy(again).items():
            np.testing.assert_allclose(value, grads[path], rtol=1e-4, atol=1e-5 * abs(grads[path]).max() + 1e-9)


def test_recomputed_levels_change_no_gradient(step):
    cfg, params, clip, noise, losses, grads = step
    found, again = tae_step.loss_and_grads(params, cfg, clip, noise, WEIGHTS, recompute=(0, 1, 2, 3))
    np.testing.assert_allclose(float(found["loss"]), float(losses["loss"]), rtol=1e-6)
    assert again.keys() == grads.keys()
    for path, value in backend.to_numpy(again).items():
        np.testing.assert_allclose(value, grads[path], rtol=1e-4, atol=1e-5 * abs(grads[path]).max() + 1e-9)


def test_levels_that_there_are_not_are_refused(step):
    cfg, params, clip, noise, *_ = step
    with pytest.raises(ConfigError, match=r"recompute_levels is \(4,\), expected levels from 0.* to 3"):
        tae_step.loss_and_grads(params, cfg, clip, noise, WEIGHTS, recompute=(4,))


def kinds(cfg):
    """The parameters by kind: the path without the numbers of levels and blocks."""
    found = {}
    for path in tae.shapes(cfg):
        found.setdefault(re.sub(r"/\d+", "", path), []).append(path)
    return found


def test_gradients_equal_finite_differences(step):
    """Along a random direction in each kind of parameter: a wrong coordinate anywhere in it would show."""
    cfg, params, clip, noise, _, grads = step
    rng = np.random.default_rng(2)
    for kind, paths in kinds(cfg).items():
        if kind.endswith("attention/k/b"):
            continue
        # Signs of the gradient in most places make the slope large against float32's noise; random ones elsewhere do
        # not let an error of sign or place pass.
        directions = {}
        for path in paths:
            signs = np.where(
                rng.random(grads[path].shape) < 0.8, np.sign(grads[path]), rng.choice([-1, 1], grads[path].shape)
            )
            directions[path] = signs.astype(np.float32)
        expected = sum(float((directions[path] * grads[path]).sum()) for path in paths)
        epsilon = 2e-3 / np.sqrt(sum(d.size for d in directions.values()))
        sides = [
            numpy_losses(
                cfg, params | {path: params[path] + s * epsilon * directions[path] for path in paths}, clip, noise
            )[0]
            for s in (1, -1)
        ]
        slope = (sides[0] - sides[1]) / (2 * epsilon)
        assert slope == pytest.approx(expected, rel=0.03, abs=2e-3), kind


def small_lpips():
    """Every pixel has live channels: where the last one dies, its unit vector jumps, and no difference quotient tells."""
    rng = np.random.default_rng(0)
    found = {}
    for path, shape in lpips.shapes((12, 12, 12, 12, 12)).items():
        value = rng.standard_normal(shape) * (np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3)
        found[path] = (value if len(shape) > 1 else abs(value)).astype(np.float32)
    return found


def test_lpips_and_the_outlier_penalty_pull_as_their_formulas_say(step):
    cfg, params, clip, noise, _, plain = step
    weights = WEIGHTS | {"lpips": 20.0, "outlier": 20.0, "outlier_radius": 0.3}
    perceptual = small_lpips()
    losses, grads = tae_step.loss_and_grads(params, cfg, clip, noise, weights, perceptual=perceptual)
    grads = backend.to_numpy(grads)

    def total(params):
        mean, logvar = (x.asnumpy().astype(np.float64) for x in tae.encode(params, cfg, clip))
        z = (mean + np.exp(0.5 * logvar) * noise).astype(np.float32)
        made = tae.decode(params, cfg, z, num_frames=clip.shape[2]).asnumpy()
        away = float(lpips.of_clips(perceptual, clip, made).mean(dtype=np.float64))
        dots = float(layerwise.run(tae_losses.make_outlier(0.3, 1.0), {}, z))
        return numpy_losses(cfg, params, clip, noise)[0] + 20 * away + 20 * dots, away, dots

    for key, value in zip(("loss", "lpips", "outlier"), total(params), strict=True):
        assert float(losses[key]) == pytest.approx(value, rel=1e-4) and value > 0, key
    rng = np.random.default_rng(3)
    for path in ("encoder/conv_in/spatial/w", "encoder/head/conv/spatial/w", "decoder/head/conv/spatial/w"):
        assert abs(grads[path] - plain[path]).max() > 0.05 * abs(plain[path]).max()  # they do pull
        signs = np.where(rng.random(grads[path].shape) < 0.8, np.sign(grads[path]), 1).astype(np.float32)
        epsilon = 1e-3 / np.sqrt(signs.size)
        sides = [total(params | {path: params[path] + s * epsilon * signs})[0] for s in (1, -1)]
        expected = float((signs * grads[path]).sum())
        assert (sides[0] - sides[1]) / (2 * epsilon) == pytest.approx(expected, rel=0.05), path


def test_the_generator_loss_pulls_on_the_last_convolution_as_hard_as_its_weight_says(step, monkeypatch):
    cfg, params, clip, noise, losses, plain = step
    slope = np.random.default_rng(4).standard_normal(clip.shape).astype(np.float32) * 1e-3
    seen = []

    def generator_loss(params, cfg, fake, comm, dtype):
        seen.append(fake.shape)
        return backend.tensor(np.float32(0.25)), backend.tensor(slope)

    monkeypatch.setattr(discriminator, "loss_and_grads", lambda *args: ({}, {}))
    monkeypatch.setattr(discriminator, "generator_loss", generator_loss)
    weights = WEIGHTS | {"adversarial": 0.5}
    found, grads = tae_step.loss_and_grads(params, cfg, clip, noise, weights, adversarial=ADVERSARIAL)
    assert seen == [clip.shape]  # the frames that count, of the 16 that nine become
    head = "decoder/head/conv/spatial/w"
    own = grads[head].asnumpy() - plain[head]
    assert np.linalg.norm(own) == pytest.approx(0.5 * np.linalg.norm(plain[head]), rel=0.01)
    factor = (float(found["loss"]) - float(losses["loss"])) / 0.25
    # The others' gradients are what so many times that slope gives by itself.
    _, alone = tae_step.loss_and_grads(params, cfg, clip, noise, dict(l1=0.0, mse=0.0, kl=0.0))
    assert not any(g.asnumpy().any() for g in alone.values())
    made = tae.decode(params, cfg, tae_sample(cfg, params, clip, noise), num_frames=9).asnumpy()
    path = "decoder/conv_in/spatial/w"
    own = grads[path].asnumpy() - plain[path]
    signs = np.sign(own)
    moved = params | {path: params[path] + 1e-4 * signs}
    change = tae.decode(moved, cfg, tae_sample(cfg, params, clip, noise), num_frames=9).asnumpy() - made
    assert factor * float((slope * change).sum()) / 1e-4 == pytest.approx(float((signs * own).sum()), rel=0.05)


def test_the_discriminator_learns_from_the_same_reconstruction(step):
    cfg, params, clip, noise, _, plain = step
    params = params | backend.to_numpy(discriminator.init(ADVERSARIAL, 0))
    weights = WEIGHTS | {"adversarial": 0.5}
    losses, grads = tae_step.loss_and_grads(params, cfg, clip, noise, weights, adversarial=ADVERSARIAL)
    assert {path: g.shape for path, g in grads.items()} == tae_step.shapes(cfg, ADVERSARIAL)
    made = tae.decode(params, cfg, tae_sample(cfg, params, clip, noise), num_frames=9)
    expected, own = discriminator.loss_and_grads(params, ADVERSARIAL, clip, made)
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-3), name
    for path, value in own.items():
        value = value.asnumpy()
        np.testing.assert_allclose(grads[path].asnumpy(), value, atol=1e-3 * abs(value).max(), err_msg=path)
    head = "decoder/head/conv/spatial/w"
    pull = np.linalg.norm(grads[head].asnumpy() - plain[head])
    assert pull == pytest.approx(0.5 * np.linalg.norm(plain[head]), rel=0.01)
    assert float(losses["adversarial"]) == pytest.approx(
        -discriminator.judge(params, ADVERSARIAL, made).asnumpy().mean(), rel=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "given"), [("float16", "cast"), ("bfloat16_simulated", "float32")])
def test_lower_precision_is_close_and_not_the_same(step, dtype, given):
    """With every loss; products cast what they take, or find it cast already, as a training gives it."""
    _, params, clip, noise, _, _ = step
    params = params | backend.to_numpy(discriminator.init(ADVERSARIAL, 0))
    weights, perceptual = (
        WEIGHTS | {"adversarial": 0.5, "outlier": 1.0, "outlier_radius": 0.2, "lpips": 0.5},
        small_lpips(),
    )

    def one(cfg):
        exchange = LOCAL
        if given == "cast":
            kinds = tae_shapes.parameter_dtypes(cfg, ADVERSARIAL)
            exchange = comm.make(ONE, 3, tae_step.shapes(cfg, ADVERSARIAL), kinds)
        args = backend.to_tensors(params), cfg, clip, noise, weights, exchange, perceptual, ADVERSARIAL
        return tae_step.loss_and_grads(*args)

    (exact, expected), (losses, grads) = one(tiny()), one(tiny(compute_dtype=dtype))
    assert losses.keys() == exact.keys() and grads.keys() == expected.keys()
    for name, value in exact.items():
        assert losses[name].dtype == ms.float32, name
        assert float(losses[name]) == pytest.approx(float(value), rel=2e-2, abs=2e-2), name
    assert float(losses["mse"]) != float(exact["mse"])
    assert float(losses["loss"]) == pytest.approx(float(exact["loss"]), rel=1e-2)
    largest = max(abs(g.asnumpy()).max() for g in expected.values())
    for path, value in expected.items():
        assert grads[path].dtype == ms.float32, path
        ours, value = grads[path].asnumpy().ravel(), value.asnumpy().ravel()
        if abs(value).max() > 1e-4 * largest:
            assert ours @ value > 0.98 * np.linalg.norm(ours) * np.linalg.norm(value), path


def test_init_is_that_of_both_networks():
    params = tae_step.init(tiny(), 3, ADVERSARIAL)
    assert {path: value.shape for path, value in params.items()} == tae_step.shapes(tiny(), ADVERSARIAL)
    for path, value in discriminator.init(ADVERSARIAL, 3).items():
        np.testing.assert_array_equal(params[path].asnumpy(), value.asnumpy())
    assert (
        tae_step.shapes(tiny()) == tae.shapes(tiny()) and tae_step.init(tiny(), 3).keys() == tae.shapes(tiny()).keys()
    )


def tae_sample(cfg, params, clip, noise):
    mean, logvar = (x.asnumpy() for x in tae.encode(params, cfg, clip))
    return (mean + np.exp(0.5 * logvar) * noise).astype(np.float32)


def test_an_image_leaves_temporal_attention_no_choice():
    cfg = tiny()
    noise = np.zeros((2, 16, 1, 2, 2), np.float32)
    losses, grads = tae_step.loss_and_grads(random_params(cfg), cfg, video(1), noise, WEIGHTS)
    assert np.isfinite(float(losses["loss"]))
    grads = backend.to_numpy(grads)
    largest = max(abs(g).max() for g in grads.values())
    nothing = {path for path, g in grads.items() if abs(g).max() < 1e-5 * largest}
    sides = ("encoder", "decoder")
    assert nothing == {f"{side}/mid/temporal_attention/{x}/{y}" for side in sides for x in "qk" for y in "wb"} | {
        f"{side}/mid/spatial_attention/k/b" for side in sides
    }


@pytest.mark.parametrize("shape", WRONG_VIDEOS)
def test_wrong_videos_are_named(shape):
    with pytest.raises(ConfigError, match=re.escape(f"{shape}, expected (b 3 t h w)")):
        tae_step.loss_and_grads({}, tiny(), np.zeros(shape, np.float32), np.zeros(1, np.float32), WEIGHTS)
