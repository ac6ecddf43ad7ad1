"""The order of the demo's stages: each runs in a process of its own, and finished ones are skipped."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moviegen import config as configs
from moviegen.data import clips
from moviegen.demo import isolate
from moviegen.errors import ConfigError
from moviegen.runner import Run
from moviegen.storage import files

STAGES = ("tae", "t2i", "t2v", "sample", "report")


def run(run: Run) -> dict[str, float]:
    """Runs all stages, or `run.stage` alone, and returns the metrics of the last one that ran or was found finished.

    Each stage has a folder below the workdir; its `done.json` holds its metrics, time and memory. A stage is run again
    when its settings, or those of a stage before it, have changed: continued when only its own have, from the start when
    those of an earlier stage have. Raises ConfigError before any work when the real clips are missing.
    """
    config, workdir, only = run.config, run.workdir, run.stage
    if set(config.stages) != set(STAGES):
        raise ConfigError(f"config.stages has {', '.join(config.stages)}: the demo's stages are {', '.join(STAGES)}")
    if run.writer is not None:
        raise ConfigError("the demo takes no writer: its stages are processes of their own, each with a metrics.jsonl")
    clips.real_clips()
    identity, metrics = "", {}
    for number, name in enumerate(STAGES, 1):
        before, identity = identity, _identity(config, name, identity)
        done = finished(workdir, name)
        current = done is not None and done["identity"] == identity
        label = f"[{number}/{len(STAGES)}] {name}"
        if name == only or (only is None and not current):
            print(label, flush=True)
            done = _run_stage(config, workdir, name, before, identity)
            print(f"{label} done: {_summary(done)}", flush=True)
        elif only is None:
            print(f"{label} was done before: {_summary(done)}", flush=True)
        elif not current:
            raise ConfigError(f"--stage={only} needs the stage {name}, not done in {workdir}: run --stage={name} first")
        metrics = done["metrics"]
        if name == only:
            return metrics
    print(f"report: {workdir / 'report.html'}", flush=True)
    return metrics


def stage_config(config: Any, workdir: str | Path, name: str) -> ConfigDict:
    """Returns the config that a stage runs with: the experiment's, the stage's section over it, the stages joined up."""
    made, workdir = configs.stage(config, name), Path(workdir)
    if name in ("t2i", "t2v", "sample") and not made.data.tae_weights:
        made.data.tae_weights = str(workdir / "tae" / "tae.safetensors")
    if name == "t2v" and not made.train.init_from:
        made.train.init_from = str(workdir / "t2i" / "checkpoints")
    if name == "t2v" and not made.data.latent_folder:
        made.data.latent_folder = str(workdir / "t2i" / "latents")  # the same, so that both stages normalize alike
    if name == "sample" and not made.sample.checkpoint:
        made.sample.checkpoint = str(workdir / "t2v" / "checkpoints")
    return made.lock()


def finished(workdir: str | Path, name: str) -> dict | None:
    """Returns what a finished stage noted: metrics, seconds, peak_memory_gb, identity. None when it is not finished."""
    return files.noted(Path(workdir) / name / "done.json")


def _identity(config: Any, name: str, before: str) -> str:
    """A checksum of the settings of this stage and, by `before`, of the earlier ones; not of where the workdir is."""
    settings = configs.to_plain(stage_config(config, "", name))
    settings.pop("name", None)
    if name not in ("sample", "report"):
        settings.pop("sample")  # another guidance scale is no reason to train again
    return hashlib.sha256(json.dumps([settings, before], sort_keys=True).encode()).hexdigest()[:16]


def _run_stage(config: Any, workdir: Path, name: str, before: str, identity: str) -> dict:
    folder = workdir / name
    started = folder / "started.json"
    noted = files.noted(started)
    if noted is not None and noted["before"] != before:
        print(f"{name}: starts anew, a stage before it has changed", flush=True)
        shutil.rmtree(folder)
    (folder / "done.json").unlink(missing_ok=True)
    files.write_json({"before": before}, started)
    made = stage_config(config, workdir, name)
    files.write_json(configs.to_plain(made), folder / "config.json")
    start = time.monotonic()
    # A process for each stage: compiled graphs keep their memory for the life of the process.
    metrics, peak = isolate.call(f"moviegen.demo.stages:{name}", made, str(folder))
    peak = round(peak + isolate.own_peak_memory_gb(), 3)  # both are alive at the same time
    seconds = round(time.monotonic() - start, 1)
    done = {"metrics": metrics, "seconds": seconds, "peak_memory_gb": peak, "identity": identity}
    files.write_json(done, folder / "done.json")
    return done


def _summary(done: dict) -> str:
    numbers = [f"{key} {value:.4g}" for key, value in done["metrics"].items()]
    return ", ".join([*numbers[:12], f"{done['seconds']:.0f} s", f"{done['peak_memory_gb']:.1f} GB"])
