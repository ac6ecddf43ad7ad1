"""kill -9 of one rank ends the others, with a message that names it and an exit code other than 0."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from moviegen.parallel import launcher

SCRIPT = str(Path(__file__).with_name("check_faults.py"))


def kill_a_rank(folder: Path, rank: int) -> None:
    """Once the ranks talk to each other."""
    log, sign = folder / "ranks" / f"worker_{rank}.log", folder / "ranks" / f"alive_{rank}"
    while not log.is_file() or "talking" not in log.read_text():
        time.sleep(0.1)
    os.kill(int(re.search(r"process (\d+)", sign.read_text())[1]), signal.SIGKILL)


def test_the_launcher_ends_the_others_and_says_who_was_killed(tmp_path, capsys):
    threading.Thread(target=kill_a_rank, args=(tmp_path, 1), daemon=True).start()
    assert launcher.run([SCRIPT, str(tmp_path), "1000"], 2, tmp_path) == 128 + 9
    assert "rank 1 was ended by signal 9" in capsys.readouterr().err


def test_without_a_launcher_the_others_end_by_themselves(tmp_path):
    """As on another machine, where no process is the dead rank's parent."""
    logs, processes = tmp_path / "ranks", {}
    logs.mkdir()
    try:
        with launcher._port() as port:
            for name in (launcher.SCHEDULER, 0, 1):
                processes[name] = launcher._start([SCRIPT, str(tmp_path), "5"], logs, name, launcher._place(2, port))
            kill_a_rank(tmp_path, 1)
        assert processes[0].wait(timeout=300) == 1
        said = (logs / "worker_0.log").read_text()
        assert "the run is over: rank 1 has not been heard of for 5 s (train.rank_timeout)" in said
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize(("how", "code"), [("wait", 0), ("barrier", 1)])
def test_a_rank_that_comes_late_is_waited_for_but_not_by_a_collective(tmp_path, monkeypatch, how, code, late):
    """MindSpore's own limit is 30 s on CPU, that of HCCL some minutes; here it is 5 s."""
    monkeypatch.setenv("MS_NODE_TIMEOUT", "5")
    script = str(Path(__file__).with_name("check_late.py"))
    assert launcher.run([script, str(tmp_path), "12", how, late], 2, tmp_path) == code
