"""Two ranks train as one does from the same command, and so do two machines with msrun on each."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import common
from moviegen import config as configs
from moviegen.models.tae import model as tae
from moviegen.parallel import launcher
from moviegen.storage import checkpoint, safetensors_io
from moviegen.storage.writers import read_metrics

ROOT = Path(common.__file__).parents[1]
EXPERIMENT = f"{ROOT}/experiments/1b_stage1.py:tiny"
TINY = {
    "tae.base_channels": 8,
    "tae.channel_multipliers": "1,1,2,2",
    "tae.norm_groups": 4,
    "model.hidden_size": 24,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.ffn_size": 32,
    "data.height": 32,
    "data.width": 32,
    "data.num_samples": 8,
    "train.batch_size": 4,
    "optim.learning_rate": 0.01,
    "optim.eps": 0.001,  # without it a gradient that is only rounding error moves its weight as far as any other
    "ema.decay": 0.9,
}


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    overrides = TINY | {"data.tae_weights": str(tmp_path / "tae.safetensors")}
    cfg = configs.apply_overrides(configs.load(EXPERIMENT), {key: str(value) for key, value in overrides.items()})
    safetensors_io.write(tae.init(cfg.tae, 0), tmp_path / "tae.safetensors")
    for ranks in (1, 2):
        command = [sys.executable, ROOT / "launch.py", f"--config={EXPERIMENT}", f"--workdir={tmp_path / str(ranks)}"]
        command += [f"--config.{key}={value}" for key, value in overrides.items()] + [f"--workers={ranks}"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]

    (one, meta), (two, other) = (checkpoint.load(tmp_path / ranks / "checkpoints") for ranks in "12")
    assert meta["step"] == other["step"] == 3 and meta["position"] == other["position"]
    place = meta["position"]["1x32x32"]
    assert place["epoch"] == 1 and place["index"] == 4  # 3 x 4 of 8
    losses = [
        [line["train/image_loss"] for line in read_metrics(tmp_path / ranks) if "train/image_loss" in line]
        for ranks in "12"
    ]
    assert len(losses[0]) == len(losses[1]) == 3
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    for tree in ("params", "ema", "opt/m"):
        assert one[tree].keys() == two[tree].keys()
        for path, value in one[tree].items():
            np.testing.assert_allclose(two[tree][path], value, atol=1e-5, err_msg=f"{tree}/{path}")
    assert (tmp_path / "2" / "ranks" / "worker_1.log").is_file()


@pytest.mark.slow
def test_two_groups_of_msrun_as_on_two_machines(tmp_path):
    overrides = TINY | {"data.tae_weights": str(tmp_path / "tae.safetensors")}
    cfg = configs.apply_overrides(configs.load(EXPERIMENT), {key: str(value) for key, value in overrides.items()})
    safetensors_io.write(tae.init(cfg.tae, 0), tmp_path / "tae.safetensors")
    with launcher._port() as port:
        groups = []
    # msrun starts the scheduler where it finds the address to be its own: 0.0.0.0 leads here, but is nobody's.
    for node, address in enumerate(("127.0.0.1", "0.0.0.0")):
        command = [sys.executable, "-m", "mindspore.parallel.cluster.run", "--worker_num=4", "--local_worker_num=2"]
        command += [f"--node_rank={node}", f"--master_addr={address}", f"--master_port={port}", "--join=True"]
        command += [f"--log_dir={tmp_path}/run/ranks", "--tail_worker_log=0", f"{ROOT}/launch.py"]
        command += [f"--config={EXPERIMENT}", f"--workdir={tmp_path}/run", "--mesh=zero=2,sp=2"]
        command += [f"--config.{key}={value}" for key, value in overrides.items()]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # msrun starts `python`
        groups.append(subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ, PATH=path)))
    try:
        assert [group.wait(timeout=900) for group in groups] == [0, 0]
    finally:
        for group in groups:
            group.send_signal(signal.SIGINT)
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") == 3
    logs = [(tmp_path / "run" / "ranks" / f"worker_{rank}.log").read_text() for rank in range(4)]
    assert ["train: 3 steps done" in log for log in logs] == [True, False, False, False]
