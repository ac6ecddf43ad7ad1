import numpy as np
import pytest

from moviegen.data import clips, cuts, video

# Checked by eye. What `clips` calls two shots, suit and taxi, is one.
CUTS = {
    "bikes.mp4": [30, 76, 137, 187, 242],
    "cityCC0.mpg": [116],
    "bigbuckbunny.mp4": [],
    "carphone_pristine.mp4": [],
}
LEVELS = 20.0


@pytest.mark.parametrize("name", CUTS)
def test_all_cuts_of_the_real_clips_are_found_and_no_others(name):
    path = next(clip.path for clip in clips.real_clips() if clip.path.name == name)
    pictures = np.stack([cuts.tiny(frame) for frame in video.read(path, size=(36, 64))[0]])
    assert cuts.find(pictures, LEVELS) == CUTS[name]


def shots(*lengths):
    """Shots of random pictures, each with a square that moves and some noise."""
    rng, found = np.random.default_rng(0), []
    for length in lengths:
        base = rng.integers(0, 256, (cuts.SIDE, cuts.SIDE, 3)).astype(np.float32)
        for t in range(length):
            picture = base + rng.normal(0, 2, base.shape).astype(np.float32)
            picture[4:8, t % 12 : t % 12 + 4] = 200
            found.append(picture)
    return np.stack(found)


def test_made_up_cuts_are_found_whatever_is_between():
    assert cuts.find(shots(20, 8, 30, 1, 20), LEVELS) == [20, 28, 58, 59]
    assert cuts.find(shots(1), LEVELS) == cuts.find(shots(30), LEVELS) == []


def test_flashes_and_fast_motion_are_no_cuts():
    pictures = shots(30, 20)
    pictures[10:12] = 255  # a flash
    pictures[20] = pictures[35]  # another picture, for a frame
    assert cuts.find(pictures, LEVELS) == [30]
    wide = np.random.default_rng(0).integers(0, 256, (16, 400, 3)).repeat(3, axis=1)
    pan = np.stack([wide[:, 5 * t : 5 * t + 16] for t in range(60)])  # all of it another picture three frames later
    assert cuts.find(pan, LEVELS) == []


def test_a_dissolve_is_not_found():
    first, last = shots(1)[0], shots(1, 1)[1]
    assert cuts.find(np.stack([first + (last - first) * t / 24 for t in range(25)]), LEVELS) == []


def test_pictures_are_means_of_their_parts():
    frame = np.arange(64 * 40, dtype=np.float32).reshape(40, 64)
    np.testing.assert_allclose(cuts.pooled(frame, 8), frame.reshape(8, 5, 8, 8).mean((1, 3)))
    assert cuts.pooled(np.ones((17, 19, 3)), 16).shape == (16, 16, 3)
