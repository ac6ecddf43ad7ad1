"""Which bucket a step is of: exact shares, and the same steps however many are asked for."""

import time

import numpy as np
import pytest

from moviegen.data import turns
from moviegen.data.turns import Turns
from moviegen.parallel.buckets import Bucket, image_steps

LONG = Bucket(256, 256, 448, batch_size=2)
WIDE = Bucket(128, 256, 448, batch_size=4, weight=0.5)
TALL = Bucket(128, 448, 256, batch_size=4)
IMAGE = Bucket(1, 256, 448, batch_size=8)
SQUARE = Bucket(1, 256, 256, batch_size=8, weight=2)
ROWS = {LONG: 100, WIDE: 400, TALL: 200, IMAGE: 600, SQUARE: 100}
# rows x weight / batch: 50, 50, 50 of the videos' steps; 75, 25 of the images'
SHARES = {LONG: 0.9 / 3, WIDE: 0.9 / 3, TALL: 0.9 / 3, IMAGE: 0.075, SQUARE: 0.025}


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_exact_in_any_stretch_of_steps(seed):
    made = Turns(seed, 0.1, ROWS)
    assert made.shares == pytest.approx({each.name: share for each, share in SHARES.items()})
    order = [made.at(step) for step in range(4000)]
    for start, end in ((0, 1), (0, 40), (13, 400), (1000, 4000)):
        counts = {each: order[start:end].count(each) for each in ROWS}
        assert counts == {each: made.steps(each, start, end) for each in ROWS}
        for each, count in counts.items():
            assert abs(count - SHARES[each] * (end - start)) <= 2, each
    assert [each.kind for each in order[:30]] == (["video"] * 9 + ["image"]) * 3


def test_samples_are_drawn_by_rows_and_weights_whatever_the_batches():
    made = Turns(0, 0.1, ROWS)
    drawn = {each: made.steps(each, 0, 100_000) * each.batch_size for each in (LONG, WIDE, TALL)}
    epochs = {each: count / ROWS[each] for each, count in drawn.items()}
    assert epochs[LONG] == pytest.approx(epochs[TALL], rel=1e-3) == pytest.approx(2 * epochs[WIDE], rel=1e-3)


def test_more_steps_begin_with_the_same_and_other_seeds_are_others():
    names, shares = ("a", "b", "c"), (0.7, 0.1, 0.2)
    long = turns.sequence(3, names, shares, 5000)
    for steps in (1, 7, 64, 1000):
        np.testing.assert_array_equal(turns.sequence(3, names, shares, steps), long[:steps])
    assert not np.array_equal(turns.sequence(4, names, shares, 64), long[:64])
    assert len(long) == 5000 and set(long) == {0, 1, 2}


def test_one_kind_alone_has_all_steps_and_both_by_rule():
    assert {Turns(0, 0.3, {LONG: 5}).at(step) for step in range(20)} == {LONG}
    assert {Turns(0, 0.3, {IMAGE: 5}).at(step) for step in range(20)} == {IMAGE}
    both = Turns(0, 1 / 11, {LONG: 5, IMAGE: 5})
    assert [both.steps(IMAGE, 0, step) for step in range(60)] == [image_steps(1 / 11, step) for step in range(60)]


def test_many_steps_and_buckets_cost_little():
    made = Turns(0, 0.1, {each._replace(height=16 * i): n for each, n in ROWS.items() for i in range(1, 9)})
    start = time.monotonic()
    for step in range(185_000, 185_200):
        made.steps(made.at(step), 100, step)
    assert time.monotonic() - start < 2  # 0.1 s on a quiet core
