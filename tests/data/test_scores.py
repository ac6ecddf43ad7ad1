"""Each score against a clip whose answer is known."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.data import scores, video
from moviegen.data.files import File
from moviegen.data.pieces import Piece
from tests.data.test_cuts import LEVELS

SETTINGS = ConfigDict(dict(scores=scores.NAMES, rate=4.0, cut_levels=LEVELS))
RNG = np.random.default_rng(0)
SCENE = RNG.integers(60, 200, (12, 16, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)  # 96 x 128


def measured(tmp_path, frames, fps=8, piece=None, name="a.mp4", **settings):
    if name.endswith(".png"):
        video.write_png(tmp_path / name, frames[0])
    else:
        video.write_mp4(tmp_path / name, frames, fps)
    config = ConfigDict(SETTINGS.to_dict() | settings)
    return scores.measure(File(name, tmp_path, piece=piece), frames.shape[1:3], config)


def still(count=16):
    return SCENE[None].repeat(count, 0)


def square(speed, count=16):
    """A grey square of 16 x 16 on black, `speed` pixels a frame to the right."""
    frames = np.zeros((count, 96, 128, 3), np.uint8)
    for t in range(count):
        frames[t, 40:56, t * speed : t * speed + 16] = 160
    return frames


def test_motion_is_the_mean_difference_between_pictures(tmp_path):
    for speed in (1, 2, 4):
        (shot,) = measured(tmp_path, square(speed))
        # 4 pictures of 8 frames a second: it is 2 x speed further, so much of it is new and as much is left.
        assert shot.motion == pytest.approx(2 * (2 * speed) * 16 * 160 / (96 * 128), rel=0.1)
    (shot,) = measured(tmp_path, still())
    assert shot.motion < scores.STILL and shot.static == 1
    (shot,) = measured(tmp_path, np.concatenate([still(8), np.where(square(4, 8) > 0, 255, still(8)).astype(np.uint8)]))
    assert shot.static == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    ("top", "side", "colour", "share"),
    [(0, 0, 0, 0), (16, 0, 0, 1 / 3), (0, 32, 0, 0.5), (16, 32, (6, 0, 30), 2 / 3), (16, 0, 120, 0), (48, 0, 0, 1)],
)
def test_borders_are_dark_and_of_one_colour_in_all_pictures(tmp_path, top, side, colour, share):
    frames = still(4)
    inside = frames[:, top : 96 - top, side : 128 - side].copy()
    frames[:] = colour
    frames[:, top : 96 - top, side : 128 - side] = inside
    (shot,) = measured(tmp_path, frames)
    assert shot.border == pytest.approx(share, abs=0.03)


def test_a_dark_moment_is_no_border(tmp_path):
    frames = still(16)
    frames[:8, :40] = 0
    assert measured(tmp_path, frames, cut_levels=255.0)[0].border == 0


def blurred(frames, times):
    frames = frames.astype(np.float32)
    for _ in range(times):
        for axis in (1, 2):
            frames = (np.roll(frames, 1, axis) + frames + np.roll(frames, -1, axis)) / 3
    return np.rint(frames).astype(np.uint8)


def test_blur_shows_in_the_sharpness_whatever_the_size(tmp_path):
    sharp, soft, softer = (measured(tmp_path, blurred(still(4), times))[0].sharpness for times in (0, 2, 8))
    assert sharp > 5 * soft > 10 * softer and softer < 20 < sharp
    # Of files larger than what is measured, the same picture at twice the size is as sharp.
    scene = RNG.integers(0, 256, (32, 64, 3)).astype(np.uint8)
    large, larger = (scene.repeat(n, 0).repeat(n, 1)[None] for n in (16, 32))
    one, two = (measured(tmp_path, frames, name="a.png")[0].sharpness for frames in (large, larger))
    assert one == pytest.approx(two, rel=0.1)


def test_another_coding_and_size_is_a_near_duplicate(tmp_path):
    frames = np.stack([np.roll(blurred(SCENE[None], 4)[0], 2 * t, 1) for t in range(24)])
    other = frames[:, ::2, ::2] // 2 * 2
    (one,), (two,) = measured(tmp_path, frames), measured(tmp_path, other, name="b.mp4")
    assert max(bin(a ^ b).count("1") for a, b in zip(one.hashes, two.hashes, strict=True)) <= 6
    assert len(one.hashes) == 3
    (far,) = measured(tmp_path, frames[:, ::-1], name="c.mp4")
    assert min(bin(a ^ b).count("1") for a, b in zip(one.hashes, far.hashes, strict=True)) > 12


def test_shots_are_measured_each_and_hold_their_own_frames(tmp_path):
    other = SCENE[::-1, ::-1] // 2
    frames = np.concatenate([still(20), other[None].repeat(10, 0), square(4, 9)])
    shots = measured(tmp_path, frames, fps=10)
    assert [round(shot.seconds, 3) for shot in shots] == [2.0, 1.0, 0.9]
    assert [shot.static for shot in shots[:2]] == [1, 1] and shots[2].static == 0  # cuts are no motion
    for shot, own in zip(shots, (frames[:20], frames[20:30], frames[30:]), strict=True):
        got, _ = video.read(tmp_path / "a.mp4", piece=Piece("a.mp4", shot.start, shot.end))
        assert len(got) == len(own) and abs(got.astype(int) - own).mean() < 6
    of_a_piece = measured(tmp_path, frames, fps=10, piece=Piece("a.mp4", 0.95, 2.95))
    assert [(shot.start, round(shot.end, 3)) for shot in of_a_piece] == [(0.95, 1.95), (1.95, 2.95)]
    (one,) = measured(tmp_path, frames, fps=10, scores=("motion",))
    assert one.start is None and one.seconds == pytest.approx(3.9)
    assert one.border is None and one.sharpness is None and one.hashes == ()


def test_of_an_image_only_what_a_picture_has(tmp_path):
    (shot,) = measured(tmp_path, still(1), name="a.png")
    assert (shot.seconds, shot.border, shot.motion, shot.static, shot.start) == (0, 0, None, None, None)
    assert shot.sharpness > 20 and len(set(shot.hashes)) == 1
