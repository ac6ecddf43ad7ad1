"""Videos to the seed's latent files, and a generator trained on them from a csv."""

from pathlib import Path

import numpy as np
import pytest

from experiments import common
from moviegen.data import captions, crops, encode, files, latent_cache, pipeline, table, video
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import encode_video, train
from moviegen.models.tae import model as tae, weights as tae_weights
from moviegen.parallel.mesh import Group, Mesh
from moviegen.runner import Run
from moviegen.storage import checkpoint, safetensors_io
from tests.data import broken

DIMS = dict(ul2=8, metaclip=6, byt5=4)
VIDEOS = {"a.mp4": 12, "deep/b.mp4": 8, "c.png": 1}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Videos, their csv, weights and embeddings; the latents are each test's own."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for name, frames in VIDEOS.items():
        pixels = rng.integers(0, 255, (frames, 6, 6, 3), np.uint8).repeat(6, 1).repeat(6, 2)
        if name.endswith(".png"):
            video.write_png(root / "videos" / name, pixels[0])
        else:
            video.write_mp4(root / "videos" / name, pixels, 8)
        for encoder, width in DIMS.items():
            path = root / encoder / Path(name).with_suffix(".npz")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, text_emb=rng.standard_normal((3, width)).astype(np.float32), mask=np.array([1, 1, 0]))
            np.savez(root / f"empty-{encoder}.npz", text_emb=np.zeros((1, width), np.float32), mask=np.ones(1, int))
    (root / "train.csv").write_text("video,caption\n" + "".join(f"{name},x\n" for name in VIDEOS))
    safetensors_io.write(tae.init(settings(root, root).tae, 0), root / "tae.safetensors")
    return root


def settings(root, folder, **data):
    config = common.shrink(common.stage("1b", 2))
    config.tae = common.tae("tiny", base_channels=8, channel_multipliers=(1, 1, 2, 2), norm_groups=4)
    config.model.update(hidden_size=24, num_layers=1, num_heads=2, ffn_size=32, position_lengths=(1, 1, 1))
    config.model.text_dims = DIMS
    values = dict(
        source="csv",
        csv=str(root / "train.csv"),
        video_folder=str(root / "videos"),
        latent_folder=str(folder / "latents"),
        text_folders={name: str(root / name) for name in DIMS},
        empty_text={name: str(root / f"empty-{name}.npz") for name in DIMS},
        tae_weights=str(root / "tae.safetensors"),
        height=16,
        width=16,
        num_frames=8,
        image_fraction=0.5,
        max_bad_fraction=0.0,
    )
    config.data.update(values | data)
    return config


def stored(folder, name):
    mean, std = latent_cache.open_cache(folder / "latents").find(name).read()
    return {"latent_mean": mean, "latent_std": std}


@pytest.fixture(scope="module")
def encoded(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded")
    return folder, encode_video.run(Run(settings(shared, folder), folder))


def test_the_cache_holds_mean_and_std_of_the_first_frames(encoded, shared):
    folder, metrics = encoded
    assert metrics == {"encoded": 3, "kept": 0, "bad": 0}
    config = settings(shared, folder)
    params = safetensors_io.read(shared / "tae.safetensors")
    for name, frames in (("deep/b.mp4", 8), ("c.png", 1)):
        clip, _ = video.read(shared / "videos" / name, 0, frames, size=16)
        mean, logvar = (x.asnumpy()[0] for x in tae.encode(params, config.tae, video.to_model(clip)[None]))
        found = stored(folder, name)
        assert all(v.dtype == np.float32 and v.shape == (1, 16, 2, 2) for v in found.values())
        np.testing.assert_allclose(found["latent_mean"], mean.transpose(1, 0, 2, 3), atol=1e-6)
        np.testing.assert_allclose(found["latent_std"] ** 2, np.exp(logvar.transpose(1, 0, 2, 3)), rtol=1e-5)
    assert {p.name for p in (folder / "latents").iterdir()} == {"manifest.json", "latents-00000-000000.safetensors"}


def test_a_run_that_was_killed_goes_on_where_its_last_shard_ends(shared, tmp_path, monkeypatch):
    whole = encode.tae_tiles.encode
    calls = []

    def killed_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    flush = latent_cache.ShardWriter.flush
    monkeypatch.setattr(latent_cache, "SHARD_BYTES", 1)  # a shard for each
    monkeypatch.setattr(encode, "BATCH", 1)
    with monkeypatch.context() as patch:
        patch.setattr(encode.tae_tiles, "encode", killed_at_the_third)
        patch.setattr(
            latent_cache.ShardWriter, "flush", lambda self: flush(self) if len(calls) < 3 else None
        )  # kill -9
        with pytest.raises(KeyboardInterrupt):
            encode_video.run(Run(settings(shared, tmp_path), tmp_path))
    assert encode_video.run(Run(settings(shared, tmp_path), tmp_path)) == {"encoded": 1, "kept": 2, "bad": 0}
    monkeypatch.setattr(encode.tae_tiles, "encode", None)
    assert encode_video.run(Run(settings(shared, tmp_path), tmp_path)) == {"encoded": 0, "kept": 3, "bad": 0}
    assert len(list((tmp_path / "latents").glob("*.safetensors"))) == 3


def test_ranks_share_the_videos_out_and_the_first_tells_of_all(encoded, shared, tmp_path, monkeypatch, capsys):
    """Whatever an earlier run, which was killed, left behind."""
    folder, _ = encoded
    (tmp_path / "ranks").mkdir()
    for name in ("encode_video_7_1.json", "encode_video_1.json"):
        (tmp_path / "ranks" / name).write_text('{"encoded": 100, "kept": 0, "bad": 0}')
    monkeypatch.setattr(encode_video.encode.sync, "wait", lambda world: None)
    counts = []
    for rank in (1, 0):
        mesh = Mesh(2, world=Group("", 2, rank))
        counts.append(encode_video.run(Run(settings(shared, tmp_path), tmp_path, mesh))["encoded"])
    assert counts == [1, 3] and capsys.readouterr().out.count("3 encoded, 0 there before, 0 bad") == 1
    assert [path.name for path in (tmp_path / "ranks").iterdir()] == ["encode_video_7_1.json"]
    for name in VIDEOS:
        np.testing.assert_array_equal(stored(tmp_path, name)["latent_mean"], stored(folder, name)["latent_mean"])
    one, two = (latent_cache.open_cache(place / "latents").statistics() for place in (folder, tmp_path))
    np.testing.assert_allclose(one, two)


def test_latents_of_other_settings_are_not_mixed(encoded, shared, tmp_path):
    folder, _ = encoded
    with pytest.raises(ConfigError, match=r"num_frames: 8 -> 9\): delete it or change data.latent_folder"):
        encode_video.run(Run(settings(shared, folder, num_frames=9), tmp_path))


def test_a_bare_folder_is_encoded(shared, tmp_path):
    found = encode_video.run(Run(settings(shared, tmp_path, csv="", latent_dtype="bfloat16"), tmp_path))
    assert found["encoded"] == 3
    assert latent_cache.open_cache(tmp_path / "latents").shards.keys() == VIDEOS.keys()


def test_all_frames_at_zero(shared, tmp_path):
    table_of_one = tmp_path / "one.csv"
    table_of_one.write_text("video\ndeep/b.mp4\n")  # which has eight, as the other tests: one shape to compile
    encode_video.run(Run(settings(shared, tmp_path, num_frames=0, csv=str(table_of_one)), tmp_path))
    assert stored(tmp_path, "deep/b.mp4")["latent_mean"].shape == (1, 16, 2, 2)


def test_the_rate_that_is_shown_is_noted_and_told(shared, tmp_path, capsys):
    table_of_rates = tmp_path / "rates.csv"
    rows = "a.mp4,x,6\ndeep/b.mp4,y,\nc.png,z,25\nd.mp4,x,-24\n"  # the files have 8
    table_of_rates.write_text("video,caption,fps\n" + rows)
    config = settings(shared, tmp_path, csv=str(table_of_rates), max_bad_fraction=0.3)
    assert encode_video.run(Run(config, tmp_path)) == {"encoded": 3, "kept": 0, "bad": 1}
    assert "line 5: fps is '-24'" in capsys.readouterr().out
    cache = latent_cache.open_cache(tmp_path / "latents")
    assert cache.rates == {"a.mp4": 6.0, "deep/b.mp4": 8.0}
    found, _ = captions.read(config.data.csv, config, cached=cache.rates)
    assert [row.texts["ul2"] for row in found] == ["FPS-6 x", "FPS-8 y", "z"]
    clip, _ = video.read(shared / "videos" / "a.mp4", 0, 8, size=16, fps=6)
    params = safetensors_io.read(shared / "tae.safetensors")
    mean = tae.encode(params, config.tae, video.to_model(clip)[None])[0].asnumpy()[0]
    np.testing.assert_allclose(stored(tmp_path, "a.mp4")["latent_mean"], mean.transpose(1, 0, 2, 3), atol=1e-6)


def test_pieces_of_one_file_are_samples_of_their_own(shared, tmp_path, capsys, monkeypatch):
    """In the cache, in the table that is trained on and in what the autoencoder trains on."""
    rows = "a.mp4,x,0.5,\na.mp4,y,,1\na.mp4,z,1,0.5\nc.png,z,1,2\n"  # eight frames a second, twelve of them
    (tmp_path / "pieces.csv").write_text("video,caption,start,end\n" + rows)
    config = settings(shared, tmp_path, csv=str(tmp_path / "pieces.csv"), max_bad_fraction=0.5, text_drop_prob=0.0)
    assert encode_video.run(Run(config, tmp_path)) == {"encoded": 2, "kept": 0, "bad": 2}
    told = capsys.readouterr().out
    assert "line 4: start is '1' and end '0.5'" in told and "line 5: " in told and "an image has no start" in told
    params = safetensors_io.read(shared / "tae.safetensors")
    whole, _ = video.read(shared / "videos" / "a.mp4", size=16)
    for name, clip in {"a#0.5-.mp4": whole[4:12], "a#0-1.mp4": whole[:8]}.items():
        mean = tae.encode(params, config.tae, video.to_model(clip)[None])[0].asnumpy()[0]
        np.testing.assert_allclose(stored(tmp_path, name)["latent_mean"], mean.transpose(1, 0, 2, 3), atol=1e-6)
        for encoder in DIMS:
            npz = (shared / encoder / "a.npz").read_bytes()
            (shared / encoder / f"{Path(name).stem}.npz").write_bytes(npz)
    assert [row.video for row in table.read(config, config.data.csv)] == ["a#0.5-.mp4", "a#0-1.mp4"]
    assert [row.video for row in captions.read(config.data.csv, config)[0]] == ["a#0.5-.mp4", "a#0-1.mp4", "c#1-2.png"]
    monkeypatch.setattr(files.sync, "first_rank_alone", lambda world, do, marker: None if world.rank else do())
    (counts, _), others = (files.usable(config.data, 8, tmp_path / "v.json", Group("", 2, rank)) for rank in (0, 1))
    assert others[0] == counts
    assert {file.name: frames for file, frames in counts.items()} == {"a#0.5-.mp4": 8, "a#0-1.mp4": 8}
    config.data.update(resize=0, flip=False)
    draw = crops.source(config.data)(np.random.default_rng(0), 8, 36, 36)
    assert any((draw == video.read(shared / "videos" / "a.mp4")[0][at : at + 8]).all() for at in (0, 4))


def test_bad_files_are_listed_and_refused_above_the_share(shared, tmp_path, capsys):
    bad = tmp_path / "bad.csv"
    bad.write_text("video\nc.png\ngone.mp4\nshort.mp4\n")
    config = settings(shared, tmp_path, csv=str(bad), max_bad_fraction=0.4)
    with pytest.raises(DataError, match=r"bad.csv: 2 of 3 files cannot .*is 0.4: first of them, line 3: .*gone.mp4"):
        encode_video.run(Run(config, tmp_path))
    assert "line 4: " in capsys.readouterr().out
    config.data.max_bad_fraction = 0.7
    assert encode_video.run(Run(config, tmp_path)) == {"encoded": 0, "kept": 1, "bad": 2}


def test_every_kind_of_bad_file(shared, tmp_path):
    table = broken.write(tmp_path / "set")
    config = settings(shared, tmp_path, csv=str(table), video_folder=str(tmp_path / "set"), max_bad_fraction=0.6)
    assert encode_video.run(Run(config, tmp_path)) == {"encoded": 5, "kept": 0, "bad": 7}
    config.data.max_bad_fraction = 0.5
    with pytest.raises(DataError, match="7 of 12 files cannot be used"):
        encode_video.run(Run(config, tmp_path))


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        ({"video_folder": "/nowhere"}, ConfigError, "data.video_folder is '/nowhere'"),
        ({"tae_weights": "gone"}, ConfigError, "data.tae_weights is 'gone'"),
        ({"csv": "gone.csv"}, DataError, "data.csv is 'gone.csv'"),
    ],
)
def test_wrong_settings_are_named(shared, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        encode_video.run(Run(settings(shared, tmp_path, **overrides), tmp_path))
    assert not (tmp_path / "latents").exists()


def test_rows_outside_the_folder_are_bad_unless_that_is_allowed(shared, tmp_path):
    (tmp_path / "x.csv").write_text(f"video\ndeep/b.mp4\n../videos2/b.mp4\n{shared}/videos2/b.mp4\n")
    (shared / "videos2").mkdir()
    (shared / "videos2" / "b.mp4").write_bytes((shared / "videos" / "deep" / "b.mp4").read_bytes())
    config = settings(shared, tmp_path, csv=str(tmp_path / "x.csv"), max_bad_fraction=0.7)
    assert encode_video.run(Run(config, tmp_path)) == {"encoded": 1, "kept": 0, "bad": 2}
    config.data.allow_outside = True
    assert encode_video.run(Run(config, tmp_path)) == {"encoded": 2, "kept": 1, "bad": 0}
    config.data.allow_outside = False
    assert encode_video.run(Run(config, tmp_path)) == {"encoded": 0, "kept": 1, "bad": 2}


# ---- into buckets


@pytest.fixture
def bucketed(tmp_path, monkeypatch):
    """(config, what to run): videos of many sizes, a table of buckets for them, and a stand-in for the autoencoder."""
    rng, folder = np.random.default_rng(0), tmp_path / "videos"
    for name, frames, height, width, fps in (
        ("long.mp4", 60, 32, 32, 24),  # 2.5 s: 16 frames at 16 a second, cut at both ends
        ("wide.mp4", 9, 16, 64, 24),  # 0.375 s: 8 frames at 19 a second
        ("stated.mp4", 60, 32, 32, 24),
        ("short.mp4", 4, 32, 32, 24),
    ):
        video.write_mp4(folder / name, rng.integers(0, 255, (frames, height, width, 3), np.uint8), fps)
    video.write_png(folder / "c.png", rng.integers(0, 255, (40, 32, 3), np.uint8))
    video.write_png(folder / "small.png", rng.integers(0, 255, (8, 8, 3), np.uint8))
    (folder / "broken.mp4").write_bytes(b"no")
    names = ("long.mp4", "wide.mp4", "stated.mp4", "short.mp4", "c.png", "small.png", "broken.mp4")
    rows = [f"{name},x {name},{12 if name == 'stated.mp4' else ''}" for name in names]
    (tmp_path / "train.csv").write_text("\n".join(["video,caption,fps", *rows, ""]))
    config = common.shrink(common.stage("1b", 2, in_buckets=True))
    config.data.buckets.update(
        resolution=32, aspect_ratios=("1:1", "2:1"), frames=(16, 8), max_fps=(16.0, 32.0), max_upscale=1.0
    )
    config.data.update(
        source="csv",
        csv=str(tmp_path / "train.csv"),
        video_folder=str(folder),
        latent_folder=str(tmp_path / "latents"),
        max_bad_fraction=0.3,
    )
    monkeypatch.setattr(encode.tae_tiles, "encode", posterior)
    monkeypatch.setattr(encode.tae_weights, "load_to_compute", lambda path, cfg: {})
    return config, lambda: encode_video.run(Run(config, tmp_path))


def posterior(params, cfg, clips):
    mean = clips[:, :1, ::8, ::8, ::8] + np.arange(16, dtype=np.float32)[:, None, None, None]
    return mean, np.zeros_like(mean)


def test_files_go_to_their_buckets_and_the_rate_that_is_told_is_the_one_they_are_shown_at(bucketed, tmp_path, capsys):
    config, run = bucketed
    assert run() == {"encoded": 4, "kept": 0, "bad": 1, "lost": 2}
    cache = latent_cache.open_cache(tmp_path / "latents")
    shown = {
        "long.mp4": ("16x32x32", 16.0, 12, 60),  # 40 frames are there at 16 a second
        "wide.mp4": ("8x16x48", 19.0, 0, 9),
        "stated.mp4": ("16x32x32", 12.0, 7, 60),  # 30 are at 12
        "c.png": ("1x32x32", 0.0, 0, 1),
    }
    for name, (bucket, fps, start, _) in shown.items():
        found = cache.find(name)
        frames, height, width = map(int, bucket.split("x"))
        assert (found.bucket, found.fps, found.shape()) == (bucket, fps, (-(-frames // 8), 16, height // 8, width // 8))
        clip, _ = video.read(tmp_path / "videos" / name, start, frames, size=(height, width), fps=fps)
        expected = posterior({}, None, video.to_model(clip)[None])[0][0]
        np.testing.assert_array_equal(found.read()[0], expected.swapaxes(0, 1))
    assert cache.sums["video"]["count"] == (2 * 16 * 2 + 12) and cache.sums["image"]["count"] == 16
    assert cache.lost == {"short.mp4": "too short", "small.png": "too small"}
    found, bad = captions.read(config.data.csv, config, cached=cache.rates, without=cache.lost)
    assert [row.video for row in found] == [*shown] and list(bad) == [8]  # broken.mp4 has no rate
    told = {row.video: row.texts["ul2"] for row in found}
    assert {name: told[name] for name in shown} == {
        "long.mp4": "FPS-16 x long.mp4",
        "wide.mp4": "FPS-19 x wide.mp4",
        "stated.mp4": "FPS-12 x stated.mp4",
        "c.png": "x c.png",
    }
    printed = capsys.readouterr().out
    assert "too short: line 5: short.mp4 has 0.17 s, 4 frames" in printed and "too small: line 7: small.png" in printed
    assert "cannot be used: line 8: " in printed and "in no bucket: 1 too short, 1 too small" in printed
    table = [line.split() for line in printed.splitlines() if "x32x32 " in line or "x16x48 " in line]
    assert table == [
        ["16x32x32", "2", "1.33", "0.0%", "0.0%"],
        ["8x16x48", "1", "0.00", "0.0%", "25.0%"],
        ["1x32x32", "1", "0.00", "20.0%", "0.0%"],
    ]


def test_without_latents_the_rate_of_a_bucket_is_asked_for_and_images_alone_tell_none(bucketed):
    config, _ = bucketed
    found, bad = captions.read(config.data.csv, config)
    assert {row.video: row.texts["ul2"] for row in found} == {
        "stated.mp4": "FPS-12 x stated.mp4",
        "c.png": "x c.png",
        "small.png": "x small.png",
    }
    assert "line 2: its frame rate is not known: with data.buckets it follows from the clip's length" in bad[2]
    config.data.image_fraction = 1.0
    assert [row.texts["ul2"] for row in captions.read(config.data.csv, config)[0]][0] == "x long.mp4"


def test_another_table_encodes_again_what_it_shows_otherwise(bucketed, tmp_path, capsys):
    config, run = bucketed
    run()
    (tmp_path / "videos" / "c.png").unlink()  # latents need no videos
    assert run() == {"encoded": 0, "kept": 4, "bad": 1, "lost": 2}
    config.data.buckets.max_fps = (8.0, 19.0)
    config.data.buckets.rates = (8.0, 19.0)  # long is shown at 8 now
    capsys.readouterr()
    assert run() == {"encoded": 1, "kept": 3, "bad": 1, "lost": 2}
    assert "1 files have another shape or rate by data.buckets than their latents" in capsys.readouterr().out
    cache = latent_cache.open_cache(tmp_path / "latents")
    assert {name: found.fps for name, found in cache.shards.items()} == {
        "long.mp4": 8.0,
        "wide.mp4": 19.0,
        "stated.mp4": 12.0,
        "c.png": 0.0,
    }


def test_a_cache_is_of_one_shape_or_of_buckets_to_write_and_either_to_train_on(bucketed, tmp_path):
    config, run = bucketed
    run()
    latent_cache.check(tmp_path / "latents", config)
    one = config.copy_and_resolve_references()
    one.data.buckets.resolution = 0
    latent_cache.check(tmp_path / "latents", one)
    with pytest.raises(ConfigError, match="latents holds latents of something else .*height: null -> 32"):
        encode_video.run(Run(one, tmp_path))
    one.data.update(latent_folder=str(tmp_path / "other"), num_frames=8, max_bad_fraction=0.5)
    encode_video.run(Run(one, tmp_path))
    latent_cache.check(tmp_path / "other", config)
    assert latent_cache.open_cache(tmp_path / "other").find("long.mp4").bucket == "8x32x48"
    config.data.latent_folder = one.data.latent_folder
    with pytest.raises(ConfigError, match="other holds latents of something else .*height: 32 -> null"):
        run()


def test_where_no_file_fits_a_bucket_that_is_the_error(bucketed):
    config, run = bucketed
    config.data.update(max_bad_fraction=1.0, image_fraction=0.0)
    config.data.buckets.update(frames=(80,), max_fps=(16.0,))
    Path(config.data.csv).write_text("video\nlong.mp4\nc.png\n")
    with pytest.raises(
        DataError, match="nothing is left to train on .0 encoded, 0 there before, 0 bad, 2 in no bucket"
    ):
        run()


# ---- training on them


def test_training_from_the_csv(encoded, shared, tmp_path):
    folder, _ = encoded
    config = settings(shared, folder)
    metrics = train.run(Run(config, tmp_path))
    assert set(metrics) == {"loss", "image_loss", "video_loss"} and np.isfinite(list(metrics.values())).all()
    meta = checkpoint.load(tmp_path / "checkpoints")[1]
    shift, scale = latent_cache.open_cache(folder / "latents").statistics()  # not SD3.5's
    assert meta["latent_shift"] == shift and meta["latent_scale"] == scale
    assert meta["trained_with"]["tae_weights"] == tae_weights.digest(shared / "tae.safetensors")


def test_training_refuses_a_cache_that_does_not_fit(encoded, shared):
    folder, _ = encoded
    for change, message in (
        (dict(height=24), r"height: 16 -> 24\): encode them anew"),
        (dict(num_frames=9), "num_frames: 8 -> 9"),
        (dict(fps=8.0), "fps: 0.0 -> 8.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipeline.open_data(settings(shared, folder, **change), "unused")
    other = settings(shared, folder)
    other.tae.temporal_upsample_padding = "zeros"
    with pytest.raises(ConfigError, match='tae.temporal_upsample_padding: "replicate" -> "zeros"'):
        pipeline.open_data(other, "unused")
    safetensors_io.write(tae.init(other.tae, 1), shared / "other.safetensors")
    with pytest.raises(ConfigError, match="data.latent_folder is .*weights: "):
        pipeline.open_data(settings(shared, folder, tae_weights=str(shared / "other.safetensors")), "unused")
    pipeline.open_data(settings(shared, folder, tae_weights=""), "unused")  # nothing to compare
    pipeline.open_data(settings(shared, folder, num_frames=1, tae_weights=""), "unused")  # fewer are there too


def first_latents(data, name):
    """A draw of a bucket's first row, raw (c t h w)."""
    raw = data._replace(shift=[0.0], scale=[1.0])
    bucket = next(each for each in data.buckets if each.name == name)
    return pipeline._latents(raw, bucket, data.rows[name][:1], [np.random.default_rng(0)])[0]


def test_the_seed_s_npz_files_serve_as_well(encoded, shared, tmp_path, capsys):
    folder, _ = encoded
    for name in VIDEOS:
        path = tmp_path / "latents" / Path(name).with_suffix(".npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **stored(folder, name))
    data = pipeline.open_data(settings(shared, tmp_path), "unused")
    assert "no manifest.json" in capsys.readouterr().out
    assert data.shift == [0.0609] * 16 and data.scale == [1.5305] * 16
    expected = first_latents(pipeline.open_data(settings(shared, folder), "unused"), "8x16x16")
    np.testing.assert_array_equal(first_latents(data, "8x16x16"), expected)


def test_images_and_videos_go_to_their_own_steps(encoded, shared):
    folder, _ = encoded
    config = settings(shared, folder)
    data = pipeline.open_data(config, "unused")
    assert {name: len(rows) for name, rows in data.rows.items()} == {"1x16x16": 1, "8x16x16": 2}
    image, found = stored(folder, "c.png"), first_latents(data, "1x16x16")
    assert abs(found - image["latent_mean"].swapaxes(0, 1)).max() < 6 * image["latent_std"].max()
    config.data.num_frames = 1
    assert len(pipeline.open_data(config, "unused").rows["1x16x16"]) == 3


def test_dropped_prompts_are_the_empty_embedding(encoded, shared):
    config = settings(shared, encoded[0], image_fraction=0.0, csv=str(shared / "videos.csv"), text_drop_prob=1.0)
    (shared / "videos.csv").write_text("video\na.mp4\ndeep/b.mp4\n")
    data = pipeline.open_data(config, "unused")
    batch = pipeline.batch(data, config, 0, range(2))
    embedding, mask = batch.text["ul2"]
    assert not embedding.any() and mask.sum(1).tolist() == [1, 1]
    config.data.text_drop_prob = 0.0
    embedding, mask = pipeline.batch(data, config, 0, range(2)).text["ul2"]
    assert mask.sum(1).tolist() == [2, 2] and abs(embedding[:, :2]).min(2).all()


def test_validation_on_a_table_of_its_own(encoded, shared, capsys):
    config = settings(shared, encoded[0], validation_csv=str(shared / "train.csv"))
    data = pipeline.open_data(config, "unused")
    assert {name: len(rows) for name, rows in data.heldout.items()} == {"8x16x16": 2}
    assert len(list(pipeline.heldout_batches(data, (0.5,)))) == 1
    assert "train.csv: 2 of 2 samples are trained on too (a.mp4, deep/b.mp4)" in capsys.readouterr().out
    config.data.validation_csv = "gone.csv"
    with pytest.raises(DataError, match="gone.csv"):
        pipeline.open_data(config, "unused")


def test_a_mix_that_the_table_cannot_give_is_refused(encoded, shared):
    one = shared / "image.csv"
    one.write_text("video\nc.png\n")
    config = settings(shared, encoded[0], csv=str(one))
    with pytest.raises(ConfigError, match="data.image_fraction is 0.5, but .*image.csv has no usable video"):
        pipeline.open_data(config, "unused")
    config.data.csv, config.data.image_fraction = str(shared / "videos.csv"), 0.1
    (shared / "videos.csv").write_text("video\na.mp4\n")
    with pytest.raises(ConfigError, match="has no usable image: set it to 0.0"):
        pipeline.open_data(config, "unused")


def test_training_before_encoding_says_what_to_do(shared, tmp_path):
    with pytest.raises(ConfigError, match="data.latent_folder is .*--job=encode_video"):
        table.read(settings(shared, tmp_path), str(shared / "train.csv"))
