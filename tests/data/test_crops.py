import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.data import clips, crops, video
from moviegen.errors import ConfigError, DataError


def settings(**overrides):
    values = dict(
        source="synthetic",
        csv="",
        video_folder="",
        num_frames=8,
        height=24,
        width=32,
        synthetic_fraction=0.5,
        image_fraction=0.3,
        image_batch_size=3,
    )
    return ConfigDict(values | overrides)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    data = settings(image_fraction=0.0)
    made = [crops.batch(crops.source(data), data, seed, step, 2) for seed, step in ((0, 5), (0, 5), (0, 6), (1, 5))]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2]) and not np.array_equal(made[0], made[3])
    assert not np.array_equal(made[0][0], made[0][1])


def test_a_larger_batch_begins_with_the_smaller():
    data = settings(image_fraction=0.0)
    source = crops.source(data)
    np.testing.assert_array_equal(crops.batch(source, data, 0, 1, 4)[:2], crops.batch(source, data, 0, 1, 2))


@pytest.mark.parametrize("image_fraction", [0.0, 1.0])
def test_ranks_cut_the_same_batch(image_fraction):
    data = settings(image_fraction=image_fraction, image_batch_size=4)
    source = crops.source(data)
    whole = crops.batch(source, data, 0, 1, 4)
    cut = [crops.batch(source, data, 0, 1, 4, rank, 2) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(cut), whole)
    key = "data.image_batch_size" if image_fraction else "train.batch_size"
    with pytest.raises(ConfigError, match=f"{key} is 4, not a multiple of 3 ranks"):
        crops.batch(source, data, 0, 1, 4, 0, 3)


def test_shapes_range_and_share_of_images():
    data = settings()
    source = crops.source(data)
    shapes = []
    for step in range(200):
        made = crops.batch(source, data, 0, step, 2)
        assert made.dtype == np.float32 and abs(made).max() <= 1
        shapes.append(made.shape)
    assert set(shapes) == {(2, 3, 8, 24, 32), (3, 3, 1, 24, 32)}
    assert shapes.count((3, 3, 1, 24, 32)) / 200 == pytest.approx(0.3, abs=0.1)


def test_crops_stay_inside_and_reach_every_edge():
    clip = np.indices((5, 6, 7)).transpose(1, 2, 3, 0).astype(np.uint8)  # each pixel holds its own place (t, y, x)
    seen = set()
    for seed in range(200):
        made = crops._crop(clip, np.random.default_rng(seed), 4, 4, 4)
        assert made.shape == (4, 4, 4, 3)
        t, y, x = made[0, 0, 0]
        np.testing.assert_array_equal(made, clip[t : t + 4, y : y + 4, x : x + 4])
        seen.add((int(t), int(y), int(x)))
    assert seen == {(t, y, x) for t in range(2) for y in range(3) for x in range(4)}


def test_real_clips_are_mixed_with_synthetic_ones(monkeypatch):
    shot = np.full((12, 30, 40, 3), 7, np.uint8)
    shot[6:] = 9
    asked = []
    monkeypatch.setattr(clips, "training_videos", lambda size: asked.append(size) or [shot])
    source = crops.source(settings(source="clips", synthetic_fraction=0.25))
    assert asked == [crops.CLIP_HEIGHT]
    made = [source(np.random.default_rng(i), 8, 24, 32) for i in range(200)]
    real = [clip for clip in made if set(np.unique(clip)) <= {7, 9}]
    assert len(real) / 200 == pytest.approx(0.75, abs=0.1)
    reversed_in_time = [clip for clip in real if clip[0, 0, 0, 0] > clip[-1, 0, 0, 0]]
    assert 0.2 < len(reversed_in_time) / len(real) < 0.7


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, frames in (("a.mp4", 10), ("sub/b.mp4", 12)):
        video.write_mp4(tmp_path / name, np.full((frames, 32, 48, 3), rng.integers(20, 230), np.uint8), 8)
    (tmp_path / "notes.txt").write_text("no video")
    return tmp_path


def test_a_folder_of_files(folder):
    data = settings(source="csv", video_folder=str(folder), image_fraction=0.0)
    source = crops.source(data)
    levels = {round(float(crops.batch(source, data, 0, step, 1).mean()), 1) for step in range(8)}
    assert len(levels) == 2  # both files are drawn


def test_a_csv_names_the_files(folder):
    table = folder / "train.csv"
    table.write_text("caption,video\nx,sub/b.mp4\n")
    source = crops.source(settings(source="csv", csv=str(table), video_folder=str(folder)))
    made = source(np.random.default_rng(0), 12, 24, 32)  # a.mp4 has ten frames and would be refused
    assert made.shape == (12, 24, 32, 3) and made.dtype == np.uint8


def test_a_file_that_is_too_short_ends_the_run_by_name(folder):
    source = crops.source(settings(source="csv", video_folder=str(folder)))
    with pytest.raises(DataError, match=r"a\.mp4: 10 frames, data.num_frames is 11"):
        for i in range(50):
            source(np.random.default_rng(i), 11, 24, 32)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"source": "web"}, "data.source is 'web'"),
        ({"source": "clips", "height": 65}, "65x32: real clips are kept 64 high"),
        ({"source": "csv"}, "data.video_folder is ''"),
        ({"source": "csv", "video_folder": "/nowhere"}, "data.video_folder is '/nowhere'"),
    ],
)
def test_nothing_to_read_is_said_before_training(overrides, message):
    with pytest.raises(ConfigError, match=message):
        crops.source(settings(**overrides))


def test_bad_tables_are_named(folder):
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no videos or images"):
        crops.source(settings(source="csv", video_folder=str(empty)))
    with pytest.raises(DataError, match="data.csv is 'gone.csv'"):
        crops.source(settings(source="csv", video_folder=str(folder), csv="gone.csv"))
    (folder / "t.csv").write_text("path,caption\na.mp4,x\n")
    with pytest.raises(DataError, match="t.csv, line 1: no column `video`"):
        crops.source(settings(source="csv", video_folder=str(folder), csv=str(folder / "t.csv")))
    (folder / "h.csv").write_text("video\n")
    with pytest.raises(DataError, match="h.csv"):
        crops.source(settings(source="csv", video_folder=str(folder), csv=str(folder / "h.csv")))
