"""The whole course, at its shortest."""

import json
import math

import pytest

import moviegen
from moviegen import config as configs
from moviegen.models.tae import model as tae
from moviegen.nn import backend
from moviegen.storage import safetensors_io


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_whole_demo_at_its_shortest(tmp_path, monkeypatch, dtype):
    config = configs.load("experiments/tiny.py:quick")
    computed = [key for key in configs.flat(config) if key.endswith("compute_dtype")]
    config = configs.apply_overrides(config, dict.fromkeys(computed, dtype))
    monkeypatch.chdir(tmp_path)  # MindSpore leaves folders where it runs
    weights = tmp_path / "tae.safetensors"
    safetensors_io.write(backend.to_numpy(tae.init(config.tae, 0)), weights)
    config = configs.apply_overrides(config, {"stages.tae.data.tae_weights": str(weights)})
    metrics = moviegen.run(config, workdir=tmp_path / "run")
    assert all(math.isfinite(value) for value in metrics.values())
    told = json.loads((tmp_path / "run/report.json").read_text())
    wanted = "heldout_psnr baseline_psnr heldout_ssim baseline_ssim linear_psnr linear_ssim"
    wanted += " synthetic_psnr synthetic_baseline_psnr synthetic_linear_psnr"
    assert set(wanted.split()) <= set(told["tae"])
    assert told["prompts"]["samples"] == 16
    assert 0 < told["peak_memory_gb"] < 8 and told["seconds"] > 0
    assert told["tae"]["linear_psnr"] > told["tae"]["baseline_psnr"] > 10
    assert (tmp_path / "run/report.html").stat().st_size > 100_000
    assert len(list((tmp_path / "run/sample/samples").glob("*.mp4"))) == 16
