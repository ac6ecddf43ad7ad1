import threading
import time

import pytest

from moviegen.data import feeding
from moviegen.errors import DataError


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("inputs")]


def make(step):
    time.sleep(0.002 * (-step % 3))  # they are not done in the order in which they were begun
    yield from (step, step + 0.5)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("workers", [1, 3])
def test_inputs_come_in_the_order_of_steps(workers, prefetch):
    with feeding.Feed(make, 9, workers, prefetch) as feed:
        assert [feed.take(step) for step in range(2, 9)] == [[step, step + 0.5] for step in range(2, 9)]
        assert len(threads()) == min(workers, prefetch + 1) * bool(prefetch)
    assert not threads()


def test_no_more_are_made_ahead_than_asked_for():
    begun, most = [], []
    with feeding.Feed(lambda step: begun.append(step) or [step], 8, 2, 3) as feed:
        for step in range(8):
            feed.take(step)
            time.sleep(0.005)
            most.append(max(begun))
    assert most == [3, 4, 5, 6, 7, 7, 7, 7] and sorted(begun) == [*range(8)]


def test_threads_make_several_at_once():
    """Four that wait for each other."""
    meeting = threading.Barrier(4, timeout=10)
    with feeding.Feed(lambda step: [meeting.wait() >= 0], 4, 4, 3) as feed:
        assert [feed.take(step) for step in range(4)] == [[True]] * 4


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_what_is_raised_reaches_the_step_that_it_is_of(prefetch):
    def torn(step):
        if step == 2:
            raise DataError("a.mp4: damaged")
        return [step]

    with pytest.raises(DataError, match="a.mp4: damaged"), feeding.Feed(torn, 9, 3, prefetch) as feed:
        assert feed.take(0) == [0] and not feed.fails(1)
        assert feed.take(1) == [1] and feed.fails(2) == bool(prefetch)
        feed.take(2)
    assert not threads()


def test_an_error_of_the_step_leaves_no_thread():
    with pytest.raises(ZeroDivisionError), feeding.Feed(make, 100, 2, 4) as feed:
        feed.take(0)
        1 / 0  # noqa: B018
    assert not threads()


def test_waiting_is_measured():
    with feeding.Feed(lambda step: time.sleep(0.02) or [], 3, 1, 1) as feed:
        feed.take(0)
        assert 0.02 <= feed.waited < 0.06
        time.sleep(0.05)
        before = feed.waited
        assert not feed.fails(1) and feed.take(1) == [] and feed.waited - before < 0.01


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_items_are_made_ahead_in_their_order(prefetch):
    items = feeding.ahead(make(3), prefetch)
    assert next(items) == 3
    assert len(threads()) == bool(prefetch)
    assert list(items) == [3.5] and not threads()


def test_items_that_nobody_takes_leave_no_thread():
    items = feeding.ahead(iter(range(100)), 2)
    assert next(items) == 0
    items.close()
    assert not threads()


def test_what_an_item_raises_comes_in_its_place():
    def torn():
        yield 1
        raise DataError("a.mp4: damaged")

    items = feeding.ahead(torn(), 3)
    assert next(items) == 1
    with pytest.raises(DataError, match="a.mp4"):
        next(items)
