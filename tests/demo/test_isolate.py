import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import moviegen
from moviegen.demo import isolate
from moviegen.errors import DataError

MODULE = """
import os, signal, time
from moviegen.errors import DataError, Stopped
def add(a, b): return {"sum": a + b, "pid": os.getpid()}
def refuse(): raise DataError("clip.mp4: damaged")
def crash(): raise ValueError("a bug")
def stop(): raise Stopped(15)
def die(): os.kill(os.getpid(), signal.SIGKILL)
def grow(): return len(bytearray(b"x" * 300_000_000))
def fill(): raise OSError(28, "No space left on device", "a.mp4")
def wait(path):
    open(path, "w").write(str(os.getpid()))
    try:
        time.sleep(600)
    finally:
        open(path, "w").write("tidied up")
"""
# As a person may write it: no main guard, and what it prints is printed once.
SCRIPT = """
print("started", flush=True)
from moviegen.demo import isolate
print(isolate.call("functions:add", 1, 2)[0]["sum"])
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "functions.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_result_comes_from_another_process(functions):
    result, peak = isolate.call("functions:add", 1, 2)
    assert result["sum"] == 3 and result["pid"] != os.getpid()
    assert 0.005 < peak < 3


def test_peak_memory_is_the_childs(functions):
    result, peak = isolate.call("functions:grow")
    assert result == 300_000_000 and peak > 0.3


def test_a_persons_error_comes_as_itself(functions):
    with pytest.raises(DataError, match="^clip.mp4: damaged$"):
        isolate.call("functions:refuse")


def test_a_full_disk_comes_as_itself(functions):
    with pytest.raises(OSError, match="No space left on device: 'a.mp4'"):
        isolate.call("functions:fill")


def test_a_bug_shows_its_traceback(functions, capfd):
    with pytest.raises(RuntimeError, match="functions:crash failed"):
        isolate.call("functions:crash")
    assert "ValueError: a bug" in capfd.readouterr().err


def test_a_child_that_a_signal_stopped_shows_no_traceback(functions, capfd):
    with pytest.raises(RuntimeError, match="functions:stop failed; started again, it continues"):
        isolate.call("functions:stop")
    assert "Traceback" not in capfd.readouterr().err


def test_a_killed_child_is_told_apart(functions):
    with pytest.raises(RuntimeError, match="functions:die was ended by signal 9 .out of memory"):
        isolate.call("functions:die")


def test_a_script_without_a_main_guard_runs_once(functions):
    (functions / "script.py").write_text(SCRIPT)
    ended = subprocess.run([sys.executable, functions / "script.py"], env=environment(), capture_output=True, text=True)
    assert (ended.stdout.split(), ended.stderr) == (["started", "3"], "")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent(functions, by):
    note = functions / "pid"
    code = f"from moviegen.demo import isolate; isolate.call('functions:wait', {str(note)!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment(functions), stderr=subprocess.DEVNULL)
    wait_for(lambda: note.is_file() and note.read_text())
    child = int(note.read_text())
    parent.send_signal(by)
    parent.wait()
    wait_for(lambda: not alive(child))


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_the_child_is_asked_to_stop_where_its_parent_is(functions, by):
    note = functions / "pid"
    script = "from moviegen.parallel import signals; from moviegen.demo import isolate; signals.listen(); "
    script += f"isolate.call('functions:wait', {str(note)!r})"
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment(functions), stderr=subprocess.DEVNULL)
    wait_for(lambda: note.is_file() and note.read_text())
    parent.send_signal(by)
    parent.wait()
    assert note.read_text() == "tidied up"


def environment(*folders):
    return dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, [Path(moviegen.__file__).parents[1], *folders])))


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
