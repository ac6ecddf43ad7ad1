"""Which items are encoded together, with a stand-in for the autoencoder; tests/jobs/test_encode_video.py has the real one."""

import json
import os
import shutil

import numpy as np
import pytest

from experiments import common
from moviegen.data import encode, files, latent_cache
from moviegen.errors import ConfigError, DataError


@pytest.fixture
def shapes(monkeypatch):
    """Shapes of what was encoded; a latent is the last pixel of every eighth frame, and 1, 2, ... more in the next channels."""
    seen = []

    def encoded(params, cfg, clips):
        seen.append(clips.shape)
        mean = clips[:, :1, ::8, -1:, -1:] + np.arange(16, dtype=np.float32)[:, None, None, None]
        return mean, np.full_like(mean, np.log(0.25))

    monkeypatch.setattr(encode.tae_tiles, "encode", encoded)
    monkeypatch.setattr(encode.tae_weights, "load", lambda path, cfg: {})
    return seen


def settings(**data):
    config = common.shrink(common.stage("1b", 2))
    config.data.update(dict(max_bad_fraction=0.5) | data)
    return config


def item(number, frames=8, side=16, kind="video"):
    """All pixels are of this number, but for the first."""
    pixels = np.full((frames, side, side, 3), number, np.uint8)
    pixels[:, 0, 0] = 255
    return encode.Item(f"{number}", kind, lambda: pixels)


def test_items_of_one_shape_are_encoded_together_and_the_rest_is_filled_up(shapes, tmp_path):
    items = [item(i, 1 if i % 3 else 8) for i in range(30)]
    assert encode.encode(items, settings(), tmp_path, "a") == {"encoded": 30, "kept": 0, "bad": 0}
    assert sorted(shapes) == [(8, 3, 1, 16, 16)] * 3 + [(8, 3, 8, 16, 16)] * 2
    cache = latent_cache.open_cache(tmp_path)
    assert len(cache.shards) == 30
    for i in range(30):
        mean, std = cache.find(f"{i}").read()
        np.testing.assert_allclose(mean[:, :2, 0, 0], [[i / 127.5 - 1, i / 127.5]], atol=1e-6)
        np.testing.assert_allclose(std, 0.5)
    assert cache.sums["video"]["count"] == 30


def test_large_videos_are_encoded_one_by_one(shapes, tmp_path):
    encode.encode([item(i, 8, 256) for i in range(2)], settings(), tmp_path, "a")
    assert shapes == [(1, 3, 8, 256, 256)] * 2


def film(number, pieces, side, then=None):
    """An item whose frames come in pieces of 32, the last of 8, and what it reads as it goes."""
    pixels, seen = np.random.default_rng(number).integers(0, 255, (32 * pieces - 24, side, side, 3), np.uint8), []

    def frames():
        for at in range(0, len(pixels), 32):
            seen.append(at)
            yield pixels[at : at + 32]
            if then:
                raise then

    return encode.Item(f"{number}", "video", frames), pixels, seen


def test_a_film_is_encoded_as_its_pieces_come_and_is_what_it_is_whole(shapes, tmp_path, monkeypatch):
    (item, pixels, seen), stub, order = film(1, 3, 128), encode.tae_tiles.encode, []
    monkeypatch.setattr(encode.tae_tiles, "encode", lambda *args: order.append(len(seen)) or stub(*args))
    assert encode.encode([item], settings(), tmp_path / "a", "a")["encoded"] == 1
    assert shapes == [(1, 3, 32, 128, 128)] * 2 + [(1, 3, 8, 128, 128)] and order == [1, 2, 3]
    encode.encode([item._replace(frames=lambda: pixels)], settings(), tmp_path / "b", "a")
    assert shapes[3:] == [(1, 3, 72, 128, 128)]
    found = [latent_cache.open_cache(tmp_path / folder).find("1") for folder in "ab"]
    np.testing.assert_array_equal(*(each.read()[0] for each in found))
    assert [each.bucket for each in found] == ["72x128x128"] * 2 and found[0].shape() == (9, 16, 1, 1)


def test_clips_of_several_pieces_that_are_small_are_encoded_together(shapes, tmp_path):
    encode.encode([film(i, 2, 16)[0] for i in range(8)], settings(), tmp_path, "a")
    assert shapes == [(8, 3, 40, 16, 16)]


def test_a_film_that_breaks_in_the_middle_is_bad_and_alone(shapes, tmp_path, capsys):
    items = [film(1, 3, 128, then=DataError("it is torn"))[0], item(2), film(3, 3, 128)[0]]
    assert encode.encode(items, settings(), tmp_path, "a") == {"encoded": 2, "kept": 0, "bad": 1}
    assert "cannot be used: it is torn" in capsys.readouterr().out
    assert latent_cache.open_cache(tmp_path).shards.keys() == {"2", "3"}


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


def test_latents_of_another_precision_are_not_mixed_and_serve_any_training(shapes, tmp_path):
    rehearsed = settings()
    rehearsed.tae.compute_dtype = "float16"
    encode.encode([item(0)], rehearsed, tmp_path, "a")
    with pytest.raises(ConfigError, match='tae.compute_dtype: "float16" -> "float32"'):
        encode.encode([item(1)], settings(), tmp_path, "a")
    latent_cache.check(tmp_path, settings())
    latent_cache.check(tmp_path, rehearsed)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["tae"]["compute_dtype"]  # as before there was such a key: all were float32
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    encode.encode([item(1)], settings(), tmp_path, "a")
    with pytest.raises(ConfigError, match='tae.compute_dtype: null -> "float16"'):
        encode.encode([item(2)], rehearsed, tmp_path, "a")


def test_a_precision_that_this_device_lacks_is_named_before_a_cache_is_begun(shapes, tmp_path):
    config = settings()
    config.tae.compute_dtype = "bfloat16"
    with pytest.raises(ConfigError, match="tae.compute_dtype is 'bfloat16'.*use --config.tae.compute_dtype=float32"):
        encode.encode([item(0)], config, tmp_path / "latents", "a")
    assert not (tmp_path / "latents").exists()


def test_latents_that_are_not_finite_are_told_and_not_stored(shapes, tmp_path, monkeypatch, capsys):
    encoded = encode.tae_tiles.encode

    def with_nan(*args):
        mean, logvar = encoded(*args)
        mean[1, 3, 0, 0, 0] = np.nan
        logvar[2, 5] = 1e9  # a deviation without end
        mean[3] = 0.5
        return mean, logvar

    monkeypatch.setattr(encode.tae_tiles, "encode", with_nan)
    found = encode.encode([item(i) for i in range(8)], settings(), tmp_path, "a")
    assert found == {"encoded": 5, "kept": 0, "bad": 3}
    printed = capsys.readouterr().out
    assert (
        "1: latents are not finite" in printed and "2: latents are not" in printed and "3: all latents are" in printed
    )
    cache = latent_cache.open_cache(tmp_path)
    assert cache.shards.keys() == {"0", "4", "5", "6", "7"} and np.isfinite(cache.statistics()).all()
    config = settings(max_bad_fraction=0.2)
    with pytest.raises(DataError, match="2 of 8 files cannot be used so far, .*: first of them, 1: latents are"):
        encode.encode([item(i) for i in range(8)], config, tmp_path / "b", "a")


def test_frames_of_one_colour_are_bad(shapes, tmp_path, capsys):
    grey = encode.Item("grey", "video", lambda: np.full((8, 16, 16, 3), (1, 2, 3), np.uint8))
    found = encode.encode([grey, item(1), item(2)], settings(), tmp_path, "a")
    assert found["bad"] == 1 and "grey: all pixels have the one colour [1, 2, 3]" in capsys.readouterr().out


def test_a_file_that_was_replaced_is_encoded_again(shapes, tmp_path, capsys):
    def items(number):
        of_file = [files.File(name, tmp_path / "videos") for name in ("a", "b", "gone")]
        return [item(number)._replace(name=file.name, file=file) for file in of_file]

    (tmp_path / "videos").mkdir()
    for name in ("a", "b", "gone"):
        (tmp_path / "videos" / name).write_text("1")
    cache = tmp_path / "cache"
    assert encode.encode(items(1), settings(), cache, "a")["encoded"] == 3
    shutil.copyfile(tmp_path / "videos" / "a", tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "videos" / "a")  # the same content, written later
    os.utime(tmp_path / "videos" / "a", (9, 9))
    (tmp_path / "videos" / "b").write_text("2")
    os.utime(tmp_path / "videos" / "b", (9, 9))
    (tmp_path / "videos" / "gone").unlink()  # latents need no videos
    capsys.readouterr()
    assert encode.encode(items(2), settings(), cache, "the set") == {"encoded": 1, "kept": 2, "bad": 0}
    assert "the set: 1 files are no longer those that were encoded, and are encoded again: b" in capsys.readouterr().out
    found = {name: latent_cache.open_cache(cache).find(name).read()[0][0, 0, 0, 0] for name in ("a", "b", "gone")}
    assert found == pytest.approx({"a": 1 / 127.5 - 1, "b": 2 / 127.5 - 1, "gone": 1 / 127.5 - 1}, abs=1e-6)
    assert latent_cache.open_cache(cache).sums["video"]["count"] == 3
    assert encode.encode(items(2), settings(), cache, "the set")["kept"] == 3


def test_a_full_disk_is_one_error_and_the_same_call_goes_on_later(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "SHARD_BYTES", 1)
    write, written = latent_cache.safetensors_io._write_file, []

    def full(path, *args):
        write(path, *args)
        written.append(path)
        if len(written) > 1:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(latent_cache.safetensors_io, "_write_file", full)
        with pytest.raises(DataError, match="cannot write the safetensors file .*No space left on device"):
            encode.encode([item(i) for i in range(4)], settings(), tmp_path, "a")
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "latents-00000-000000.safetensors"}
    assert encode.encode([item(i) for i in range(4)], settings(), tmp_path, "a") == {"encoded": 3, "kept": 1, "bad": 0}


def test_a_folder_that_cannot_be_written_is_one_error(shapes, tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(DataError, match="a/manifest.json: cannot be written"):
        encode.encode([item(0)], settings(), tmp_path / "a", "a")
