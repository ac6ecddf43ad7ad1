from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments import sections
from moviegen.data import funnel
from moviegen.data.files import File
from moviegen.data.scores import Clip, Shot


def settings(**changed):
    return ConfigDict(sections.curation() | dict(min_side=100) | changed)


GOOD = dict(border=0.0, sharpness=100.0, motion=5.0, static=0.0)


def clip(name, seconds=10.0, size=(200, 300), shots=1, start=None, end=None, length=None, hashes=None, **scores):
    hashes = (hash(name) % (1 << 60),) * 3 if hashes is None else hashes
    shot = Shot(start, end, length or seconds, **(GOOD | scores), hashes=hashes)
    return Clip(File(name, Path("v")), seconds, *size, shots, shot)


def bits(start):
    """Hashes that are far from those of another start."""
    return ((0xFFFF << (16 * start)) & ((1 << 64) - 1),) * 3


ALL = [
    clip("a.mp4", hashes=bits(0)),
    clip("short.mp4", 3.9),
    clip("long.mp4", 121),
    clip("low.mp4", size=(99, 300)),
    clip("upright.mp4", size=(300, 200), hashes=bits(1)),
    clip("letterbox.mp4", border=0.2),
    clip("two.mp4", 10, shots=2, start=0.0, end=6.0, length=6.0, hashes=bits(2)),
    clip("two.mp4", 10, shots=2, start=6.0, end=10.0, length=3.9),
    clip("blurred.mp4", sharpness=10.0),
    clip("still.mp4", motion=0.1, static=1.0),
    clip("jumpy.mp4", motion=80.0),
    clip("often.mp4", motion=3.0, static=0.6),
    clip("small.mp4", size=(100, 200), hashes=bits(0)),
    clip("p.png", 0.0, motion=None, static=None, hashes=bits(3)),
]


def test_each_threshold_drops_its_own_in_the_papers_order():
    kept, steps = funnel.apply(ALL, settings(landscape=True))
    assert [(step.words, [c.file.name for c in step.dropped]) for step in steps] == [
        ("can be read", []),
        ("4 to 120 s", ["short.mp4", "long.mp4"]),
        ("both sides >= 100", ["low.mp4"]),
        ("width >= height", ["upright.mp4"]),
        ("border <= 0.02", ["letterbox.mp4"]),
        ("split into shots of 4 s or more", ["two.mp4"]),
        ("sharpness >= 20", ["blurred.mp4"]),
        ("motion >= 2", ["still.mp4"]),
        ("motion <= 60", ["jumpy.mp4"]),
        ("static <= 0.5", ["often.mp4"]),
        ("differs from others in > 6 of 64 bits", ["small.mp4"]),
    ]
    assert [c.file.name for c in kept] == ["a.mp4", "two.mp4", "p.png"]
    assert (steps[0].rows, steps[0].clips, steps[0].seconds) == (13, 13, pytest.approx(224.9))
    assert (steps[-1].rows, steps[-1].clips, steps[-1].seconds) == (3, 3, 16.0)


def test_scores_that_are_switched_off_drop_nothing():
    kept, steps = funnel.apply(ALL, settings(scores=(), min_side=0))
    assert [step.name for step in steps] == ["read", "duration"] and len(kept) == len(ALL) - 2
    _, steps = funnel.apply(ALL, settings(scores=("border", "duplicates")))
    assert [step.name for step in steps] == ["read", "duration", "size", "border", "duplicates"]


def test_files_with_cuts_can_be_dropped_whole():
    kept, steps = funnel.apply(ALL, settings(cuts="drop"))
    assert "two.mp4" not in {c.file.name for c in kept}
    assert len(next(step for step in steps if step.words == "no cut").dropped) == 2


@pytest.mark.parametrize(
    ("other", "stays"),
    [
        (dict(size=(300, 400)), "b.mp4"),
        (dict(seconds=12.0), "b.mp4"),
        (dict(), "a.mp4"),
        (dict(size=(100, 200), seconds=20.0), "a.mp4"),
    ],
)
def test_of_near_duplicates_the_largest_stays_then_the_longest_then_the_first(other, stays):
    kept, _ = funnel.apply([clip("a.mp4", hashes=bits(0)), clip("b.mp4", hashes=bits(0), **other)], settings())
    assert [c.file.name for c in kept] == [stays]
