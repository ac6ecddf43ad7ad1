"""The processes that tests/storage/test_step_folders.py kills while they save, and what tests of checkpoints share.

`python checkpoint_saver.py FOLDER` saves every step twice, as a resumed run may, for ever, from the latest step on.
`python checkpoint_saver.py FOLDER everywhere` makes `FOLDER/FUNCTION-N` for every call of the functions in FATAL that two
saves with retention make: there the saves were killed right before the call.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from moviegen.storage import checkpoint  # noqa: E402


def trees_of(step):
    """What a run would hold at `step`: a function of the step alone: every bit of a checkpoint can be checked."""
    rng = np.random.default_rng(step)
    params = {f"blocks/{i}/attn/q": rng.standard_normal((16, 24)).astype(np.float32) for i in range(4)}
    params["final/bias"] = np.zeros(3, np.float32)
    ema = {name: value.astype(ml_dtypes.bfloat16) for name, value in params.items()}
    return {"params": params, "ema": ema, "opt/m": {}, "opt": {"step": np.int64(step), "scale": np.float32(0.5)}}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for tree in expected:
        assert got[tree].keys() == expected[tree].keys()
        for name, value in expected[tree].items():
            value, back = np.asarray(value), got[tree][name]
            assert back.dtype == value.dtype and back.shape == value.shape, (tree, name)
            assert back.tobytes() == value.tobytes(), (tree, name)


def steps_in(folder):
    return sorted(path.name for path in folder.iterdir())


def save(folder, step, keep=9):
    path = checkpoint.save(folder, step, trees_of(step), {"samples_seen": 8 * step})
    checkpoint.prune(folder, keep)
    return path


FATAL = {"rename": os, "replace": os, "unlink": os, "fsync": os, "rmtree": shutil, "dump": json}
SCORES = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 0.5, 6: 9.0}


def one_array(step):
    return {"blocks/0/q": np.full((2, 3), step, np.float32)}


def save_scored(folder, step):
    """Keeps the newest, every third and the best: 2, 3 and 4 after step 4; 3 and 5 after step 5."""
    checkpoint.save(folder, step, {"params": one_array(step)}, {"score": SCORES[step]})
    checkpoint.prune(folder, keep=1, keep_every=3, keep_best=True)


def die_before(function, calls):
    module = FATAL[function]
    original, count = getattr(module, function), iter(range(calls))

    def fatal(*args, **kwargs):
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, function, fatal)


def in_a_fork(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(folder):
    import tensorstore  # noqa: F401  so that the forks need not: its threads start with its first use

    start = folder / "start"
    assert in_a_fork(lambda: [save_scored(start, step) for step in (1, 2, 3, 4)]) == 0

    def saves(place, function, calls):
        die_before(function, calls)
        for step in (4, 5):
            save_scored(place, step)

    for function in FATAL:
        code, calls = -signal.SIGKILL, 0
        while code:
            place = folder / f"{function}-{calls}"
            shutil.copytree(start, place)
            code = in_a_fork(lambda place=place, function=function, calls=calls: saves(place, function, calls))
            assert code in (0, -signal.SIGKILL), (place, code)
            calls += 1


def main(folder, how=None):
    if how == "everywhere":
        return kill_everywhere(Path(folder))
    step = checkpoint.latest(folder) or 0
    while True:
        for again in (step, step + 1):
            save(folder, again, keep=2)
        step += 1
        print(step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
