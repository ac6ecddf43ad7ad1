"""Every experiment that takes `:tiny` runs its three steps to the end."""

import math
from pathlib import Path

import pytest

import moviegen
from experiments import common

FILES = sorted(p for p in Path(common.__file__).parent.glob("*.py") if "_stage" in p.name or p.name == "tae.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_tiny_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MindSpore leaves folders where it runs
    metrics = moviegen.run(f"{path}:tiny", workdir=tmp_path / "run")
    assert metrics and all(math.isfinite(value) for value in metrics.values())
    assert sorted(int(p.name.removeprefix("step-")) for p in (tmp_path / "run").rglob("step-*")) == [2, 3]
