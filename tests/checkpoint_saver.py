"""`python checkpoint_saver.py FOLDER [FUNCTION CALLS]`: the process that tests/test_checkpoint.py kills while it saves.

From the latest step on it saves every step twice, as a resumed run may, for ever; with FUNCTION it kills itself right
before that many calls of os.rename, os.fsync, shutil.rmtree or json.dump have been made.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from moviegen import checkpoint  # noqa: E402


def trees_of(step):
    """What a run would hold at `step`: a function of the step alone: every bit of a checkpoint can be checked."""
    rng = np.random.default_rng(step)
    params = {f"blocks/{i}/attn/q": rng.standard_normal((16, 24)).astype(np.float32) for i in range(4)}
    params["final/bias"] = np.zeros(3, np.float32)
    ema = {name: value.astype(ml_dtypes.bfloat16) for name, value in params.items()}
    return {"params": params, "ema": ema, "opt/m": {}, "opt": {"step": np.int64(step), "scale": np.float32(0.5)}}


def save(folder, step, keep=9):
    return checkpoint.save(folder, step, trees_of(step), {"samples_seen": 8 * step}, keep=keep)


def die_before(function, calls):
    module = {"rename": os, "fsync": os, "rmtree": shutil, "dump": json}[function]
    original, count = getattr(module, function), iter(range(calls))

    def fatal(*args, **kwargs):
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, function, fatal)


def main(folder, function=None, calls="0"):
    if function is not None:
        die_before(function, int(calls))
    step = checkpoint.latest(folder) or 0
    while True:
        for again in (step, step + 1):
            save(folder, again, keep=2)
        step += 1
        print(step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
