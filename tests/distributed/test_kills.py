"""Two ranks that train and save are killed again and again, and end with the weights of a run that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moviegen.storage import checkpoint

ROOT = Path(__file__).parents[2]
RANKS = 2
SCRIPT = Path(__file__).with_name("train_and_save.py")
START = "import sys; from pathlib import Path; from moviegen.parallel import launcher; folder = sys.argv[1]; "
START += f"sys.exit(launcher.run([{str(SCRIPT)!r}, *sys.argv[1:]], {RANKS}, Path(folder)))"


def start(folder, steps):
    folder.mkdir(exist_ok=True)
    for note in folder.glob("rank-*.pid"):
        note.unlink()
    with open(folder / "output.log", "ab") as log:
        return subprocess.Popen([sys.executable, "-c", START, folder, str(steps)], cwd=ROOT, stdout=log, stderr=log)


def half_written(folder):
    return any(folder.glob("checkpoints/step-*.tmp-*"))


def wait_until(condition, process, what):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, f"the run ended while it was waited for {what}"
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.001)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "XZ"
    except OSError:
        return False


def killed(folder, steps, rng):
    """Starts the run and kills one rank or all of them, mostly while they save; whether a save was under way."""
    before = checkpoint.latest(folder / "checkpoints") or 0
    process = start(folder, steps)
    notes = [folder / f"rank-{rank}.pid" for rank in range(RANKS)]
    wait_until(lambda: all(note.is_file() for note in notes), process, "the ranks")
    pids = [int(note.read_text()) for note in notes]
    wanted = before + rng.randrange(3)
    wait_until(lambda: (checkpoint.latest(folder / "checkpoints") or 0) >= wanted, process, f"step {wanted}")
    wait_until(lambda: half_written(folder), process, "a save")
    time.sleep(rng.choice([rng.uniform(0, 0.08), rng.uniform(0, 0.4)]))
    saving = half_written(folder)
    for pid in rng.choice([pids, *([pid] for pid in pids)]):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(120) != 0
    assert not any(map(is_alive, pids)), "a rank outlived the run: the next would save to the same folder"
    after = checkpoint.latest(folder / "checkpoints") or 0
    assert after >= max(before, wanted)
    if after:
        position = checkpoint.load(folder / "checkpoints")[1]["position"]
        assert len(position) == 3  # buckets
        assert sum(each["epoch"] * each["rows"] + each["index"] for each in position.values()) == 2 * after
    return saving


def check(folder, kills, seed=0):
    """Returns in how many of `kills` a save was under way."""
    steps, rng = 6 * kills, random.Random(seed)
    caught = sum(killed(folder / "killed", steps, rng) for _ in range(kills))
    for name in ("killed", "undisturbed"):
        start(folder / name, steps).wait()
        output = (folder / name / "output.log").read_text()
        assert checkpoint.latest(folder / name / "checkpoints") == steps, output[-2000:]
    (found, meta), (expected, expected_meta) = (
        checkpoint.load(folder / name / "checkpoints") for name in ("killed", "undisturbed")
    )
    assert meta == expected_meta and meta["step"] == steps
    for tree, values in expected.items():
        assert found[tree].keys() == values.keys()
        for path, value in values.items():
            np.testing.assert_array_equal(found[tree][path], value, err_msg=f"{tree}/{path}")
    kept = [f"step-{step:08d}" for step in sorted({*range(10, steps + 1, 10), steps - 1, steps})]
    assert sorted(path.name for path in (folder / "killed" / "checkpoints").iterdir()) == kept
    return caught


@pytest.mark.slow
def test_fifty_kills_of_two_ranks_cost_nothing(tmp_path):
    caught = check(tmp_path, 50)
    print(f"of 50 kills {caught} fell into a save")
    assert caught > 10
