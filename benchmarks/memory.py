"""`python -m benchmarks.memory [CASE ...]`: memory of real runs on this CPU, measured beside what models/costs/memory.py says.

Every case is a run of a job, on files of random numbers, in processes of their own. Its peak is the largest resident memory
(VmHWM) that one of its ranks ever had, imports, compilation, validation and checkpoint included: what a user's machine
must have.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

CPU = SimpleNamespace(name="CPU")  # the one that is measured
TOKENS = 20  # of each encoder's text
MB = 2**20


class Case(NamedTuple):
    """A job of an experiment with some of its settings, on a mesh."""

    job: str
    spec: str
    settings: dict[str, Any]
    mesh: dict[str, int] = {}
    unseen: bool = False  # measured when the formulas and constants of models/costs/memory.py stood


def _generator(grid: tuple[int, int, int], batch: int, **model: Any) -> dict[str, Any]:
    """Settings of a generator on videos alone, of a grid of patches (t, h, w)."""
    (t, h, w), size = grid, {f"model.{key}": value for key, value in model.items()}
    data = {"num_frames": 8 * t if t > 1 else 1, "height": 16 * h, "width": 16 * w}
    found = {f"data.{key}": value for key, value in data.items()} | {f"sample.{key}": n for key, n in data.items()}
    found |= {"model.position_lengths": grid, "train.batch_size": batch, "data.image_fraction": float(t == 1)}
    return found | size


TINY = _generator((2, 4, 4), 4, num_layers=6)
SMALL = _generator((2, 16, 16), 2, num_layers=4, hidden_size=256, num_heads=4, ffn_size=1024)
WIDE = _generator((1, 16, 16), 4, num_layers=4, hidden_size=768, num_heads=8, ffn_size=3072)
LONG = _generator((8, 16, 16), 1, num_layers=4, hidden_size=128, num_heads=4, ffn_size=512)
KEPT = {"train.recompute": "none"}
_TRAIN, _TAE, _TINY_TAE, _SMALL_TAE = "train", "train_tae", "experiments/tiny_tae.py", "experiments/small_tae.py"
_EXPERIMENT = "experiments/1b_stage2.py:tiny"

CASES = {
    "train_tiny": Case(_TRAIN, _EXPERIMENT, TINY),
    "train_tiny_zero2": Case(_TRAIN, _EXPERIMENT, TINY, {"zero": 2}),
    "train_tiny_sp2": Case(_TRAIN, _EXPERIMENT, TINY, {"sp": 2}),
    "train_small": Case(_TRAIN, _EXPERIMENT, SMALL),
    "train_small_zero2": Case(_TRAIN, _EXPERIMENT, SMALL, {"zero": 2}),
    "train_small_sp2": Case(_TRAIN, _EXPERIMENT, SMALL, {"sp": 2}),
    "train_wide": Case(_TRAIN, _EXPERIMENT, WIDE),
    "train_wide_zero2": Case(_TRAIN, _EXPERIMENT, WIDE, {"zero": 2}),
    "train_tiny_none": Case(_TRAIN, _EXPERIMENT, TINY | KEPT, unseen=True),
    "train_small_none": Case(_TRAIN, _EXPERIMENT, SMALL | KEPT, unseen=True),
    "train_small_none_zero2": Case(_TRAIN, _EXPERIMENT, SMALL | KEPT, {"zero": 2}, unseen=True),
    "train_small_none_sp2": Case(_TRAIN, _EXPERIMENT, SMALL | KEPT, {"sp": 2}, unseen=True),
    "train_long": Case(_TRAIN, _EXPERIMENT, LONG),
    "sample_tiny": Case("sample", _EXPERIMENT, TINY),
    "sample_small": Case("sample", _EXPERIMENT, SMALL),
    "tae_tiny": Case(_TAE, _TINY_TAE, {"train.batch_size": 4, "data.num_frames": 8}),
    "tae_tiny_64": Case(_TAE, _TINY_TAE, {"data.height": 64, "data.width": 64}),
    "tae_small_64": Case(_TAE, _SMALL_TAE, {"train.batch_size": 1, "data.height": 64, "data.width": 64}),
    "tae_small": Case(_TAE, _SMALL_TAE, {"train.batch_size": 4}, unseen=True),
}

# Of a machine of 24 GB, to which nothing else may happen: by name alone.
LARGE = {
    "train_1b": Case(
        _TRAIN,
        "experiments/1b_stage1.py",
        {
            "model.compute_dtype": "float32",
            "train.batch_size": 1,
            "train.steps": 5,
            "train.checkpoint_every": 5,
            "data.validation_csv": "",
            "ema.decay": 0.0,
        },
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"default all but the last: {', '.join(CASES | LARGE)}"
    )
    names = parser.parse_args().cases or CASES
    print(f"{'case':20} {'MB':>7} {'predicted':>10}")
    for name in names:
        case = (CASES | LARGE)[name]
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(case, Path(folder))
            course = steps(Path(folder) / "run") if name in LARGE else ""
        said = predicted(case)
        print(f"{name:20} {measured / MB:7.0f} {said / MB:10.0f} {said / measured - 1:+8.1%}{course}", flush=True)


def steps(workdir: Path) -> str:
    """Loss of each step, and the seconds of one in the mean, the first left out."""
    from moviegen.storage import writers

    lines = [line for line in writers.read_metrics(workdir) if "train/image_loss" in line]
    each = (lines[-1]["time"] - lines[0]["time"]) / (len(lines) - 1)
    return f"  loss {', '.join(format(line['train/image_loss'], '.3f') for line in lines)}; {each:.1f} s a step"


def predicted(case: Case) -> int:
    """Bytes of one rank's process, as the formulas have them."""
    from moviegen.models.costs import memory

    axes = {"data": 1, "zero": 1, "sp": 1} | case.mesh
    return sum(memory.of(settings(case, Path()), case.job, axes, CPU).total)


def settings(case: Case, folder: Path) -> Any:
    """The case's experiment, with its files in `folder`."""
    from moviegen import config as configs

    config = configs.load(str(Path(__file__).parents[1] / case.spec))
    changed = {"train.steps": 4, "train.checkpoint_every": 2, "train.validate_every": 4} | case.settings
    if case.job == _TAE:
        changed["train.linear_start"] = 0
    else:
        changed |= {"data.source": "csv", "data.csv": str(folder / "train.csv"), "data.text_drop_prob": 0.0}
        changed = (
            {"data.validation_csv": changed["data.csv"]} | changed | {"data.latent_folder": str(folder / "latents")}
        )
        changed |= {f"data.text_folders.{name}": str(folder / name) for name in config.model.text_dims}
        changed |= {f"data.empty_text.{name}": str(folder / name / "0.npz") for name in config.model.text_dims}
        changed |= {f"text.budgets.{name}": TOKENS for name in config.model.text_dims}
        changed["sample.prompts"] = ("one",)
    with config.unlocked():
        config.update_from_flattened_dict(changed)
    return config


def measure(case: Case, folder: Path) -> int:
    """Bytes of the largest of the case's ranks at its peak."""
    from moviegen.parallel import launcher

    ranks, command = int(np.prod([*case.mesh.values()])), [__file__, json.dumps(case), str(folder)]
    if case.job != _TAE:
        write_data(case, folder)
    if ranks == 1:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        logs, code = [done.stdout + done.stderr], done.returncode
    else:
        code = launcher.run(command, ranks, folder)
        logs = [log.read_text() for log in sorted((folder / "ranks").glob("worker_*.log"))]
    found = [re.search(r"^measured (\d+)$", log, re.MULTILINE) for log in logs]
    if code or not all(found):
        sys.exit(f"{case}:\n{logs[0][-2000:]}")
    return max(int(match[1]) for match in found)


def write_data(case: Case, folder: Path) -> None:
    """A table of eight videos with their latents and embeddings, random; for sampling a checkpoint of zeros."""
    from moviegen.models.transformer.shapes import shapes
    from moviegen.storage import checkpoint

    config, rng = settings(case, folder), np.random.default_rng(0)
    data, names = config.data, [f"{i}.mp4" for i in range(8)]
    (folder / "train.csv").write_text("video,caption\n" + "".join(f"{name},one\n" for name in names))
    for part in ("latents", *config.model.text_dims):
        (folder / part).mkdir(exist_ok=True)
    for i in range(8):
        mean = rng.standard_normal((-(-data.num_frames // 8), 16, data.height // 8, data.width // 8), np.float32)
        np.savez(folder / "latents" / f"{i}.npz", latent_mean=mean, latent_std=np.full_like(mean, 0.1))
    for name, width in config.model.text_dims.items():
        for stem in (*range(8), *config.sample.prompts):
            text = rng.standard_normal((TOKENS, width), np.float32)
            np.savez(folder / name / f"{stem}.npz", text_emb=text, mask=np.ones(TOKENS, int), tokens=np.arange(TOKENS))
    if case.job == "sample":
        arrays = {path: np.zeros(shape, np.float32) for path, shape in shapes(config.model).items()}
        meta = {"step": 1, "latent_shift": [0.0] * 16, "latent_scale": [1.0] * 16}
        checkpoint.save(folder / "run" / "checkpoints", 1, {"ema": arrays}, meta, 0, 1, "0")


def run(case: Case, folder: Path) -> None:
    """The case as one rank, which says its peak."""
    from moviegen import runner

    mesh = ",".join(f"{axis}={size}" for axis, size in case.mesh.items())
    runner.run(settings(case, folder), case.job, folder / "run", mesh or None)
    print("measured", int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024, flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].startswith("["):
        run(Case(*json.loads(sys.argv[1])), Path(sys.argv[2]))
    else:
        main()
