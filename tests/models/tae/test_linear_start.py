import numpy as np
import pytest

from experiments import common
from moviegen.data import synthetic, video
from moviegen.errors import ConfigError
from moviegen.evaluation import baselines, metrics, reconstruction
from moviegen.models.tae import linear_start as tae_linear, model as tae


@pytest.fixture(scope="module")
def clips():
    """Smooth moving waves: what a linear code of low frequencies can hold."""
    y, x, t = np.meshgrid(np.arange(32), np.arange(32), np.arange(16), indexing="ij")
    made = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        waves = []
        for _ in range(3):
            a, b, c = rng.normal(0, (0.3, 0.3, 0.2))
            waves.append(np.sin(a * x + b * y + c * t + rng.uniform(0, 6)))
        made.append((127.5 + 90 * np.stack(waves, -1)).transpose(2, 0, 1, 3).astype(np.uint8))
    return made


@pytest.fixture(scope="module", params=[dict(), dict(base_channels=32, channel_multipliers=(1, 2, 4, 4))])
def fitted(clips, request):
    cfg = common.tae("tiny", latent_shift=0.0, latent_scale=1.0, **request.param)
    return tae_linear.init(cfg, clips, seed=0), cfg


def test_reconstructs_better_than_pooling(fitted, clips):
    made = [reconstruction.roundtrip(*fitted, clip) for clip in clips]
    ours, pooled = (
        [metrics.mean_psnr(c, m) for c, m in zip(clips, x, strict=True)] for x in (made, map(baselines.pool, clips))
    )
    assert np.mean(ours) > np.mean(pooled) + 1


def test_latents_have_mean_zero_and_unit_variance(fitted, clips):
    latents = np.concatenate([tae.encode(*fitted, video.to_model(clip)[None])[0].asnumpy() for clip in clips])
    np.testing.assert_allclose(latents.mean((0, 2, 3, 4)), 0, atol=0.05)
    np.testing.assert_allclose(latents.std((0, 2, 3, 4)), 1, atol=0.05)


def test_encoder_is_almost_linear(fitted, clips):
    a, b = (video.to_model(clip)[None] for clip in clips[8:10])
    codes = [tae.encode(*fitted, x)[0].asnumpy() for x in (a, b, (a + b) / 2)]
    assert np.abs(codes[2] - (codes[0] + codes[1]) / 2).max() < 0.05 * np.abs(codes[2]).max()


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(norm_groups=2), "norm_groups is 2"),
        (dict(base_channels=4), "channels"),
    ],
)
def test_configs_that_cannot_start_linear_are_refused(change, named):
    clips = [synthetic.sample_clip(0, i, "train", 8, 16)[0] for i in range(2)]
    with pytest.raises(ConfigError, match=named):
        tae_linear.init(common.tae("tiny", **change), clips, seed=0)
