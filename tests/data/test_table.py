import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.data import latent_cache, table
from moviegen.errors import ConfigError, DataError
from moviegen.parallel.mesh import Group
from moviegen.text import source, store

ENCODERS = {"ul2": 6, "byt5": 4}


def write_text(path: Path, length: int, tokens: int, width: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, length, width])
    embedding = rng.standard_normal((length, width)).astype(np.float32)
    np.savez(path, text_emb=embedding, mask=(np.arange(length) < tokens).astype(int), tokens=np.arange(length))


def write_latents(path: Path, frames: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, frames])
    mean = rng.standard_normal((frames, 16, 2, 3)).astype(np.float32)
    np.savez(path, latent_mean=mean, latent_std=np.full_like(mean, 0.1))


@pytest.fixture
def config(tmp_path):
    videos = ["a.mp4", "deep/b.mp4", "c.png"]
    (tmp_path / "train.csv").write_text("video,caption\n" + "".join(f'{name},"one, two"\n' for name in videos))
    for i, name in enumerate(videos):
        stem = Path(name).with_suffix(".npz")
        write_latents(tmp_path / "latents" / stem, 3 + i, i)
        for encoder, width in ENCODERS.items():
            write_text(tmp_path / encoder / stem, 5 + i, 2 + i, width, i)
    for encoder, width in ENCODERS.items():
        write_text(tmp_path / f"empty-{encoder}.npz", 1, 1, width)
    data = dict(
        latent_folder=str(tmp_path / "latents"),
        text_folders={encoder: str(tmp_path / encoder) for encoder in ENCODERS},
        empty_text={encoder: str(tmp_path / f"empty-{encoder}.npz") for encoder in ENCODERS},
        text_drop_prob=0.2,
        max_bad_fraction=0.0,
        num_frames=24,
        height=16,
        width=24,
        image_fraction=0.5,
    )
    return ConfigDict(
        dict(data=data, train=dict(batch_size=2), model=dict(text_dims=ENCODERS), tae=dict(latent_channels=16))
    )


def test_rows_name_their_files(config, tmp_path):
    rows = table.read(config, str(tmp_path / "train.csv"))
    assert [row.latents.path for row in rows] == [tmp_path / "latents" / f"{s}.npz" for s in ("a", "deep/b", "c")]
    assert [row.bucket for row in rows] == ["24x16x24", "24x16x24", "1x16x24"]
    assert rows[1].text == {encoder: tmp_path / encoder / "deep/b.npz" for encoder in ENCODERS}


def test_the_first_rank_alone_looks_for_the_files(config, tmp_path, monkeypatch):
    (tmp_path / "latents" / "a.npz").unlink()
    config.data.max_bad_fraction = 0.5
    path, usable = str(tmp_path / "train.csv"), tmp_path / "ranks" / "train.csv"
    alone = table.read_once(config, path, usable)
    assert alone == table.read(config, path) and not usable.parent.exists()

    monkeypatch.setattr(table.sync, "barrier", lambda group: None)
    assert table.read_once(config, path, usable, Group("", 2, 0)) == alone
    monkeypatch.setattr(table, "read", None)
    assert table.read_once(config, path, usable, Group("", 2, 1)) == alone


def test_bad_rows_are_listed_and_refused_above_the_share(config, tmp_path, capsys):
    (tmp_path / "latents" / "a.npz").unlink()
    (tmp_path / "byt5" / "c.npz").unlink()
    path = str(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"train.csv: 2 bad rows and 1 good ones.*line 2: no .*latents/a.npz"):
        table.read(config, path)
    listed = capsys.readouterr().out
    assert "2 of 3 rows" in listed and "line 4: no " in listed and "byt5/c.npz" in listed
    config.data.max_bad_fraction = 0.67
    assert [row.latents.path.name for row in table.read(config, path)] == ["b.npz"]


@pytest.mark.parametrize(
    "key, value, error, message",
    [
        ("latent_folder", "", ConfigError, "data.latent_folder is ''.*encode_video"),
        ("text_folders.byt5", "/nowhere", ConfigError, "data.text_folders.byt5 is '/nowhere'"),
        (
            "text_folders.ul2",
            "",
            ConfigError,
            "text_folders.ul2 is '', .*encode_text fills it; .* model.text_dims.ul2=0",
        ),
        ("empty_text.ul2", "gone.npz", ConfigError, "data.empty_text.ul2 is 'gone.npz'.*text_drop_prob=0"),
    ],
)
def test_missing_folders_and_files_are_named_by_key(config, tmp_path, key, value, error, message):
    section, _, last = key.rpartition(".")
    (config.data[section] if section else config.data)[last] = value
    with pytest.raises(error, match=message):
        table.read(config, str(tmp_path / "train.csv"))


def test_the_empty_prompt_is_not_needed_when_text_is_never_dropped(config, tmp_path):
    config.data.empty_text.ul2, config.data.text_drop_prob = "", 0.0
    assert len(table.read(config, str(tmp_path / "train.csv"))) == 3


def test_tables_that_cannot_be_used(config, tmp_path):
    with pytest.raises(DataError, match="data.csv is ''"):
        table.read(config, "")
    (tmp_path / "no.csv").write_text("path\na.mp4\n")
    with pytest.raises(DataError, match="no.csv, line 1: no column `video`"):
        table.read(config, str(tmp_path / "no.csv"))
    (tmp_path / "empty.csv").write_text("video\n")
    with pytest.raises(DataError, match="empty.csv.*the table is empty"):
        table.read(config, str(tmp_path / "empty.csv"))


def test_latents_are_draws_of_the_posterior(config, tmp_path):
    row = table.read(config, str(tmp_path / "train.csv"))[1]  # four latent frames
    stored = np.load(row.latents.path)
    mean = stored["latent_mean"].transpose(1, 0, 2, 3)  # c t h w
    drawn = np.stack([table.read_latents(row, 4, np.random.default_rng(i)) for i in range(400)])
    assert drawn.shape == (400, 16, 4, 2, 3) and drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.03)
    assert drawn.std(0).mean() == pytest.approx(0.1, rel=0.05)
    np.testing.assert_array_equal(drawn[3], table.read_latents(row, 4, np.random.default_rng(3)))


def test_shorter_windows_start_anywhere(config, tmp_path):
    row = table.read(config, str(tmp_path / "train.csv"))[1]
    mean = np.load(row.latents.path)["latent_mean"].transpose(1, 0, 2, 3)
    starts = set()
    for i in range(60):
        drawn = table.read_latents(row, 2, np.random.default_rng(i))
        errors = [abs(drawn - mean[:, s : s + 2]).mean() for s in range(3)]
        assert min(errors) < 0.1
        starts.add(int(np.argmin(errors)))
    assert starts == {0, 1, 2}


def test_too_few_latent_frames_are_named(config, tmp_path):
    row = table.read(config, str(tmp_path / "train.csv"))[0]
    with pytest.raises(DataError, match=r"a.npz: 3 latent frames, data.num_frames asks for 4"):
        table.read_latents(row, 4, np.random.default_rng(0))


def test_text_is_padded_to_the_longest(config, tmp_path):
    rows = table.read(config, str(tmp_path / "train.csv"))
    text = source.read_text([row.text for row in rows] + [dict(config.data.empty_text)])
    assert text.keys() == ENCODERS.keys()
    for encoder, (embeddings, mask) in text.items():
        assert embeddings.shape == (4, source.TEXT_STEP, ENCODERS[encoder]) and embeddings.dtype == np.float32
        assert mask.sum(1).tolist() == [2, 3, 4, 1]
        for i, row in enumerate(rows):
            stored = np.load(row.text[encoder])["text_emb"][: 2 + i]  # what is behind are not tokens
            np.testing.assert_array_equal(embeddings[i, : len(stored)], stored)
            assert not embeddings[i, len(stored) :].any() and not mask[i, len(stored) :].any()


def test_damaged_files_are_named(config, tmp_path):
    rows = table.read(config, str(tmp_path / "train.csv"))
    rows[0].latents.path.write_bytes(rows[0].latents.path.read_bytes()[:100])
    with pytest.raises(DataError, match="a.npz: cannot be read"):
        table.read_latents(rows[0], 1, np.random.default_rng(0))
    np.savez(rows[1].text["ul2"], text_emb=np.zeros((1, 6)))
    with pytest.raises(DataError, match="ul2/deep/b.npz: cannot be read as npz with text_emb, mask"):
        source.read_text([rows[1].text])


@pytest.fixture
def with_store(config, tmp_path):
    """UL2 in a store, ByT5 in the seed's files. The captions are all "one, two"."""
    folder = tmp_path / "store"
    store.check_or_write(folder, {"encoder": "ul2"}, "key")
    tokens = [[1], [5, 6, 1], [7, 1]]
    embeddings = [np.full((len(ids), 6), i, np.float32) for i, ids in enumerate(tokens)]
    store.write_shard(folder, ["", "FPS-16 one, two", "one, two"], tokens, embeddings)
    with config.unlocked():
        config.text = dict(tell_fps=True, camera="")
        config.data.update(fps=16.0, video_folder="")
        config.data.text_folders.ul2, config.data.empty_text.ul2 = str(folder), ""
    return config


def test_stores_and_files_side_by_side(with_store, tmp_path, monkeypatch):
    path, usable = str(tmp_path / "train.csv"), tmp_path / "ranks" / "train.csv"
    rows = table.read(with_store, path)
    text = source.read_text([*(row.text for row in rows), source.stored(with_store).empty])
    assert text["ul2"][1].sum(1).tolist() == [3, 3, 2, 1]  # an image has no rate
    assert text["ul2"][0][:, 0, 0].tolist() == [1, 1, 2, 0]
    assert text["byt5"][1].sum(1).tolist() == [2, 3, 4, 1]

    monkeypatch.setattr(table.sync, "barrier", lambda group: None)
    for rank in (0, 1):
        assert table.read_once(with_store, path, usable, Group("", 2, rank)) == rows


def test_an_encoder_that_the_model_has_not_needs_no_folder(config, tmp_path):
    config.model.text_dims.ul2, config.data.text_folders.ul2, config.data.empty_text.ul2 = 0, "", ""
    assert [set(row.text) for row in table.read(config, str(tmp_path / "train.csv"))] == [{"byt5"}] * 3


def test_rows_whose_embeddings_are_elsewhere_are_bad(config, tmp_path, capsys):
    """Through the name or through a link."""
    write_text(tmp_path / "ul2.npz", 3, 3, 6)
    (tmp_path / "byt5" / "link").symlink_to(tmp_path)
    write_text(tmp_path / "ul2" / "link" / "ul2.npz", 3, 3, 6)
    (tmp_path / "train.csv").write_text("video\na.mp4\n../ul2.mp4\nlink/ul2.mp4\n" + 300 * "x" + ".mp4\n")
    config.data.max_bad_fraction = 0.8
    assert [row.video for row in table.read(config, str(tmp_path / "train.csv"))] == ["a.mp4"]
    listed = capsys.readouterr().out
    assert re.search(rf"line 3: {tmp_path}/\w+: '../ul2.npz' leads out", listed)
    assert f"line 4: {tmp_path / 'byt5'}: 'link/ul2.npz' leads out" in listed
    assert "line 5: 'xxx" in listed and "cannot be the name of a file" in listed


def test_captions_without_embeddings_are_bad_rows(with_store, tmp_path, capsys):
    path = tmp_path / "train.csv"
    path.write_text('video,caption\na.mp4,"one, two"\ndeep/b.mp4,three\nc.png,\n')
    with_store.data.max_bad_fraction = 0.7
    assert [row.video for row in table.read(with_store, str(path))] == ["a.mp4"]
    listed = capsys.readouterr().out
    assert "line 3: no 'FPS-16 three' in" in listed and "line 4: the caption is empty" in listed
    path.write_text("video\na.mp4\n")
    with pytest.raises(DataError, match="no column `caption`"):
        table.read(with_store, str(path))


def test_a_store_without_the_empty_prompt_is_named(with_store, tmp_path):
    folder = tmp_path / "other"
    store.check_or_write(folder, {"encoder": "ul2"}, "key")
    with_store.data.text_folders.ul2 = str(folder)
    with pytest.raises(ConfigError, match="data.empty_text.ul2 is \"'' in .*other\""):
        table.read(with_store, str(tmp_path / "train.csv"))


def test_embeddings_of_several_encoders_are_not_mixed(config, tmp_path):
    rows = table.read(config, str(tmp_path / "train.csv"))
    write_text(rows[1].text["ul2"], 5, 2, 7)
    with pytest.raises(DataError, match=r"embeddings of ul2 are \[6, 7\] wide"):
        source.read_text([row.text for row in rows])
    np.savez(rows[0].text["ul2"], text_emb=np.zeros((3, 6)), mask=np.ones(4))
    with pytest.raises(DataError, match=r"a.npz: text_emb is \(3, 6\) and mask \(4,\)"):
        source.read_text([rows[0].text])


def test_clips_that_do_not_fit_are_bad_rows_at_the_start(config, tmp_path, capsys):
    """From the headers of shards, and of the seed's files: before, a run ended at the step that drew one."""
    rng = np.random.default_rng(0)
    shapes = {"a.mp4": (16, 2, 2, 3), "deep/b.mp4": (16, 3, 2, 3), "c.png": (16, 1, 2, 3)}
    shapes |= {"tall.mp4": (16, 3, 4, 3), "wide.mp4": (16, 3, 2, 4)}
    cache = latent_cache.ShardWriter(tmp_path / "latents", "float32", 0)
    for name, shape in shapes.items():
        cache.add(name, rng.standard_normal(shape), np.ones(shape), "video")
    cache.flush()
    write_latents(tmp_path / "latents" / "short.npz", 2)
    thin = np.zeros((3, 8, 2, 3), np.float32)
    np.savez(tmp_path / "latents" / "thin.npz", latent_mean=thin, latent_std=thin)
    names = [*shapes, "thin.mp4", "short.mp4"]
    for name in names:
        for encoder, width in ENCODERS.items():
            write_text(tmp_path / encoder / Path(name).with_suffix(".npz"), 5, 2, width)
    path = tmp_path / "train.csv"
    path.write_text("video\n" + "".join(f"{name}\n" for name in names))
    with pytest.raises(DataError, match="5 bad rows and 2 good ones"):
        table.read(config, str(path))
    printed = capsys.readouterr().out
    for line in (
        "line 2: a.mp4 in .*latents-00000-000000.safetensors: 2 latent frames, data.num_frames asks for 3",
        r"line 5: tall.mp4 in .*: latents have \(c h w\) \[16, 4, 3\], data.height and .* ask for \[16, 2, 3\]",
        "line 6: wide.mp4",
        r"line 7: .*latents/thin.npz: latents have .*\[8, 2, 3\]",
        "line 8: .*latents/short.npz: 2 latent frames",
    ):
        assert re.search(line, printed), line
    config.data.max_bad_fraction = 0.8
    assert [row.video for row in table.read(config, str(path))] == ["deep/b.mp4", "c.png"]


@pytest.fixture
def mixed(config, tmp_path):
    """A cache of latents of many shapes, and a table of them."""
    config.data.buckets = dict(
        resolution=32,
        aspect_ratios=("1:1", "2:1"),
        frames=(32, 16),
        max_fps=(16.0, 16.0),
        rates=(),
        weights=(),
        batch_sizes=(),
    )
    shapes = {
        "long.mp4": (7, 16, 4, 4),
        "short.mp4": (3, 16, 4, 4),
        "wide.mp4": (4, 16, 2, 6),
        "wide.png": (1, 16, 2, 6),
        "tall.mp4": (4, 16, 6, 2),
        "taller.mp4": (2, 16, 6, 2),
        "blink.mp4": (1, 16, 4, 4),
        "tall.png": (1, 16, 6, 2),
    }
    writer = latent_cache.ShardWriter(tmp_path / "latents", "float32", 0)
    for name, shape in shapes.items():
        mean = np.random.default_rng(0).standard_normal(shape).astype(np.float32).swapaxes(0, 1)
        writer.add(name, mean, np.ones_like(mean), "video")
    thin = np.zeros((4, 8, 4, 4), np.float32)
    np.savez(tmp_path / "latents" / "channels.npz", latent_mean=thin, latent_std=thin)
    for name in (*shapes, "channels.mp4"):
        for encoder, width in ENCODERS.items():
            write_text(tmp_path / encoder / Path(name).with_suffix(".npz"), 5, 2, width)
    writer.flush()
    (tmp_path / "train.csv").write_text(
        "video\n" + "".join(f"{name}\n" for name in (*shapes, "channels.mp4", "long.mp4"))
    )
    return config


def test_rows_go_to_the_longest_bucket_that_their_latents_fill(mixed, tmp_path, capsys, monkeypatch):
    mixed.data.max_bad_fraction = 0.12  # channels.mp4; what fits no bucket is not bad
    path, usable = str(tmp_path / "train.csv"), tmp_path / "ranks" / "train.json"
    rows = table.read(mixed, path)
    assert {row.video: row.bucket for row in rows} == {
        "long.mp4": "32x32x32",
        "short.mp4": "16x32x32",
        "wide.mp4": "32x16x48",
        "wide.png": "1x16x48",
    }
    printed = capsys.readouterr().out
    for line in ("1 rows of 32x48x16", "1 rows of 16x48x16", "1 rows of 8x32x32", "1 rows of 1x48x16"):
        assert f"{path}: {line} fit no bucket\n" in printed
    assert "1 of 9 rows cannot be used" in printed and "channels.npz: latents have" in printed
    assert table.by_bucket(rows)["32x32x32"] == rows[:1]

    monkeypatch.setattr(table.sync, "barrier", lambda group: None)
    assert table.read_once(mixed, path, usable, Group("", 2, 0)) == rows
    monkeypatch.setattr(table, "read", None)
    assert table.read_once(mixed, path, usable, Group("", 2, 1)) == rows


def test_rows_that_no_bucket_took_when_they_were_encoded_are_not_bad(mixed, tmp_path, capsys):
    latent_cache.note_lost(tmp_path / "latents", 0, {"channels.mp4": "too short"})
    latent_cache.note_lost(tmp_path / "latents", 1, {"wide.mp4": "too small"})  # it was encoded since
    mixed.data.max_bad_fraction = 0.0
    assert "wide.mp4" in [row.video for row in table.read(mixed, str(tmp_path / "train.csv"))]
    assert "1 rows are in no bucket and were not encoded: too short\n" in capsys.readouterr().out


def test_where_training_is_on_images_alone_videos_are_images(mixed, tmp_path):
    mixed.data.update(max_bad_fraction=0.12, image_fraction=1.0)
    rows = table.read(mixed, str(tmp_path / "train.csv"))
    assert {row.video: row.bucket for row in rows if row.video.startswith(("blink", "wide"))} == {
        "blink.mp4": "1x32x32",
        "wide.mp4": "1x16x48",
        "wide.png": "1x16x48",
    }


def test_a_table_of_which_nothing_fits_a_bucket_is_refused(mixed, tmp_path):
    mixed.data.max_bad_fraction = 0.12
    mixed.data.buckets.resolution = 64
    with pytest.raises(
        DataError, match=r"train.csv: no row fits a bucket \(32x64x64, 32x48x96, 16x64x64,.*encode_video"
    ):
        table.read(mixed, str(tmp_path / "train.csv"))


def test_rows_without_a_name_or_with_an_impossible_one_are_bad(config, tmp_path, capsys):
    names = ["", " ", ".", "/", "..", 300 * "x", "a.mp4"]
    (tmp_path / "train.csv").write_text("caption,video\n" + "".join(f"x,{name}\n" for name in names) + "x\n")
    config.data.max_bad_fraction = 0.9
    assert [row.video for row in table.read(config, str(tmp_path / "train.csv"))] == ["a.mp4"]
    printed = capsys.readouterr().out
    assert "7 of 8 rows" in printed and printed.count("the cell `video` is empty") == 3


def test_latents_outside_their_folder_are_bad_rows_unless_that_is_allowed(config, tmp_path, capsys):
    write_latents(tmp_path / "elsewhere.npz", 3)
    (tmp_path / "latents" / "link.npz").symlink_to(tmp_path / "elsewhere.npz")
    for encoder, width in ENCODERS.items():
        for name in ("link", "../elsewhere"):
            write_text(tmp_path / encoder / f"{name}.npz", 5, 2, width)
    (tmp_path / "train.csv").write_text("video\na.mp4\nlink.mp4\n../elsewhere.mp4\n")
    write_latents(tmp_path / "elsewhere.npz", 3)
    config.data.max_bad_fraction = 0.7
    assert [row.video for row in table.read(config, str(tmp_path / "train.csv"))] == ["a.mp4"]
    assert capsys.readouterr().out.count("set data.allow_outside=True") == 2


def test_rows_that_are_there_before_are_taken_once(with_store, tmp_path, capsys):
    path = tmp_path / "train.csv"
    path.write_text('video,caption\na.mp4,"one, two"\nc.png,"one, two"\na.mp4,"one, two"\n')
    assert [row.video for row in table.read(with_store, str(path))] == ["a.mp4", "c.png"]
    assert "1 rows are there before, the first in line 4: each is taken once" in capsys.readouterr().out
