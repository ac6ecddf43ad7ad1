from types import SimpleNamespace

import numpy as np
import pytest

from moviegen.evaluation import metrics, reconstruction
from moviegen.models.tae import tiles as tae_tiles
from moviegen.parallel.mesh import Group


@pytest.fixture
def halved(monkeypatch):
    """An autoencoder that halves contrast, so that every number has a closed form."""
    monkeypatch.setattr(tae_tiles, "encode", lambda params, cfg, video: (video, None))
    monkeypatch.setattr(
        tae_tiles, "stream", lambda params, cfg, mean, n: iter([0.5 * mean[:, :, :2], 0.5 * mean[:, :, 2:n]])
    )


def test_roundtrip_keeps_frames_and_order(halved):
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
    made = reconstruction.roundtrip({}, None, clip)
    assert made.shape == clip.shape and made.dtype == np.uint8
    np.testing.assert_allclose(made, 127.5 + (clip.astype(np.float64) - 127.5) / 2, atol=0.51)


def test_evaluate_averages_each_kind(halved):
    rng = np.random.default_rng(0)
    clips = {name: rng.integers(0, 256, (3, 16, 16, 3), np.uint8) for name in ("real", "synthetic0", "synthetic1")}
    found = reconstruction.evaluate({}, None, clips)
    each = {name: metrics.mean_psnr(clip, reconstruction.roundtrip({}, None, clip)) for name, clip in clips.items()}
    assert found["real_psnr"] == pytest.approx(each["real"])
    assert found["synthetic_psnr"] == pytest.approx((each["synthetic0"] + each["synthetic1"]) / 2)
    assert set(found) == {"real_psnr", "real_ssim", "synthetic_psnr", "synthetic_ssim"}


def test_ranks_share_the_clips(halved, monkeypatch):
    rng, summed = np.random.default_rng(0), []
    clips = {name: rng.integers(0, 256, (3, 16, 16, 3), np.uint8) for name in ("real", "synthetic0", "synthetic1")}
    made = []
    monkeypatch.setattr(reconstruction, "measure", lambda *args: (made.append(1), {"psnr": 1.0, "ssim": 0.5})[1])
    monkeypatch.setattr(reconstruction.collectives, "all_reduce", lambda group: lambda x: (summed.append(x), x)[1])
    for rank in range(4):
        reconstruction.evaluate({}, None, clips, world=Group("", 4, rank))
    assert len(made) == 3  # each clip once, the last rank none
    np.testing.assert_array_equal(sum(x.asnumpy() for x in summed), [1.0, 0.5, 2.0, 1.0])
    assert reconstruction.evaluate({}, None, clips)["synthetic_psnr"] == 1.0


def test_the_real_clip_is_held_out_only_where_training_is_on_real_ones():
    config = SimpleNamespace(data=SimpleNamespace(source="synthetic"))
    assert set(reconstruction.validation_clips(config)) == {f"synthetic{i}" for i in range(4)}
