import json

import numpy as np
import pytest

from experiments import common
from moviegen.data import latents, synthetic, video
from moviegen.errors import ConfigError, DataError
from moviegen.models.tae import model as tae
from moviegen.storage import safetensors_io


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tae.safetensors"
    return safetensors_io.write(tae.init(settings("").tae, 0), path)


def settings(weights, **data):
    config = common.shrink(common.stage("1b", 2))
    config.tae = common.tae("tiny", base_channels=8, channel_multipliers=(1, 1, 2, 2), norm_groups=4)
    values = dict(height=24, width=24, num_frames=8, num_samples=8, tae_weights=str(weights), latent_cache="")
    config.data.update(values | data)
    config.model.position_lengths = (1, 1, 1)
    return config


@pytest.fixture(scope="module")
def cached(weights, tmp_path_factory):
    """A cache that was built once, and its folder."""
    workdir = tmp_path_factory.mktemp("work")
    return latents.prepare(settings(weights), workdir), workdir / "latents"


def test_latents_are_the_encoder_s_means_of_the_set(cached, weights):
    found, _ = cached
    config = settings(weights)
    params = safetensors_io.read(weights)
    count = {"video": 8, "image": 8, "heldout": latents.HELDOUT_SAMPLES, "heldout_image": latents.HELDOUT_SAMPLES}
    assert {name: array.shape for name, array in found.latents.items()} == {
        name: (n, 16, 1, 3, 3) for name, n in count.items()
    }
    for name, index in (("video", 3), ("heldout", 30)):
        frames, caption = synthetic.sample_clip(config.seed, index, "heldout" if name == "heldout" else "train", 8, 24)
        assert found.captions[name][index] == caption
        batch = video.to_model(frames)[None].repeat(8, 0)  # in batches of eight, as the graphs are compiled already
        expected = tae.encode(params, config.tae, batch)[0].asnumpy()[0]
        np.testing.assert_allclose(found.latents[name][index], expected, atol=1e-5)
    for name, split in (("image", "train"), ("heldout_image", "heldout")):
        image, caption = synthetic.sample_image(config.seed, 5, split, 24)
        assert found.captions[name][5] == caption
        expected = tae.encode(params, config.tae, video.to_model(image)[None].repeat(8, 0))[0].asnumpy()[0]
        np.testing.assert_allclose(found.latents[name][5], expected, atol=1e-5)


def test_statistics_give_zero_mean_and_unit_variance_with_half_of_the_channels_contrast(cached):
    found, _ = cached
    raw = np.moveaxis(found.latents["video"], 1, 0).reshape(16, -1)
    values = (raw - np.array(found.shift)[:, None]) * np.array(found.scale)[:, None]
    np.testing.assert_allclose(values.mean(1), 0, atol=1e-3)
    assert values.var(1).mean() == pytest.approx(1, abs=1e-3)
    ratio = values.std(1) ** 2 / raw.std(1)  # deviations to the power of a half
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_a_cache_is_used_again(cached, weights, monkeypatch):
    found, folder = cached
    monkeypatch.setattr(tae, "encode", None)
    again = latents.prepare(settings(weights, latent_cache=str(folder)), "unused")
    for name, array in found.latents.items():
        np.testing.assert_array_equal(again.latents[name], array)
    assert again[1:] == found[1:]


def test_a_cache_of_something_else_is_refused_by_what_differs(cached, weights):
    _, folder = cached
    other = settings(weights, latent_cache=str(folder), num_samples=9)
    with pytest.raises(ConfigError, match=r"num_samples: 8 -> 9.*delete it or change data.latent_cache"):
        latents.prepare(other, "unused")
    other = settings(weights, latent_cache=str(folder))
    other.seed += 1
    with pytest.raises(ConfigError, match=r"seed: 42 -> 43"):
        latents.prepare(other, "unused")


def test_other_weights_are_noticed(cached, weights, tmp_path):
    _, folder = cached
    other = safetensors_io.write(tae.init(settings("").tae, 1), tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"weights: "):
        latents.prepare(settings(other, latent_cache=str(folder)), "unused")


def test_a_kill_between_two_splits_costs_the_rest_alone(cached, weights, tmp_path):
    found, folder = cached
    for name in ("image", "video"):
        (tmp_path / f"{name}.npy").write_bytes((folder / f"{name}.npy").read_bytes())
    again = latents.prepare(settings(weights, latent_cache=str(tmp_path)), "unused")
    np.testing.assert_array_equal(again.latents["heldout"], found.latents["heldout"])
    assert json.loads((tmp_path / "manifest.json").read_text())["num_samples"] == 8
    assert not list(tmp_path.glob("*.tmp*"))


def test_what_a_kill_left_behind_of_something_else_is_refused(cached, weights, tmp_path):
    # The splits that are there must be of the same settings, even if the kill came before the last of them was made.
    _, folder = cached
    (tmp_path / "image.npy").write_bytes((folder / "image.npy").read_bytes())
    (tmp_path / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    with pytest.raises(ConfigError, match="num_samples"):
        latents.prepare(settings(weights, latent_cache=str(tmp_path), num_samples=16), "unused")


@pytest.mark.parametrize("name", ["", "gone.safetensors", "package:gone"])
def test_missing_weights_are_named(name, tmp_path):
    with pytest.raises(ConfigError, match=f"data.tae_weights is '{name}'"):
        latents.prepare(settings(name), tmp_path)


def test_weights_of_another_autoencoder_are_named(weights, tmp_path):
    config = settings(weights)
    config.tae.num_res_blocks = 2
    with pytest.raises(DataError, match="not of this tae config.*block/2"):
        latents.prepare(config, tmp_path)


def test_unknown_sources_and_no_samples(weights, tmp_path):
    with pytest.raises(ConfigError, match="data.source is 'web'"):
        latents.prepare(settings(weights, source="web"), tmp_path)
    with pytest.raises(ConfigError, match="data.num_samples is 0"):
        latents.prepare(settings(weights, num_samples=0), tmp_path)
