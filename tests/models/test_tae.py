import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import common
from moviegen import backend, layerwise
from moviegen.convert import sd35, seed
from moviegen.errors import ConfigError
from moviegen.models import lpips, tae, tae_losses
from tests.golden.recipe import golden_array, golden_input
from tests.numeric import assert_close

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = {"l1": 0.5, "mse": 2.0, "kl": 0.1}


def tiny(**overrides):
    return common.tae("tiny", base_channels=8, channel_multipliers=(1, 1, 2, 2), norm_groups=4, **overrides)


def golden(name):
    """Stored outputs, their configuration, and the reference's weights in its own names."""
    stored = np.load(GOLDEN / f"{name}.npz")
    reference, arrays = json.loads(str(stored["config"])), {}
    for entry in stored["names"]:
        key, shape = re.fullmatch(r"(\S+) \((.*)\)", str(entry)).groups()
        shape = [int(n) for n in shape.split(",") if n.strip()]
        arrays[key] = golden_array(key, shape, reference["salt"])
    return stored, reference, arrays


def random_params(cfg, seed=0):
    """Every parameter random and of effect, so that no gradient is small for the start's sake."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in tae.shapes(cfg).items():
        value = rng.standard_normal(shape)
        if path.endswith("scale"):
            value = 1 + 0.2 * value
        elif len(shape) == 1:
            value = 0.2 * value
        else:
            value = value * np.prod(shape[1:]) ** -0.5
        params[path] = value.astype(np.float32)
    return params


def video(frames, batch=2, size=16, seed=0):
    return np.tanh(np.random.default_rng([seed, frames]).standard_normal((batch, 3, frames, size, size))).astype("f")


# ---- parity


def test_equals_the_seed_s():
    stored, reference, arrays = golden("tae")
    cfg = common.tae("full", compat="seed", base_channels=reference.get("base_channels", 32))
    params = seed.tae(arrays, cfg)
    clip = np.tanh(golden_input("video", reference["video_shape"], reference["salt"]))
    mean, logvar = tae.encode(params, cfg, clip)
    np.testing.assert_allclose(mean.asnumpy(), stored["mean"], atol=2e-4)
    np.testing.assert_allclose(logvar.asnumpy(), stored["logvar"], atol=2e-4)
    decoded = tae.decode(params, cfg, stored["mean"]).asnumpy()
    np.testing.assert_allclose(decoded, stored["decoded"], atol=2e-4)


def test_inflated_image_autoencoder_on_one_frame_is_the_image_autoencoder():
    stored, reference, arrays = golden("sd35_vae")
    cfg = common.tae("full", base_channels=32, channel_multipliers=(1, 2, 4, 4))
    params = sd35.tae(arrays, cfg)
    image = np.tanh(golden_input("image", reference["image_shape"], reference["salt"]))[:, :, None]
    mean, logvar = tae.encode(params, cfg, image)
    np.testing.assert_allclose(mean.asnumpy()[:, :, 0], stored["mean"], atol=2e-4)
    np.testing.assert_allclose(logvar.asnumpy()[:, :, 0], stored["logvar"], atol=2e-4)
    decoded = tae.decode(params, cfg, mean, num_frames=1).asnumpy()
    assert decoded.shape[2] == 1
    np.testing.assert_allclose(decoded[:, :, 0], stored["decoded"], atol=2e-4)


# ---- gradients


@pytest.fixture(scope="module")
def step():
    """One training step of 9 frames: two latent frames, so that temporal attention has a choice."""
    cfg = tiny()
    params, clip = random_params(cfg), video(9)
    noise = np.random.default_rng(1).standard_normal((2, 16, 2, 2, 2)).astype(np.float32)
    losses, grads = tae.loss_and_grads(params, cfg, clip, noise, WEIGHTS)
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
        _, again = tae.loss_and_grads(params, cfg, clip, noise, WEIGHTS)
        for path, value in backend.to_numpy(again).items():
            np.testing.assert_allclose(value, grads[path], rtol=1e-4, atol=1e-5 * abs(grads[path]).max() + 1e-9)


def test_recomputed_levels_change_no_gradient(step):
    cfg, params, clip, noise, losses, grads = step
    found, again = tae.loss_and_grads(params, cfg, clip, noise, WEIGHTS, recompute=(0, 1, 2, 3))
    np.testing.assert_allclose(float(found["loss"]), float(losses["loss"]), rtol=1e-6)
    assert again.keys() == grads.keys()
    for path, value in backend.to_numpy(again).items():
        np.testing.assert_allclose(value, grads[path], rtol=1e-4, atol=1e-5 * abs(grads[path]).max() + 1e-9)


def test_levels_that_there_are_not_are_refused(step):
    cfg, params, clip, noise, *_ = step
    with pytest.raises(ConfigError, match=r"recompute_levels is \(4,\), expected levels from 0.* to 3"):
        tae.loss_and_grads(params, cfg, clip, noise, WEIGHTS, recompute=(4,))


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
    losses, grads = tae.loss_and_grads(params, cfg, clip, noise, weights, perceptual=perceptual)
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


def test_the_adversary_pulls_on_the_last_convolution_as_hard_as_its_weight_says(step):
    cfg, params, clip, noise, losses, plain = step
    slope = np.random.default_rng(4).standard_normal(clip.shape).astype(np.float32) * 1e-3
    seen = []

    def adversary(fake):
        seen.append(fake.shape)
        return backend.tensor(np.float32(0.25)), backend.tensor(slope)

    found, grads = tae.loss_and_grads(params, cfg, clip, noise, WEIGHTS | {"adversarial": 0.5}, adversary=adversary)
    assert seen == [clip.shape]  # the frames that count, of the 16 that nine become
    head = "decoder/head/conv/spatial/w"
    own = grads[head].asnumpy() - plain[head]
    assert np.linalg.norm(own) == pytest.approx(0.5 * np.linalg.norm(plain[head]), rel=0.01)
    factor = (float(found["loss"]) - float(losses["loss"])) / 0.25
    # The others' gradients are what so many times that slope gives by itself.
    _, alone = tae.loss_and_grads(params, cfg, clip, noise, dict(l1=0.0, mse=0.0, kl=0.0))
    assert not any(g.asnumpy().any() for g in alone.values())
    made = tae.decode(params, cfg, tae_sample(cfg, params, clip, noise), num_frames=9).asnumpy()
    path = "decoder/conv_in/spatial/w"
    own = grads[path].asnumpy() - plain[path]
    signs = np.sign(own)
    moved = params | {path: params[path] + 1e-4 * signs}
    change = tae.decode(moved, cfg, tae_sample(cfg, params, clip, noise), num_frames=9).asnumpy() - made
    assert factor * float((slope * change).sum()) / 1e-4 == pytest.approx(float((signs * own).sum()), rel=0.05)


def tae_sample(cfg, params, clip, noise):
    mean, logvar = (x.asnumpy() for x in tae.encode(params, cfg, clip))
    return (mean + np.exp(0.5 * logvar) * noise).astype(np.float32)


def test_an_image_leaves_temporal_attention_no_choice():
    cfg = tiny()
    noise = np.zeros((2, 16, 1, 2, 2), np.float32)
    losses, grads = tae.loss_and_grads(random_params(cfg), cfg, video(1), noise, WEIGHTS)
    assert np.isfinite(float(losses["loss"]))
    grads = backend.to_numpy(grads)
    largest = max(abs(g).max() for g in grads.values())
    nothing = {path for path, g in grads.items() if abs(g).max() < 1e-5 * largest}
    sides = ("encoder", "decoder")
    assert nothing == {f"{side}/mid/temporal_attention/{x}/{y}" for side in sides for x in "qk" for y in "wb"} | {
        f"{side}/mid/spatial_attention/k/b" for side in sides
    }


# ---- shapes and behaviour


@functools.lru_cache
def roundtrip(frames):
    cfg = tiny()
    params = random_params(cfg)
    mean, logvar = tae.encode(params, cfg, video(frames))
    return mean.asnumpy(), logvar.asnumpy(), tae.decode(params, cfg, mean, num_frames=frames).asnumpy()


@pytest.mark.parametrize("frames", [1, 3, 8, 9, 17])
def test_shapes_of_any_number_of_frames(frames):
    mean, logvar, decoded = roundtrip(frames)
    assert mean.shape == logvar.shape == (2, 16, -(-frames // 8), 2, 2)
    assert decoded.shape == (2, 3, frames, 16, 16)
    assert np.isfinite(mean).all() and np.isfinite(decoded).all()


def test_decode_gives_eight_frames_per_latent_frame_by_default():
    cfg = tiny()
    latents = np.zeros((2, 16, 2, 2, 2), np.float32)
    assert tae.decode(random_params(cfg), cfg, latents).shape == (2, 3, 16, 16, 16)


def test_constant_video_gives_constant_latents_and_frames():
    cfg = tiny()
    params = random_params(cfg)
    still = np.repeat(video(1), 17, 2)
    mean, logvar = (x.asnumpy() for x in tae.encode(params, cfg, still))
    assert_close(mean, np.repeat(mean[:, :, :1], 3, 2), tolerance=1e-4)
    assert_close(logvar, np.repeat(logvar[:, :, :1], 3, 2), tolerance=1e-4)
    decoded = tae.decode(params, cfg, np.repeat(mean[:, :, :1], 2, 2)).asnumpy()
    assert_close(decoded, np.repeat(decoded[:, :, :1], 16, 2), tolerance=1e-4)


def test_zeros_in_the_temporal_upsampling_darken_the_ends():
    cfg = tiny(temporal_upsample_padding="zeros")
    params = random_params(cfg)
    latents = np.repeat(np.random.default_rng(0).standard_normal((2, 16, 1, 2, 2)), 2, 2).astype(np.float32)
    decoded = tae.decode(params, cfg, latents).asnumpy()
    assert abs(decoded[:, :, 0] - decoded[:, :, 8]).max() > 1e-2


def test_clips_of_a_batch_do_not_see_each_other():
    cfg = tiny()
    params, clips = random_params(cfg), video(9)
    before = tae.encode(params, cfg, clips)[0].asnumpy()
    clips[1] = -1
    after = tae.encode(params, cfg, clips)[0].asnumpy()
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    assert abs(after[1] - before[1]).max() > 1e-2


def test_without_temporal_attention():
    cfg = tiny(temporal_attention=False)
    assert not any("temporal_attention" in path for path in tae.shapes(cfg))
    mean, _ = tae.encode(random_params(cfg), cfg, video(9))
    assert np.isfinite(mean.asnumpy()).all()


def test_log_variance_is_clipped():
    cfg = tiny()
    params = random_params(cfg)
    params["encoder/head/conv/temporal/b"][16:] = np.where(np.arange(16) % 2, 1e4, -1e4)
    logvar = tae.encode(params, cfg, video(1))[1].asnumpy()
    np.testing.assert_array_equal(logvar[0, :, 0, 0, 0], np.where(np.arange(16) % 2, 20, -30))


# ---- start, statistics, errors


def test_init_is_an_image_autoencoder_at_the_start():
    cfg = tiny()
    params = backend.to_numpy(tae.init(cfg, 0))
    assert {path: value.shape for path, value in params.items()} == tae.shapes(cfg)
    for path, value in params.items():
        assert value.dtype == np.float32
        if path.endswith("temporal/w"):
            for i in range(value.shape[2]):
                expected = np.eye(len(value)) if i == value.shape[2] // 2 else 0
                np.testing.assert_array_equal(value[:, :, i], np.broadcast_to(expected, value.shape[:2]))
        elif path.endswith("scale"):
            assert (value == 1).all()
    np.testing.assert_array_equal(params["encoder/head/conv/temporal/b"], [0] * 16 + [-6] * 16)


def test_init_of_a_parameter_depends_on_seed_and_path_alone():
    one, more, other = (
        backend.to_numpy(tae.init(cfg, s)) for cfg, s in ((tiny(temporal_attention=False), 0), (tiny(), 0), (tiny(), 1))
    )
    for path in one:
        np.testing.assert_array_equal(one[path], more[path])
    path = "encoder/mid/block/0/conv1/spatial/w"
    assert not np.array_equal(one[path], other[path])


def test_full_size_has_the_seed_s_parameters():
    total = sum(int(np.prod(shape)) for shape in tae.shapes(common.tae("full")).values())
    assert total / 1e6 == pytest.approx(119.13 - 4.66, abs=0.011)  # without its unused projections


@pytest.mark.parametrize("shift, scale", [(0.5, 2.0), (tuple(np.arange(16.0)), tuple(1 + np.arange(16.0)))])
def test_normalize_and_back(shift, scale):
    cfg = tiny(latent_shift=shift, latent_scale=scale)
    latents = np.random.default_rng(0).standard_normal((2, 16, 2, 2, 2)).astype(np.float32)
    found = tae.normalize(backend.tensor(latents), cfg)
    columns = (np.broadcast_to(v, 16).reshape(1, -1, 1, 1, 1) for v in (shift, scale))
    s, f = columns
    np.testing.assert_allclose(found.asnumpy(), (latents - s) * f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tae.denormalize(found, cfg).asnumpy(), latents, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(1, 3, 8, 16, 20), (1, 3, 8, 12, 16), (1, 4, 8, 16, 16), (3, 8, 16, 16), (1, 3, 0, 16, 16)]
)
def test_wrong_videos_are_named(shape):
    cfg = tiny()
    wrong = np.zeros(shape, np.float32)
    for call in (
        lambda: tae.encode({}, cfg, wrong),
        lambda: tae.loss_and_grads({}, cfg, wrong, np.zeros(1, np.float32), WEIGHTS),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"{shape}, expected (b 3 t h w)")):
            call()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"norm_groups": 3}, r"tae.norm_groups is 3.*8 x 1 = 8"),
        ({"temporal_upsample_padding": "reflect"}, r"tae.temporal_upsample_padding is 'reflect'"),
    ],
)
def test_impossible_configs_are_named(overrides, message):
    cfg = tiny()
    cfg.update(overrides)
    with pytest.raises(ConfigError, match=message):
        tae.init(cfg, 0)
