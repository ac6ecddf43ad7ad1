import pytest

from moviegen.models.costs import cards, times
from moviegen.models.costs.work import Message, Work

CARD = cards.CARDS["910B2"]


def test_seconds_of_products_and_of_other_operations():
    found = times.of(Work(products=354e12 * times.PRODUCTS, traffic=1600e9 * times.BANDWIDTH), CARD, "bfloat16")
    assert found == pytest.approx((1, 1, 0, 0, 0, 0)) and found.seconds == pytest.approx(2)
    assert times.of(Work(products=354e12 * times.PRODUCTS), CARD, "float32").compute == pytest.approx(4)
    assert times.of(Work(attention=354e12 * times.ATTENTION), CARD, "bfloat16").seconds == pytest.approx(1)


def test_launches_count_where_they_take_longer():
    assert times.of(Work(launches=1e5), CARD, "bfloat16").waiting == pytest.approx(1)
    assert times.of(Work(launches=1e5, traffic=1600e9 * times.BANDWIDTH), CARD, "bfloat16").waiting == 0


def test_gathering_on_a_machine_is_what_was_measured():
    """The weights of 30B twice in two bytes, less what a card has: 103 GB at 149 GB/s."""
    gathers = Message("gathers", 4 * 29.3e9, 1, 8, 1)
    assert times.travel(gathers, CARD) == pytest.approx(103 / 149, rel=0.01)


def test_over_machines_every_card_takes_its_eighth():
    message = Message("gathers", 80e9, 1, 16, 1)
    inside, between = 80 * 7 / 8 / 149, 80 / 8 / 2 / 25
    assert times.travel(message, CARD) == pytest.approx(inside + between)
    apart = Message("gradients", 80e9, 1, 2, 8)  # one card of each of two machines
    assert times.travel(apart, CARD) == pytest.approx(80 / 2 / 25)
    parts = Message("sequence", 80e9, 1, 16, 1, False, True)  # a part for every other rank
    assert times.travel(parts, CARD) == pytest.approx(80 * 7 / 16 / 149 + 80 * 8 / 16 / 25)


def test_only_what_does_not_hide_is_waited_for():
    second = Message("gathers", 149e9 * 8 / 7, 1, 8, 1)
    busy = Work(traffic=1600e9 * times.BANDWIDTH, messages=(second,))
    assert times.of(busy, CARD, "bfloat16") == pytest.approx((0, 1, 0, 0, 0, 1))
    idle = Work(messages=(second,))
    assert times.of(idle, CARD, "bfloat16").communication == pytest.approx(1)
    shown = busy._replace(messages=(second._replace(hidden=False),))
    assert times.of(shown, CARD, "bfloat16").seconds == pytest.approx(2)
