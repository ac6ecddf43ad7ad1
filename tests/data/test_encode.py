"""Which items are encoded together, with a stand-in for the autoencoder; tests/jobs/test_encode_video.py has the real one."""

import numpy as np
import pytest

from experiments import common
from moviegen.data import encode, latent_cache
from moviegen.errors import ConfigError, DataError


@pytest.fixture
def shapes(monkeypatch):
    """Shapes of what was encoded; a latent is the mean of its eight frames, which in these tests are of one colour."""
    seen = []

    def encoded(params, cfg, clips):
        seen.append(clips.shape)
        mean = clips.mean((1, 3, 4))[:, ::8, None, None][:, None].repeat(16, 1)
        return mean, np.full_like(mean, np.log(0.25))

    monkeypatch.setattr(encode.tae_tiles, "encode", encoded)
    monkeypatch.setattr(encode.tae_weights, "load", lambda path, cfg: {})
    return seen


def settings(**data):
    config = common.shrink(common.stage("1b", 2))
    config.data.update(dict(max_bad_fraction=0.5) | data)
    return config


def item(number, frames=8, side=16, kind="video"):
    return encode.Item(f"{number}", kind, lambda: np.full((frames, side, side, 3), number, np.uint8))


def test_items_of_one_shape_are_encoded_together_and_the_rest_is_filled_up(shapes, tmp_path):
    items = [item(i, 1 if i % 3 else 8) for i in range(30)]
    assert encode.encode(items, settings(), tmp_path, "a") == {"encoded": 30, "kept": 0, "bad": 0}
    assert sorted(shapes) == [(8, 3, 1, 16, 16)] * 3 + [(8, 3, 8, 16, 16)] * 2
    cache = latent_cache.open_cache(tmp_path)
    assert len(cache.shards) == 30
    for i in range(30):
        mean, std = cache.find(f"{i}").read()
        np.testing.assert_allclose(mean, i / 127.5 - 1, atol=1e-6)
        np.testing.assert_allclose(std, 0.5)
    assert cache.sums["video"]["count"] == 30


def test_large_videos_are_encoded_one_by_one(shapes, tmp_path):
    encode.encode([item(i, 8, 256) for i in range(2)], settings(), tmp_path, "a")
    assert shapes == [(1, 3, 8, 256, 256)] * 2


def test_what_was_read_before_too_many_are_bad_is_kept(shapes, tmp_path):
    def missing():
        raise DataError("gone")

    items = [item(0), *(encode.Item(name, "video", missing) for name in ("a", "b", "c")), item(1)]
    with pytest.raises(DataError, match="the set: 3 of 5 files cannot be used so far"):
        encode.encode(items, settings(), tmp_path, "the set")
    assert encode.encode(items[:1], settings(), tmp_path, "the set") == {"encoded": 0, "kept": 1, "bad": 0}


def test_an_item_s_set_is_part_of_the_fingerprint(shapes, tmp_path):
    encode.encode([item(0)], settings(), tmp_path, "a", {"seed": 1})
    with pytest.raises(ConfigError, match="seed: 1 -> 2"):
        encode.encode([item(0)], settings(), tmp_path, "a", {"seed": 2})
