import json
import os
import signal
import threading

import pytest

from moviegen.errors import Stopped
from moviegen.parallel import heartbeat


@pytest.fixture
def ended(monkeypatch):
    """Rank 0 of 2, whose end is noted instead of made."""
    ended = []
    monkeypatch.setattr(heartbeat, "rank", lambda: 0)
    monkeypatch.setattr(heartbeat, "ranks", lambda: 2)
    monkeypatch.setattr(heartbeat, "_end", ended.append)
    for name in ("MS_NODE_TIMEOUT", "HCCL_EXEC_TIMEOUT", "MS_ROLE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return ended


def wait_until(true):
    for _ in range(1000):
        if true():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not happen within 20 s")


def test_a_silent_neighbour_ends_the_run(ended, tmp_path):
    with heartbeat.beating(tmp_path, 0.1):
        assert f"process {os.getpid()} on " in (tmp_path / "alive_0").read_text()
        wait_until(lambda: ended)
    assert ended[0] == heartbeat.over(tmp_path)
    assert ended[0]["rank"] == 1 and "not been heard of for 0 s (train.rank_timeout)" in ended[0]["why"]
    assert not (tmp_path / "alive_0").exists()


def test_a_neighbour_that_is_done_is_not_silent(ended, tmp_path):
    (tmp_path / "alive_1").touch()
    with heartbeat.beating(tmp_path, 0.1):
        before = os.stat(tmp_path / "alive_0").st_mtime_ns
        wait_until(lambda: os.stat(tmp_path / "alive_0").st_mtime_ns > before)  # it has seen the file
        (tmp_path / "alive_1").unlink()
        before = os.stat(tmp_path / "alive_0").st_mtime_ns
        threading.Event().wait(0.5)
        wait_until(lambda: os.stat(tmp_path / "alive_0").st_mtime_ns > before)
    assert not ended


def test_what_ends_one_rank_ends_the_others_and_the_first_to_fail_is_named(ended, tmp_path):
    with heartbeat.beating(tmp_path, 1000):
        (tmp_path / "alive_1").touch()
        with pytest.raises(ZeroDivisionError), heartbeat.beating(tmp_path, 1000):
            raise ZeroDivisionError("one by nothing")
        told = {"rank": 0, "why": "failed (ZeroDivisionError: one by nothing)"}
        assert heartbeat.over(tmp_path) == told
        wait_until(lambda: ended)
    assert ended[0] == told


def test_a_run_that_a_signal_stopped_has_not_failed(ended, tmp_path):
    with pytest.raises(Stopped), heartbeat.beating(tmp_path, 1000):
        raise Stopped(15)
    assert heartbeat.over(tmp_path) is None and not ended


def test_the_end_of_an_earlier_run_is_none_of_this_one(ended, tmp_path):
    (tmp_path / heartbeat.OVER).write_text(json.dumps({"rank": 1, "why": "failed"}))
    (tmp_path / "alive_1").touch()
    with heartbeat.beating(tmp_path, 2):
        before = os.stat(tmp_path / "alive_0").st_mtime_ns
        wait_until(lambda: os.stat(tmp_path / "alive_0").st_mtime_ns > before)
    assert not ended


def test_mindspore_and_hccl_give_up_later(ended, tmp_path, monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    monkeypatch.setenv("HCCL_EXEC_TIMEOUT", "3")
    with heartbeat.beating(tmp_path / "none", 300.0):
        assert os.environ["MS_NODE_TIMEOUT"] == "360" and os.environ["HCCL_EXEC_TIMEOUT"] == "3"
    assert not (tmp_path / "none").exists()


def test_ranks_that_come_late_are_waited_for_without_a_collective(tmp_path, monkeypatch):
    """Threads stand in for ranks; what an earlier run has left counts for nothing."""
    number, passed = threading.local(), []
    for name in ("MS_NODE_TIMEOUT", "HCCL_EXEC_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(heartbeat, "rank", lambda: number.rank)
    monkeypatch.setattr(heartbeat, "ranks", lambda: 3)
    monkeypatch.setattr(heartbeat, "_meetings", iter([1, 1, 1, 2, 2, 2]))
    monkeypatch.setattr(heartbeat, "_watch", lambda *_: None)
    assert heartbeat.meet() is False
    for rank in range(3):
        (tmp_path / f"met_{rank}").write_text("7")
    begun = threading.Barrier(3)

    def run(rank, late):
        number.rank = rank
        with heartbeat.beating(tmp_path, 1000):
            begun.wait(20)
            for _ in range(2):
                threading.Event().wait(late)
                passed.append("in")
                assert heartbeat.meet()
                passed.append("out")
                begun.wait(20)

    threads = [threading.Thread(target=run, args=(rank, late)) for rank, late in enumerate((0.0, 0.3, 0.1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == (["in"] * 3 + ["out"] * 3) * 2


def test_a_rank_that_was_asked_to_stop_does_not_end_the_others(ended, tmp_path):
    with pytest.raises(Stopped), heartbeat.beating(tmp_path, 1000):
        raise Stopped(signal.SIGINT)
    assert heartbeat.over(tmp_path) is None and not (tmp_path / "alive_0").exists()
