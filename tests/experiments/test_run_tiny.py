"""Every experiment that takes `:tiny` runs its three steps to the end; of each stage one size by default."""

import math
from pathlib import Path

import pytest

import moviegen
from experiments import common

FILES = sorted(p for p in Path(common.__file__).parent.glob("*.py") if "_stage" in p.name or p.name == "tae.py")
# Shrunk, the sizes are one; the 30B's stage offloads the optimizer and makes no EMA.
DEFAULT = ("1b_stage1", "5b_stage2", "30b_stage3", "tae")
assert set(DEFAULT) <= {p.stem for p in FILES}


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=() if p.stem in DEFAULT else pytest.mark.slow) for p in FILES]
)
def test_tiny_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MindSpore leaves folders where it runs
    metrics = moviegen.run(f"{path}:tiny", workdir=tmp_path / "run")
    assert metrics and all(math.isfinite(value) for value in metrics.values())
    assert sorted(int(p.name.removeprefix("step-")) for p in (tmp_path / "run").rglob("step-*")) == [2, 3]
