import json
import os

import numpy as np
import pytest

from moviegen.data import latent_cache
from moviegen.errors import ConfigError, DataError
from moviegen.storage import safetensors_io


def posterior(seed, frames):
    rng = np.random.default_rng(seed)
    mean = 2 + np.arange(1, 4)[:, None, None, None] * rng.standard_normal((3, frames, 4, 5))
    return mean.astype(np.float32), np.abs(rng.standard_normal(mean.shape)).astype(np.float32)


def filled(folder, dtype="float32", count=5):
    given = {f"deep/{i}.mp4": posterior(i, 1 + i) for i in range(count)}
    store = latent_cache.ShardWriter(folder, dtype, 0)
    for name, (mean, std) in given.items():
        store.add(name, mean, std, "video")
    store.flush()
    return given


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0), ("bfloat16", 2**-8)])
def test_what_is_added_is_read_back(tmp_path, monkeypatch, dtype, tolerance):
    monkeypatch.setattr(latent_cache, "SHARD_BYTES", 1500)
    given = filled(tmp_path, dtype)
    assert len(list(tmp_path.glob("latents-00000-*.safetensors"))) > 1
    cache = latent_cache.open_cache(tmp_path)
    assert cache.shards.keys() == given.keys()
    for name, pair in given.items():
        found = cache.find(name).read()
        for x, y in zip(found, pair, strict=True):
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, y.swapaxes(0, 1), rtol=tolerance)


def test_statistics_are_those_of_draws_from_all_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "SHARD_BYTES", 1500)
    given = filled(tmp_path)
    store = latent_cache.ShardWriter(tmp_path, "float32", 1)
    for kind in ("image", "heldout"):
        store.add(kind, *(1000 * x for x in posterior(0, 1)), kind)
    store.flush()
    rng = np.random.default_rng(9)
    drawn = [
        (mean + std * rng.standard_normal((2000, *mean.shape))).swapaxes(0, 1).reshape(3, -1)
        for mean, std in given.values()
    ]
    drawn = np.concatenate(drawn, 1)
    shift, scale = latent_cache.open_cache(tmp_path).statistics()
    np.testing.assert_allclose(shift, drawn.mean(1), atol=0.01)
    values = (drawn - np.array(shift)[:, None]) * np.array(scale)[:, None]
    assert values.var(1).mean() == pytest.approx(1, abs=0.02)
    ratio = values.std(1) ** 2 / drawn.std(1)  # deviations to the power of a half
    np.testing.assert_allclose(ratio, ratio[0], rtol=0.02)


def test_statistics_are_those_of_images_where_there_are_no_videos(tmp_path):
    store = latent_cache.ShardWriter(tmp_path, "float32", 0)
    mean, std = posterior(0, 1)
    store.add("a.png", mean, std, "image")
    store.flush()
    np.testing.assert_allclose(latent_cache.open_cache(tmp_path).statistics()[0], mean.mean((1, 2, 3)), rtol=1e-5)


def test_sums_without_kinds_count_as_those_of_videos(tmp_path):
    """As shards of earlier versions have them."""
    mean, std = posterior(0, 1)
    store = latent_cache.ShardWriter(tmp_path, "float32", 0)
    store.add("a.mp4", mean, std, "video")
    store.flush()
    expected = latent_cache.open_cache(tmp_path).statistics()
    sums = latent_cache._sums(mean, std)
    safetensors_io.write({}, tmp_path / "latents-00000-000000.safetensors", "float32", {"sums": sums})
    assert latent_cache.open_cache(tmp_path).statistics() == expected


def test_the_manifest_states_the_statistics_of_an_encoding_that_has_ended(tmp_path):
    latent_cache.check_or_write(tmp_path, {"height": 8})
    filled(tmp_path, count=2)
    latent_cache.note_statistics(tmp_path)
    noted = latent_cache.open_cache(tmp_path).statistics()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest == {"height": 8, "statistics": {"shift": noted[0], "scale": noted[1]}}
    store = latent_cache.ShardWriter(tmp_path, "float32", 1)
    store.add("more", *posterior(7, 1), "video")
    store.flush()
    assert latent_cache.open_cache(tmp_path).statistics() == noted
    latent_cache.check_or_write(tmp_path, {"height": 8})  # the statistics are no part of the fingerprint
    latent_cache.note_statistics(tmp_path)
    assert latent_cache.open_cache(tmp_path).statistics() != noted


def test_entries_are_read_at_random_from_shards_that_stay_open(tmp_path, monkeypatch):
    given = filled(tmp_path, count=200)
    entries = {name: latent_cache.open_cache(tmp_path).find(name) for name in given}
    opened, kept = [], latent_cache.safetensors_io._kept_open
    for opens in ("lazy", "_read_one"):
        monkeypatch.setattr(latent_cache.safetensors_io, opens, None)
    monkeypatch.setattr(latent_cache.safetensors_io, "_kept_open", lambda *at: opened.append(at) or kept(*at))
    before = kept.cache_info().misses
    for name in np.random.default_rng(0).permutation(list(given)):
        np.testing.assert_array_equal(entries[name].read()[0], given[name][0].swapaxes(0, 1))
    assert len(opened) == 400 and kept.cache_info().misses == before + 1


def test_more_can_be_added_later_and_shards_are_not_written_over(tmp_path):
    filled(tmp_path, count=2)
    assert latent_cache.open_cache(tmp_path).find("deep/1.mp4").is_file()
    store = latent_cache.ShardWriter(tmp_path, "float32", 0)
    store.add("x.png", *posterior(7, 1), "image")
    store.flush()
    cache = latent_cache.open_cache(tmp_path)
    assert len(cache.shards) == 3 and cache.find("x.png").is_file() and not cache.find("y.png").is_file()
    assert [cache.sums[kind]["count"] for kind in ("video", "image")] == [20 * (1 + 2), 20]


def test_a_shard_is_written_after_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "SECONDS", -1.0)
    latent_cache.ShardWriter(tmp_path, "float32", 3).add("a", *posterior(0, 1), "video")
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
        latent_cache.StoredLatents("a.mp4", tmp_path / "a.npz").read()


def test_an_unknown_dtype_is_named(tmp_path):
    with pytest.raises(ConfigError, match="data.latent_dtype is 'int8'"):
        latent_cache.ShardWriter(tmp_path, "int8", 0)


def test_flipped_bits_are_noticed_when_they_are_read(tmp_path):
    given = filled(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    content, header = path.read_bytes(), int.from_bytes(path.read_bytes()[:8], "little")
    rng = np.random.default_rng(0)
    for at in rng.integers(8 + header, len(content), size=40):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        os.utime(path, ns=(int(at), int(at)))  # which tells an open file from its successor
        cache, refused = latent_cache.open_cache(tmp_path), []
        for name in given:
            try:
                cache.find(name).read()
            except DataError as error:
                refused.append(str(error))
        assert len(refused) == 1 and "not the bytes that were written: delete the file and run" in refused[0]


def old_shard(folder, sums=None, **arrays):
    """As earlier versions wrote them."""
    metadata = {"sums": {"video": sums}} if sums else {}
    return safetensors_io.write(arrays, folder / "latents-00000-000000.safetensors", "float32", metadata)


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "a.mp4 in .*: latents are not finite"), (2.0, "a.mp4 in .*: all latents are 2.0")]
)
def test_latents_that_teach_nothing_are_refused_where_they_are_read(tmp_path, value, reason):
    """Of shards with checksums they were looked at when they were made."""
    mean, std = (x.swapaxes(0, 1) for x in posterior(0, 1))
    mean = np.full_like(mean, value)
    old_shard(tmp_path, **{"mean/a.mp4": mean, "std/a.mp4": std})
    with pytest.raises(DataError, match=reason):
        latent_cache.open_cache(tmp_path).find("a.mp4").read()
    np.savez(tmp_path / "b.npz", latent_mean=mean, latent_std=std)
    with pytest.raises(DataError, match=reason.replace("a.mp4 in ", "")):
        latent_cache.open_cache(tmp_path).find("b.mp4").read()
    np.savez(tmp_path / "b.npz", latent_mean=posterior(0, 1)[0], latent_std=std[:, :1])
    with pytest.raises(DataError, match=r"b.npz: mean and std of the latents are \(3, 1, 4, 5\) and"):
        latent_cache.open_cache(tmp_path).find("b.mp4").read()


def test_of_several_latents_of_a_name_the_newest_count_once(tmp_path):
    for rank, seed in ((1, 0), (0, 1), (0, 2)):  # the last number is the newest, whatever the rank
        store = latent_cache.ShardWriter(tmp_path, "float32", rank)
        store.add("a.mp4", *posterior(seed, 2), "video")
        store.add(f"{seed}.mp4", *posterior(seed + 10, 1), "video")
        store.flush()
    files = sorted(path.name[8:20] for path in tmp_path.iterdir())
    assert files == ["00000-000001", "00000-000002", "00001-000000"]
    cache = latent_cache.open_cache(tmp_path)
    assert cache.shards.keys() == {"a.mp4", "0.mp4", "1.mp4", "2.mp4"}
    np.testing.assert_array_equal(cache.find("a.mp4").read()[0], posterior(2, 2)[0].swapaxes(0, 1))
    filled = tmp_path / "anew"
    store = latent_cache.ShardWriter(filled, "float32", 0)
    for name, latents in (("a.mp4", posterior(2, 2)), *((f"{i}.mp4", posterior(i + 10, 1)) for i in range(3))):
        store.add(name, *latents, "video")
    store.flush()
    np.testing.assert_allclose(cache.statistics(), latent_cache.open_cache(filled).statistics())


def test_statistics_are_noted_again_only_where_they_have_changed(tmp_path):
    filled(tmp_path)
    latent_cache.note_statistics(tmp_path)
    before = (tmp_path / "manifest.json").stat()
    latent_cache.note_statistics(tmp_path)
    assert (tmp_path / "manifest.json").stat() == before


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "[" * 200_000,
        '{"num_frames": "8"}',
        '{"statistics": 3}',
        '{"statistics": {"shift": [0, 0, NaN], "scale": [1, 1, 1]}}',
        '{"statistics": {"shift": [0, 0, 0], "scale": [1, 1e999, 1]}}',
        '{"statistics": {"shift": [0, 0, 0], "scale": [1, 0, 1]}}',
        '{"statistics": {"shift": "a", "scale": ["a"]}}',
        '{"statistics": {"shift": [0, 0], "scale": [1, 1, 1]}}',
        '{"statistics": {"shift": [[0]], "scale": [[1]]}}',
        '{"statistics": {"shift": [0, 0, 0], "scale": [1, 1, 1]}, "tae": {"latent_channels": 16}}',
        '{"statistics": {"shift": [0], "scale": [1]}, "tae": 3}',
    ],
)
def test_a_damaged_manifest_is_named_with_the_mend(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    for read in (latent_cache.open_cache(tmp_path).statistics, lambda: latent_cache.check_or_write(tmp_path, {})):
        with pytest.raises(DataError, match="manifest.json: damaged: delete it, and encode again"):
            read()


def test_a_shard_with_a_wrong_header_is_named_with_the_mend(tmp_path):
    mean, std = (x.swapaxes(0, 1) for x in posterior(0, 1))
    good = {"kind": "video", "sums": latent_cache._sums(*posterior(0, 1)), "checksums": [1, 2], "file": None}
    wrong = [
        *({key: value for key, value in good.items() if key != gone} for gone in ("kind", "sums", "file")),
        *(good | {"kind": kind} for kind in ([], {})),
        *(good | {"file": file} for file in (3, [1], "ab")),
        *(good | {"sums": sums} for sums in (None, [], {"count": 1}, good["sums"] | {"total": [1.0]})),
        *(
            good | {"sums": good["sums"] | {key: value}}
            for key in ("count", "square")
            for value in (np.nan, "x", [[0]])
        ),
        [],
        "x",
    ]
    whole = {"mean/a": mean, "std/a": std}
    cases = [(whole, {"entries": {"a": entry}}) for entry in wrong] + [(whole, {"entries": e}) for e in ({}, [], "a")]
    cases += [(whole, {"sums": sums}) for sums in ([], "x", {"video": 3}, {"count": 1})]
    cases += [({"mean/a": mean}, {}), ({"mean/a": mean[0], "std/a": mean[0]}, {}), (whole | {"std/a": std[:, 1:]}, {})]
    for number, (arrays, metadata) in enumerate(cases):
        folder = tmp_path / f"{number}"
        safetensors_io.write(arrays, folder / "latents-00000-000000.safetensors", "float32", metadata)
        with pytest.raises(DataError, match="latents-00000-000000.safetensors: cannot be used: delete it and run"):
            print(latent_cache.open_cache(folder), metadata)


def test_sums_of_earlier_versions_that_are_not_finite_are_named(tmp_path):
    """One such latent made the statistics of the whole cache NaN."""
    mean, std = posterior(0, 1)
    mean[1, 0, 0, 0] = np.nan
    old_shard(
        tmp_path, latent_cache._sums(mean, std), **{"mean/a.mp4": mean.swapaxes(0, 1), "std/a.mp4": std.swapaxes(0, 1)}
    )
    with pytest.raises(
        DataError, match="latents-00000-000000.safetensors: cannot be used: .*of its videos are not finite"
    ):
        latent_cache.open_cache(tmp_path)


def test_files_with_other_names_are_no_shards(tmp_path):
    filled(tmp_path, count=1)
    (path,) = tmp_path.iterdir()
    (tmp_path / "latents-00000-000000 (copy).safetensors").write_bytes(path.read_bytes())
    assert latent_cache.open_cache(tmp_path).sums["video"]["count"] == 20
    store = latent_cache.ShardWriter(tmp_path, "float32", 0)
    store.add("b", *posterior(1, 1), "video")
    store.flush()
    assert (tmp_path / "latents-00000-000001.safetensors").is_file()
