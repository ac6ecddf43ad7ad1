"""Clips into buckets, against the paper's table of durations."""

import pytest

from experiments import common
from moviegen.data import fit
from moviegen.data.fit import Metadata
from moviegen.parallel import buckets

TABLE = buckets.table(common.stage("30b", 3, in_buckets=True))


def clip(seconds, fps=30.0, height=1080, width=1920):
    return Metadata(round(seconds * fps), fps, height, width, seconds)


# Paper, table 5.2: seconds, frames, frames a second.
@pytest.mark.parametrize(
    ("seconds", "frames", "fps"),
    [
        (4, 128, 32),
        (8, 192, 24),
        (7.9, 128, 17),
        (10.67, 256, 24),
        (10.6, 192, 19),
        (12.2, 256, 21),
        (16, 256, 16),
        (60, 256, 16),
    ],
)
def test_length_and_rate_follow_from_the_duration(seconds, frames, fps):
    found = fit.fit(TABLE, clip(seconds))
    assert (found.bucket.frames, found.fps) == (frames, fps)
    assert found.seconds == pytest.approx(max(0, seconds - frames / fps), abs=1e-6)
    assert abs(found.start / fps - found.seconds / 2) <= 1 / fps  # the centre


def test_a_stated_rate_chooses_the_longest_that_fills_at_it():
    assert fit.fit(TABLE, clip(9), rate=24.0)[:2] == fit.fit(TABLE, clip(8))[:2]
    assert fit.fit(TABLE, clip(12), rate=16.0).bucket.frames == 192


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1080, 1920, "576x1024"),
        (1920, 1080, "1024x576"),
        (1000, 1000, "768x768"),
        (900, 1200, "672x880"),
        (2000, 1400, "880x672"),
    ],
)
def test_nearest_ratio_and_never_stretched(height, width, expected):
    found = fit.fit(TABLE, clip(16, height=height, width=width))
    assert found.bucket.name == f"256x{expected}"
    kept = (1 - found.columns) * width / ((1 - found.rows) * height)
    assert kept == pytest.approx(found.bucket.width / found.bucket.height) and min(
        found.rows, found.columns
    ) == pytest.approx(0)


def test_what_is_lost():
    with pytest.raises(fit.TooShort, match="3.90 s, 117 frames: the shortest bucket takes 128 frames up to 32"):
        fit.fit(TABLE, clip(3.9))
    with pytest.raises(fit.TooSmall, match="is 640x360, which 1024x576 enlarges 1.60 times"):
        fit.fit(TABLE, clip(16, height=360, width=640), max_upscale=1.0)
    assert fit.fit(TABLE, clip(16, height=360, width=640)).scale == pytest.approx(1.6)


def test_images_and_videos_where_all_are_images():
    image = Metadata(1, 0.0, 1080, 1920, 0.0)
    found = fit.fit(TABLE, image)
    assert (found.bucket.name, found.fps) == ("1x576x1024", 0.0)
    images = [b for b in TABLE if b.kind == "image"]
    assert fit.fit(images, clip(2)).bucket.name == "1x576x1024"


def test_one_shape_takes_the_first_frames_as_they_are_stored():
    table = buckets.table(common.stage("1b", 2))
    found = fit.fit(table, clip(16))
    assert (found.bucket.name, found.fps, found.start) == ("256x256x448", 0.0, 0)
    with pytest.raises(fit.TooShort):
        fit.fit(table, clip(5))
    assert fit.fit(table, clip(5, fps=60.0)).seconds == pytest.approx(5 - 256 / 60)
