from types import SimpleNamespace

import numpy as np
import pytest

from moviegen import config as configs
from moviegen.data import clips, video
from moviegen.errors import ConfigError
from moviegen.evaluation import comparison

FRAMES = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)


@pytest.fixture
def config():
    found = configs.load("experiments/tiny_tae.py").unlock()
    found.data.update(height=16, width=24)
    return found


def test_files_are_taken_at_the_size_of_the_config(config, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), np.uint8)
    for name in "abc":
        video.write_mp4(tmp_path / f"{name}.mp4", frames, 5)
    video.write_png(tmp_path / "d.png", frames[0])
    config.evaluate.update(video_folder=str(tmp_path), csv="", num_frames=8)
    found, bad = comparison.measured(config)
    assert [(clip.name, clip.frames.shape) for clip in found] == [
        *((f"{name}.mp4", (8, 16, 24, 3)) for name in "abc"),
        ("d.png", (1, 16, 24, 3)),
    ]
    config.evaluate.update(max_clips=2, num_frames=0)
    found, bad = comparison.measured(config)
    assert [(clip.name, len(clip.frames), clip.fps) for clip in found] == [("a.mp4", 12, 5.0), ("b.mp4", 12, 5.0)]
    assert bad.total == 2


def test_without_files_they_are_the_held_out_clips(config):
    config.evaluate.update(video_folder="", num_frames=4)
    found, _ = comparison.measured(config)
    real, *rendered = found
    assert real.name == "real" and real.fps == clips.heldout_fps()
    np.testing.assert_array_equal(real.frames, clips.heldout_clip(4, (16, 24)))
    assert [clip.fps for clip in rendered] == [comparison.SYNTHETIC_FPS] * 4


def test_clips_that_are_trained_on_fill_blocks(config):
    config.data.update(source="synthetic", num_frames=1)
    drawn = comparison.trained_on(config)
    assert len(drawn) == comparison.LINEAR_CLIPS and {clip.shape for clip in drawn} == {(8, 16, 24, 3)}
    again = comparison.trained_on(config)
    np.testing.assert_array_equal(drawn[3], again[3])
    assert not np.array_equal(drawn[3], drawn[4])


@pytest.fixture
def named(tmp_path):
    """A config with a function of a user's file."""
    (tmp_path / "mine.py").write_text(
        "def corner(config):\n    return lambda frames: frames[:, 0, 0, : config.wide]\n"
        "def whole(config):\n    return lambda frames: frames\n"
    )

    def config(function):
        return SimpleNamespace(wide=2, evaluate=SimpleNamespace(features=f"{tmp_path}/mine.py:{function}"))

    return config


def test_a_function_of_a_file_gets_the_config(named):
    found = comparison.extractor(named("corner"), None)(FRAMES)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, FRAMES[:, 0, 0, :2])


def test_features_of_a_wrong_shape_are_named(named):
    with pytest.raises(ConfigError, match=r"whole': its function gave an array of shape \(5, 4, 4, 3\), expected"):
        comparison.extractor(named("whole"), None)(FRAMES)


def test_no_name_is_no_extractor():
    assert comparison.extractor(SimpleNamespace(evaluate=SimpleNamespace(features="")), None) is None
