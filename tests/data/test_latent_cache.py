import numpy as np
import pytest

from moviegen.data import latent_cache
from moviegen.errors import ConfigError, DataError


def posterior(seed, frames):
    rng = np.random.default_rng(seed)
    mean = 2 + np.arange(1, 4)[:, None, None, None] * rng.standard_normal((3, frames, 4, 5))
    return mean.astype(np.float32), np.abs(rng.standard_normal(mean.shape)).astype(np.float32)


def filled(folder, dtype="float32", count=5):
    given = {f"deep/{i}.mp4": posterior(i, 1 + i) for i in range(count)}
    store = latent_cache.Writer(folder, dtype, 0)
    for name, (mean, std) in given.items():
        store.add(name, mean, std)
    store.flush()
    return given


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0), ("bfloat16", 2**-8)])
def test_what_is_added_is_read_back(tmp_path, monkeypatch, dtype, tolerance):
    monkeypatch.setattr(latent_cache, "SHARD_BYTES", 1500)
    given = filled(tmp_path, dtype)
    assert len(list(tmp_path.glob("latents-00000-*.safetensors"))) > 1
    cache = latent_cache.open_cache(tmp_path)
    assert cache.arrays.keys() == given.keys()
    for name, pair in given.items():
        found = cache.entry(name).read()
        for x, y in zip(found, pair, strict=True):
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, y.swapaxes(0, 1), rtol=tolerance)


def test_statistics_are_those_of_draws_from_all_posteriors(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "SHARD_BYTES", 1500)
    given = filled(tmp_path)
    rng = np.random.default_rng(9)
    drawn = [
        (mean + std * rng.standard_normal((2000, *mean.shape))).swapaxes(0, 1).reshape(3, -1)
        for mean, std in given.values()
    ]
    drawn = np.concatenate(drawn, 1)
    shift, scale = latent_cache.open_cache(tmp_path).statistics()
    np.testing.assert_allclose(shift, drawn.mean(1), atol=0.01)
    np.testing.assert_allclose(scale, 1 / drawn.std(1), rtol=0.01)


def test_more_can_be_added_later_and_shards_are_not_written_over(tmp_path):
    filled(tmp_path, count=2)
    assert latent_cache.open_cache(tmp_path).entry("deep/1.mp4").is_file()
    store = latent_cache.Writer(tmp_path, "float32", 0)
    store.add("x.png", *posterior(7, 1))
    store.flush()
    cache = latent_cache.open_cache(tmp_path)
    assert len(cache.arrays) == 3 and cache.entry("x.png").is_file() and not cache.entry("y.png").is_file()
    assert cache.sums["count"] == 20 * (1 + 2 + 1)


def test_a_shard_is_written_after_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "SECONDS", -1.0)
    latent_cache.Writer(tmp_path, "float32", 3).add("a", *posterior(0, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["latents-00003-000000.safetensors"]


def test_a_folder_without_shards_has_no_statistics(tmp_path):
    assert latent_cache.open_cache(tmp_path).statistics() is None


def test_damaged_files_are_named(tmp_path):
    filled(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="latents-00000-000000.safetensors"):
        latent_cache.open_cache(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="a.npz: cannot be read as npz with latent_mean, latent_std"):
        latent_cache.Entry("a.mp4", tmp_path / "a.npz", None).read()


def test_an_unknown_dtype_is_named(tmp_path):
    with pytest.raises(ConfigError, match="data.latent_dtype is 'int8'"):
        latent_cache.Writer(tmp_path, "int8", 0)
