import contextlib
import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from moviegen.errors import ConfigError
from moviegen.storage import lock


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE", 0.4)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    return tmp_path / "run" / "lock"


@pytest.fixture
def elsewhere(path):
    """A run on another host, whose lock this kernel does not know."""
    path.parent.mkdir()
    path.write_text(json.dumps({"host": "elsewhere", "process": 7, "since": "2026-01-01 00:00:00"}))
    return path


def test_one_owner_at_a_time(path):
    for _ in range(2):
        with lock.held(path):
            with pytest.raises(ConfigError) as error, lock.held(path):
                pass
            said = (
                f"{path.parent} belongs to another run (lock): process {os.getpid()} on {os.uname().nodename}, since 20"
            )
            assert str(error.value).startswith(said) and "--workdir" in str(error.value)
        assert path.read_text() == ""


def test_a_killed_owner_leaves_nothing_behind(path):
    script = "import pathlib, sys, time; from moviegen.storage import lock\n"
    script += "with lock.held(pathlib.Path(sys.argv[1])): print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"1\n"
        with pytest.raises(ConfigError, match=f"process {owner.pid} on"), lock.held(path):
            pass
        owner.kill()
    with lock.held(path):
        assert json.loads(path.read_text())["process"] == os.getpid()


def test_the_parent_holds_it_for_its_ranks(path, monkeypatch):
    with lock.held(path):
        monkeypatch.setattr(os, "getppid", os.getpid)
        with lock.held(path) as descriptor:
            assert descriptor is None
        assert json.loads(path.read_text())["process"] == os.getpid()


def test_another_host_that_beats_is_alive(elsewhere):
    done = threading.Event()
    beating = threading.Thread(target=lock._beat, args=(elsewhere, done))
    beating.start()
    with contextlib.ExitStack() as stack:
        stack.callback(beating.join)
        stack.callback(done.set)
        with pytest.raises(ConfigError, match="process 7 on elsewhere, since 2026-01-01"), lock.held(elsewhere):
            pass


def test_another_host_that_is_silent_is_gone(elsewhere, capsys):
    with lock.held(elsewhere):
        assert json.loads(elsewhere.read_text())["host"] != "elsewhere"
    assert "waiting up to 0 s for a sign of life" in capsys.readouterr().out
    elsewhere.write_text(json.dumps({"host": "elsewhere"}))
    os.utime(elsewhere, (1, 1))
    with lock.held(elsewhere):
        assert capsys.readouterr().out == ""  # silent since long: nobody waits


def test_without_locks_of_the_file_system_the_beat_alone_tells(path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.held(path):
        with pytest.raises(ConfigError, match="belongs to another run"), lock.held(path):
            pass
    with lock.held(path):
        pass


def test_a_damaged_lock_is_nobodys(path):
    path.parent.mkdir()
    path.write_bytes(bytes(40))
    with lock.held(path):
        pass
    assert list(path.parent.iterdir()) == [path]


def test_the_other_ranks_go_on_when_their_own_first_rank_holds_it(path, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE", -59.7)
    monkeypatch.setenv("MS_SCHED_HOST", "10.0.0.1")
    monkeypatch.setenv("MS_SCHED_PORT", "8118")
    with pytest.raises(ConfigError, match="one that has just begun"):
        lock.joined(path)
    with lock.held(path):
        lock.joined(path)
        monkeypatch.setenv("MS_SCHED_PORT", "8119")  # those of a second run
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
            lock.joined(path)
        monkeypatch.setattr(os, "getppid", os.getpid)  # those of a launcher that holds it
        lock.joined(path)
