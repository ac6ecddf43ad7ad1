"""Weights to go on from are found by any name that a user has for them."""

import re

import numpy as np
import pytest

from moviegen.errors import DataError
from moviegen.storage import checkpoint, safetensors_io, trained

WEIGHTS = {"a": np.arange(12, dtype=np.float32).reshape(4, 3), "b/c": np.ones(5, np.float32)}


@pytest.fixture
def run(tmp_path):
    """A workdir with checkpoints of steps 3 and 4, and what was exported of them, in one file and in three."""
    for step in (3, 4):
        trees = {"params": {n: -x for n, x in WEIGHTS.items()}, "ema": {n: x * step for n, x in WEIGHTS.items()}}
        checkpoint.save(tmp_path / "checkpoints", step, trees, {"note": step})
    safetensors_io.write_shards(WEIGHTS, tmp_path / "export", "float32", 10**6, {"step": 9})
    safetensors_io.write_shards(WEIGHTS, tmp_path / "cut", "bfloat16", 30, {"step": 9})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "times", "noted", "source"),
    [
        ("", 4, {"note": 4, "step": 4}, " (ema of step 4)"),
        ("checkpoints", 4, {"note": 4, "step": 4}, "/checkpoints (ema of step 4)"),
        ("checkpoints/step-00000003", 3, {"note": 3, "step": 3}, "/checkpoints/step-00000003 (ema of step 3)"),
        ("export", 1, {"step": 9}, "/export"),
        ("export/model.safetensors", 1, {"step": 9}, "/export/model.safetensors"),
        ("cut", 1, {"step": 9}, "/cut"),
    ],
)
def test_all_that_names_weights(run, name, times, noted, source):
    found = trained.find(run / name)
    assert found.meta == noted and found.source == f"{run}{source}"
    assert found.arrays.keys() == WEIGHTS.keys()
    for path, array in found.arrays.items():
        np.testing.assert_array_equal(np.asarray(array), WEIGHTS[path] * times)
    np.testing.assert_array_equal(found.arrays["a"].read((slice(1, 3), slice(0, 3))), WEIGHTS["a"][1:3] * times)


def test_weights_without_an_average(tmp_path):
    checkpoint.save(tmp_path, 0, {"params": WEIGHTS}, {})
    assert trained.find(tmp_path).source == f"{tmp_path} (params of step 0)"


def test_where_there_are_none(run):
    (run / "empty" / "checkpoints" / "step-00000001.tmp-1").mkdir(parents=True)  # of a save that was cut short
    with pytest.raises(DataError, match="empty: holds no trained weights, expected the workdir of a run"):
        trained.find(run / "empty")
    with pytest.raises(DataError, match="nowhere: is not there, expected"):
        trained.find(run / "nowhere")
    (run / "cut" / safetensors_io.INDEX).unlink()
    with pytest.raises(DataError, match=re.escape("where an export was cut short, run it again")):
        trained.find(run / "cut")
