"""Embedded sets encoded into the cache that a csv's videos have too, and read as tables."""

import json

import numpy as np
import pytest

from experiments import common
from moviegen.data import clips, encode, latent_cache, sources, synthetic, video
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
    values = dict(height=24, width=24, num_frames=8, num_samples=8, tae_weights=str(weights), latent_folder="")
    config.data.update(values | data)
    config.model.position_lengths = (1, 1, 1)
    return config


@pytest.fixture(scope="module")
def cached(weights, tmp_path_factory):
    """A cache that was built once, and its folder."""
    workdir = tmp_path_factory.mktemp("work")
    return sources.open_tables(settings(weights), workdir), workdir / "latents"


def latents(tables, split):
    """Means and deviations (n c t h w) of a split."""
    return np.stack([row.latents.read() for row in rows(tables)[split]], 1).swapaxes(2, 3)


def rows(tables):
    """Rows by split, of one shape."""
    return {"image": tables.rows["1x24x24"], "video": tables.rows["8x24x24"], "heldout": tables.heldout["8x24x24"]}


def test_latents_are_the_encoder_s_posteriors_of_the_set(cached, weights):
    found, _ = cached
    config = settings(weights)
    params = safetensors_io.read(weights)
    count = {"video": 8, "image": 8, "heldout": sources.HELDOUT_SAMPLES}
    assert {name: latents(found, name)[0].shape for name in rows(found)} == {
        name: (n, 16, 1, 3, 3) for name, n in count.items()
    }

    def expect(split, index, frames, caption, rows):
        assert set(rows[split][index].text.values()) == {caption}
        batch = video.to_model(frames)[None].repeat(8, 0)  # in batches of eight, as the graphs are compiled already
        mean, logvar = (x.asnumpy()[0].swapaxes(0, 1) for x in tae.encode(params, config.tae, batch))
        found = rows[split][index].latents.read()
        np.testing.assert_allclose(found[0], mean, atol=1e-5)
        np.testing.assert_allclose(found[1], np.exp(0.5 * logvar), rtol=1e-4)

    for name, index in (("video", 3), ("heldout", 30)):
        clip = synthetic.sample_clip(config.seed, index, "heldout" if name == "heldout" else "train", 8, 24)
        expect(name, index, *clip, rows(found))
    expect("image", 5, *synthetic.sample_image(config.seed, 5, "train", 24), rows(found))


def test_training_on_images_alone_is_validated_on_images(cached, weights):
    found, folder = cached
    images = sources.open_tables(settings(weights, latent_folder=str(folder), image_fraction=1.0), folder.parent)
    assert {name: len(own) for name, own in images.heldout.items()} == {"1x24x24": sources.HELDOUT_SAMPLES}
    assert found.heldout.keys() == {"8x24x24"} and images.rows.keys() == {"1x24x24"}
    image, caption = synthetic.sample_image(settings("").seed, 5, "heldout", 24)
    assert set(images.heldout["1x24x24"][5].text.values()) == {caption} and " moves " not in caption and len(image) == 1


def test_statistics_give_zero_mean_and_unit_variance_with_half_of_the_channels_contrast(cached):
    found, folder = cached
    (mean, std), (shift, scale) = latents(found, "video"), (np.array(each)[:, None] for each in found.statistics)
    mean, std = (np.moveaxis(x, 1, 0).reshape(16, -1) for x in (mean, std))
    np.testing.assert_allclose(((mean - shift) * scale).mean(1), 0, atol=1e-3)
    raw = np.sqrt(mean.var(1) + (std**2).mean(1))  # of draws
    assert (scale[:, 0] ** 2 * raw**2).mean() == pytest.approx(1, abs=1e-3)
    ratio = (scale[:, 0] * raw) ** 2 / raw  # deviations to the power of a half
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    assert json.loads((folder / "manifest.json").read_text())["statistics"]["scale"] == scale[:, 0].tolist()


def test_a_cache_is_used_again(cached, weights, monkeypatch):
    found, folder = cached
    monkeypatch.setattr(encode.tae_tiles, "encode", None)
    monkeypatch.setattr(encode.tae_weights, "load", None)
    assert sources.open_tables(settings(weights, latent_folder=str(folder)), folder.parent) == found


def test_a_cache_of_something_else_is_refused_by_what_differs(cached, weights, tmp_path):
    _, folder = cached
    other = settings(weights, latent_folder=str(folder), num_samples=9)
    with pytest.raises(ConfigError, match=r"num_samples: 8 -> 9.*delete it or change data.latent_folder"):
        sources.open_tables(other, tmp_path)
    other = settings(weights, latent_folder=str(folder))
    other.seed += 1
    with pytest.raises(ConfigError, match=r"seed: 42 -> 43"):
        sources.open_tables(other, tmp_path)


def test_other_weights_are_noticed(cached, weights, tmp_path):
    _, folder = cached
    other = safetensors_io.write(tae.init(settings("").tae, 1), tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"weights: "):
        sources.open_tables(settings(other, latent_folder=str(folder)), tmp_path)


@pytest.fixture
def killed(weights, tmp_path, monkeypatch):
    """A folder of which an encoding was killed in its third batch."""
    whole, flush, calls = encode.tae_tiles.encode, latent_cache.ShardWriter.flush, []

    def killed_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(latent_cache, "SHARD_BYTES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(encode.tae_tiles, "encode", killed_at_the_third)
        patch.setattr(latent_cache.ShardWriter, "flush", lambda self: flush(self) if len(calls) < 3 else None)
        with pytest.raises(KeyboardInterrupt):
            sources.open_tables(settings(weights), tmp_path)
    return tmp_path / "latents"


def test_a_kill_costs_the_rest_alone(cached, weights, killed, monkeypatch):
    found, _ = cached
    there = latent_cache.open_cache(killed).shards.keys()
    assert {name.split("/")[0] for name in there} == {"image", "video"} and len(there) == 16
    assert "statistics" not in json.loads((killed / "manifest.json").read_text())
    again = sources.open_tables(settings(weights), killed.parent)
    for split in rows(found):
        np.testing.assert_array_equal(latents(again, split), latents(found, split))
    np.testing.assert_allclose(again.statistics, found.statistics)
    assert not list(killed.glob("*.tmp*"))


def test_what_a_kill_left_behind_of_something_else_is_refused(weights, killed):
    with pytest.raises(ConfigError, match="num_samples"):
        sources.open_tables(settings(weights, num_samples=16), killed.parent)


@pytest.mark.parametrize("name", ["", "gone.safetensors", "package:gone"])
def test_missing_weights_are_named(name, tmp_path):
    with pytest.raises(ConfigError, match=f"data.tae_weights is '{name}'"):
        sources.open_tables(settings(name), tmp_path)


def test_weights_of_another_autoencoder_are_named(weights, tmp_path):
    config = settings(weights)
    config.tae.num_res_blocks = 2
    with pytest.raises(DataError, match="not of this tae config.*block/2"):
        sources.open_tables(config, tmp_path)


def test_unknown_sources_and_no_samples(weights, tmp_path):
    with pytest.raises(ConfigError, match="data.source is 'web'"):
        sources.open_tables(settings(weights, source="web"), tmp_path)
    with pytest.raises(ConfigError, match="data.num_samples is 0"):
        sources.open_tables(settings(weights, num_samples=0), tmp_path)


def small(**data):
    config = common.shrink(common.stage("1b", 2))
    config.data.update(dict(height=24, width=32, num_frames=8, num_samples=3) | data)
    return config


def test_rendered_splits_have_their_captions_and_frames_on_demand():
    made = small()
    tables = sources.embedded(made)
    counts = {"image": 3, "video": 3, "heldout_image": 32, "heldout": 32}
    assert {split: len(items) for split, items in tables.items()} == counts
    assert len({item.name for items in tables.values() for item in items}) == sum(counts.values())
    for split, items in tables.items():
        of = "heldout" if "heldout" in split else "train"
        draw = synthetic.sample_image if "image" in split else synthetic.sample_clip
        frames, caption = draw(made.seed, 2, of, *(() if "image" in split else (8,)), (24, 32))
        np.testing.assert_array_equal(items[2].frames(), frames)
        assert items[2].caption == caption and items[2].kind == split


def test_videos_of_a_set_for_images_have_two_frames():
    assert sources.embedded(small(num_frames=1))["video"][0].frames().shape == (2, 24, 32, 3)


def test_clips_are_images_and_videos_of_the_same_shots():
    tables = sources.embedded(small(source="clips", num_frames=4))
    shots = clips.captioned_clips()
    assert tables.keys() == {"image", "video"}
    for split, frames in (("image", 1), ("video", 4)):
        assert [item.caption for item in tables[split]] == [shot.caption for shot in shots]
        np.testing.assert_array_equal(tables[split][1].frames(), clips.read_clip(shots[1], frames, (24, 32)))


def in_buckets(**data):
    config = small(num_samples=11, **data)
    shapes = dict(resolution=32, aspect_ratios=("16:9", "1:1", "9:16"), frames=(16, 8), max_fps=(16.0, 16.0))
    config.data.buckets.update(shapes)
    return config


def test_buckets_share_the_rendered_samples_in_turn():
    tables = sources.embedded(in_buckets())
    videos = ("16x32x48", "16x32x32", "16x48x32", "8x32x48", "8x32x32", "8x48x32")
    assert [item.name for item in tables["video"][:7]] == [
        *(f"video/{name}/{i:05d}" for i, name in enumerate(videos)),
        "video/16x32x48/00006",
    ]
    assert [item.name for item in tables["heldout_image"][:2]] == [
        "heldout_image/1x32x48/00000",
        "heldout_image/1x32x32/00001",
    ]
    assert {split: len(items) for split, items in tables.items()} == {
        "image": 11,
        "video": 11,
        "heldout_image": 32,
        "heldout": 32,
    }
    for split, index, shape in (("video", 2, (16, 48, 32)), ("heldout", 3, (8, 32, 48)), ("image", 0, (1, 32, 48))):
        item = tables[split][index]
        assert item.frames().shape == (*shape, 3)
    assert synthetic.judge(tables["video"][0].frames()) == tuple(synthetic.sample_combination(42, 0, "train"))
    assert {split: len(items) for split, items in sources.embedded(in_buckets(image_fraction=1.0)).items()} == {
        "image": 11,
        "video": 0,
        "heldout_image": 32,
        "heldout": 0,
    }


def test_real_clips_are_of_one_shape():
    with pytest.raises(ConfigError, match="data.buckets.resolution is 32 and data.source 'clips'"):
        sources.embedded(in_buckets(source="clips"))


def test_an_embedded_set_trains_and_validates_in_buckets(tmp_path, monkeypatch):
    """Latents as an encoder would give, without one."""

    def encoded(items, config, folder, *rest):
        store = latent_cache.ShardWriter(folder, "float32", 0)
        for item in items:
            frames, height, width, _ = item.frames().shape
            mean = np.random.default_rng(0).standard_normal((16, -(-frames // 8), height // 8, width // 8))
            store.add(item.name, mean.astype(np.float32), np.ones_like(mean, np.float32), item.kind)
        folder.mkdir()
        store.flush()

    monkeypatch.setattr(encode, "encode", encoded)
    found = sources.open_tables(in_buckets(), tmp_path)
    names = ["1x32x48", "1x32x32", "1x48x32"]
    videos = ["16x32x48", "16x32x32", "16x48x32", "8x32x48", "8x32x32", "8x48x32"]
    assert found.rows.keys() == found.heldout.keys() == {*names, *videos}
    assert {name: len(own) for name, own in found.rows.items() if name in names} == dict(
        zip(names, (4, 4, 3), strict=True)
    )
    for name, own in (*found.rows.items(), *found.heldout.items()):
        assert all(row.video.split("/")[1] == name == row.bucket for row in own)
