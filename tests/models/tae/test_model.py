import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import common
from moviegen.convert import sd35, seed
from moviegen.errors import ConfigError
from moviegen.models.tae import model as tae
from moviegen.nn import backend
from tests.golden.recipe import golden_array, golden_input
from tests.models.tae.tiny_tae import WRONG_VIDEOS, random_params, tiny, video
from tests.numeric import assert_close

GOLDEN = Path(__file__).parents[2] / "golden"


def golden(name):
    """Stored outputs, their configuration, and the reference's weights in its own names."""
    stored = np.load(GOLDEN / f"{name}.npz")
    reference, arrays = json.loads(str(stored["config"])), {}
    for entry in stored["names"]:
        key, shape = re.fullmatch(r"(\S+) \((.*)\)", str(entry)).groups()
        shape = [int(n) for n in shape.split(",") if n.strip()]
        arrays[key] = golden_array(key, shape, reference["salt"])
    return stored, reference, arrays


# ---- parity


def test_equals_the_seed_s():
    stored, reference, arrays = golden("tae")
    cfg = common.tae("full", compat="seed", base_channels=reference.get("base_channels", 32), compute_dtype="float32")
    params = seed.tae(arrays, cfg)
    clip = np.tanh(golden_input("video", reference["video_shape"], reference["salt"]))
    mean, logvar = tae.encode(params, cfg, clip)
    np.testing.assert_allclose(mean.asnumpy(), stored["mean"], atol=2e-4)
    np.testing.assert_allclose(logvar.asnumpy(), stored["logvar"], atol=2e-4)
    decoded = tae.decode(params, cfg, stored["mean"]).asnumpy()
    np.testing.assert_allclose(decoded, stored["decoded"], atol=2e-4)


def test_inflated_image_autoencoder_on_one_frame_is_the_image_autoencoder():
    stored, reference, arrays = golden("sd35_vae")
    cfg = common.tae("full", base_channels=32, compute_dtype="float32")
    params = sd35.tae(arrays, cfg)
    image = np.tanh(golden_input("image", reference["image_shape"], reference["salt"]))[:, :, None]
    mean, logvar = tae.encode(params, cfg, image)
    np.testing.assert_allclose(mean.asnumpy()[:, :, 0], stored["mean"], atol=2e-4)
    np.testing.assert_allclose(logvar.asnumpy()[:, :, 0], stored["logvar"], atol=2e-4)
    decoded = tae.decode(params, cfg, mean, num_frames=1).asnumpy()
    assert decoded.shape[2] == 1
    np.testing.assert_allclose(decoded[:, :, 0], stored["decoded"], atol=2e-4)


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


@pytest.mark.parametrize("shift, scale", [(0.5, 2.0), (tuple(np.arange(16.0)), tuple(1 + np.arange(16.0)))])
def test_normalize_and_back(shift, scale):
    cfg = tiny(latent_shift=shift, latent_scale=scale)
    latents = np.random.default_rng(0).standard_normal((2, 16, 2, 2, 2)).astype(np.float32)
    found = tae.normalize(backend.tensor(latents), cfg)
    columns = (np.broadcast_to(v, 16).reshape(1, -1, 1, 1, 1) for v in (shift, scale))
    s, f = columns
    np.testing.assert_allclose(found.asnumpy(), (latents - s) * f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tae.denormalize(found, cfg).asnumpy(), latents, atol=1e-5)


@pytest.mark.parametrize("shape", WRONG_VIDEOS)
def test_wrong_videos_are_named(shape):
    cfg = tiny()
    wrong = np.zeros(shape, np.float32)
    with pytest.raises(ConfigError, match=re.escape(f"{shape}, expected (b 3 t h w)")):
        tae.encode({}, cfg, wrong)
