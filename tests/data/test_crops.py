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


def test_the_files_of_a_step_can_be_told(folder):
    data = settings(source="csv", video_folder=str(folder), image_fraction=0.5, image_batch_size=3)
    source, read, told = crops.source(data), video.read, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "read", lambda path, *args, **rest: told.append(str(path)) or read(path, *args, **rest))
        for step in range(6):
            told.clear()
            crops.batch(source, data, 0, step, 2)
            assert crops.names(source, data, 0, step, 2) == told[: len(told) // 2] == told[len(told) // 2 :]
            assert len(told) in (4, 6)
    clips = settings(source="synthetic")
    assert crops.names(crops.source(clips), clips, 0, 0, 2) == []


def test_a_csv_names_the_files(folder):
    table = folder / "train.csv"
    table.write_text("caption,video\nx,sub/b.mp4\n")
    source = crops.source(settings(source="csv", csv=str(table), video_folder=str(folder)))
    made = source(np.random.default_rng(0), 12, 24, 32)  # a.mp4 has ten frames and would be refused
    assert made.shape == (12, 24, 32, 3) and made.dtype == np.uint8


def test_a_video_that_is_too_short_is_listed_with_its_reason(folder, capsys):
    data = settings(source="csv", video_folder=str(folder), num_frames=11, max_bad_fraction=0.5)
    source = crops.source(data)
    assert "a.mp4: 10 frames, 11 are needed (data.num_frames, data.stride)" in capsys.readouterr().out
    assert all(source(np.random.default_rng(i), 11, 24, 32).shape == (11, 24, 32, 3) for i in range(4))
    data.max_bad_fraction = 0.4
    with pytest.raises(DataError, match=r"1 of 2 files cannot be used so far, data.max_bad_fraction is 0.4: .*a\.mp4"):
        crops.source(data)
    data.update(num_frames=6, stride=2, max_bad_fraction=0.0)  # 11 frames are what they span
    with pytest.raises(DataError, match="11 are needed"):
        crops.source(data)


def test_images_serve_image_steps_alone(folder):
    video.write_png(folder / "c.png", np.full((40, 60, 3), 255, np.uint8))
    source = crops.source(settings(source="csv", video_folder=str(folder), num_frames=4))
    stills = [source(np.random.default_rng(i), 1, 24, 32) for i in range(40)]
    white = sum(clip.min() > 250 for clip in stills)
    assert 4 < white < 25  # of three files each a third
    assert all(source(np.random.default_rng(i), 4, 24, 32).max() < 250 for i in range(20))


def test_images_alone_cannot_give_videos(folder):
    only = folder / "images"
    video.write_png(only / "c.png", np.full((40, 60, 3), 255, np.uint8))
    data = settings(source="csv", video_folder=str(only))
    with pytest.raises(ConfigError, match="data.image_fraction is 0.3, but .* has no usable video"):
        crops.source(data)
    data.image_fraction = 1.0
    assert crops.batch(crops.source(data), data, 0, 0, 1).shape == (3, 3, 1, 24, 32)


@pytest.fixture
def places(tmp_path):
    """A video of which every frame shows its number in blue, and red and green grow with x and y."""
    y, x, t = np.mgrid[:64, :128, :12].transpose(0, 3, 1, 2)
    frames = np.stack([x * 2, y * 4, t * 20], -1).astype(np.uint8)
    video.write_mp4(tmp_path / "a.mp4", frames, 8)
    return settings(source="csv", video_folder=str(tmp_path), num_frames=4, height=32, width=32, image_fraction=0.0)


def test_clips_start_anywhere_and_keep_their_stride(places):
    places.stride = 3
    source, starts = crops.source(places), set()
    for i in range(40):
        blue = source(np.random.default_rng(i), 4, 32, 32)[..., 2].mean((1, 2)) / 20
        np.testing.assert_allclose(np.diff(blue), 3, atol=0.3)
        starts.add(round(blue[0]))
    assert starts == {0, 1, 2}


def test_crops_lie_anywhere_in_the_scaled_frame(places):
    for resize, height in ((0, 64), (48, 64 * 32 / 48)):  # rows of the file that a crop of 32 shows
        places.resize = resize
        source = crops.source(places)
        made = np.stack([source(np.random.default_rng(i), 4, 32, 32) for i in range(40)]).astype(float)
        tall = (made[..., -1, :, 1] - made[..., 0, :, 1]).mean((1, 2)) / 4 * 32 / 31
        np.testing.assert_allclose(tall, height, rtol=0.1)
        left, top = made[..., 0, 0].mean((1, 2)), made[..., 0, :, 1].mean((1, 2))
        assert left.std() > 10 and (top.std() > 5) == bool(resize)


def test_flip_mirrors_all_frames_of_half_of_the_clips(places):
    for flip in (False, True):
        places.flip = flip
        source, mirrored = crops.source(places), 0
        for i in range(40):
            red = source(np.random.default_rng(i), 4, 32, 32)[..., 0].astype(float)
            grows = red[:, :, -1].mean(1) > red[:, :, 0].mean(1)
            assert grows.all() or not grows.any()
            mirrored += not grows[0]
        assert (10 < mirrored < 30) if flip else mirrored == 0


def test_a_file_that_fails_when_it_is_drawn_is_told_and_counted(folder, capsys):
    data = settings(source="csv", video_folder=str(folder), max_bad_fraction=0.5)
    source = crops.source(data)
    (folder / "a.mp4").write_bytes(b"gone")  # after it was looked at
    made = [source(np.random.default_rng(i), 8, 24, 32) for i in range(12)]
    assert capsys.readouterr().out.count("cannot be used: ") == 1
    again = [source(np.random.default_rng(i), 8, 24, 32) for i in range(12)]
    np.testing.assert_array_equal(np.stack(made), np.stack(again))
    (folder / "sub" / "b.mp4").write_bytes(b"gone")
    with pytest.raises(DataError, match="2 of 2 files cannot be used"):
        source(np.random.default_rng(0), 8, 24, 32)


def test_sizes_that_do_not_fit_each_other_are_named(places):
    places.resize = 31
    with pytest.raises(ConfigError, match="data.resize 31: expected .* = 32x32"):
        crops.source(places)


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
