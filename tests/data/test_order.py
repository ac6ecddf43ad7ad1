"""Orders of epochs, and places in them that outlast a change of the table."""

import json
import time

import numpy as np
import pytest

from moviegen.data.order import Order, Place

NAMES = [f"clips/{i}.mp4" for i in range(12)]


def drawn(order, names, start, count):
    return [names[order.row(order.after(start, i))] for i in range(count)]


def test_every_epoch_is_another_order_of_all_rows():
    order = Order(3, NAMES)
    epochs = [drawn(order, NAMES, Place(epoch), 12) for epoch in range(200)]
    assert all(sorted(epoch) == sorted(NAMES) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 200
    assert drawn(Order(4, NAMES), NAMES, Place(), 12) != epochs[0]
    first = np.bincount([NAMES.index(epoch[0]) for epoch in epochs], minlength=12)
    before = np.mean([epoch.index(NAMES[3]) < epoch.index(NAMES[7]) for epoch in epochs])
    assert first.min() > 4 and 0.4 < before < 0.6


def test_the_order_in_which_rows_stand_does_not_matter():
    turned = NAMES[::-1]
    assert drawn(Order(3, turned), turned, Place(), 12) == drawn(Order(3, NAMES), NAMES, Place(), 12)
    assert Order(3, turned).digest() == Order(3, NAMES).digest() != Order(3, NAMES[1:]).digest()


@pytest.mark.parametrize("count", [0, 5, 11, 12, 29])
def test_a_place_is_found_again(count):
    order = Order(3, NAMES)
    place = order.after(Place(1, 4), count)
    assert place == Place(*divmod(12 + 4 + count, 12))
    assert order.find(json.loads(json.dumps(order.note(place)))) == place


@pytest.mark.parametrize("seen", [1, 5, 11])
def test_a_row_more_or_less_repeats_and_skips_none_of_the_others(seen):
    order = Order(3, NAMES)
    noted, before = order.note(Place(2, seen)), drawn(order, NAMES, Place(2), seen)
    rest = drawn(order, NAMES, Place(2, seen), 12 - seen)
    more = [*NAMES, "clips/new.mp4"]
    grown = Order(3, more)
    place = grown.find(noted)
    after = drawn(grown, more, place, 13 - place.index)
    assert [name for name in after if name != "clips/new.mp4"] == rest
    for gone in (before[-1], rest[0]):  # the last that was drawn, the next to come
        less = [name for name in NAMES if name != gone]
        shrunk = Order(3, less)
        place = shrunk.find(noted)
        assert drawn(shrunk, less, place, 11 - place.index) == [name for name in rest if name != gone]


def test_rows_of_one_name_are_drawn_once_each():
    names = ["a.mp4", "b.mp4", "a.mp4", "a.mp4"]
    order = Order(0, names)
    assert sorted(order.row(Place(0, i)) for i in range(4)) == [0, 1, 2, 3]
    assert [order.find(order.note(Place(0, i))).index for i in range(4)] == [0, 1, 2, 3]


def test_a_large_table_costs_little():
    start = time.monotonic()
    order = Order(0, [f"folder/clip-{i:07d}.mp4" for i in range(100_000)])
    order.row(Place(7, 50_000))
    assert time.monotonic() - start < 3  # 0.2 s on a quiet core
