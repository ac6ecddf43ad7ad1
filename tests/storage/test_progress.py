import pytest

from moviegen.storage import progress
from moviegen.storage.progress import Progress


def test_progress_prints_seldom_and_always_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    told = Progress("tae", 100)
    for done in range(1, 101):
        told.update(done, loss=1 / done)
        now[0] += 0.5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11  # the first, one each 10 steps = 5 s, the last
    assert lines[0] == "tae 1/100  loss 1"
    assert lines[1] == "tae 11/100  loss 0.09091  2.0/s  0:44 left"
    assert lines[-1] == "tae 100/100  loss 0.01  2.0/s  took 0:50"


def test_slow_steps_are_told_in_seconds_each(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    told = Progress("big", 1000)
    for done in (1, 2):
        told.update(done)
        now[0] += 30
    assert capsys.readouterr().out.splitlines()[-1] == "big 2/1000  30.0 s each  8:19:00 left"


@pytest.mark.parametrize("rank", [1, 7])
def test_other_ranks_print_nothing(capsys, rank):
    Progress("tae", 1, rank).update(1)
    assert capsys.readouterr().out == ""
