"""Runs the stages of a training one after the other, each from the weights of the one before."""

import hashlib
import importlib
import json
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moviegen import config as configs
from moviegen.errors import ConfigError
from moviegen.parallel import sync
from moviegen.runner import ONE_RANK, Run
from moviegen.storage import checkpoint, files, step_folders
from moviegen.storage.writers import read_metrics

TENTH = 10  # of a stage's losses: the mean of the first, and of the last, is what it began and ended with
LOSSES = ("video_loss", "image_loss", "heldout_loss")
# Sections that are no reason to train again.
ASIDE = ("name", "plan", "runtime", "sample", "export", "average_weights", "import_weights", "convert")


def run(run: Run) -> dict[str, float]:
    """Runs the sections of `stages` that `order` names, each with its `job` in `WORKDIR/NAME`, up to `run.stage` if given.

    A training starts from the stage before (`train.init_from`), `average_weights` takes the checkpoints that are kept of it,
    `sample` its weights, unless the section says what to take. What is finished is skipped; a training that was cut short,
    or whose own settings have changed, goes on. A line for each is printed, and `stages.json` has their numbers. Raises
    ConfigError where a training began from other weights than those that the stage before has now.
    """
    config, world, numbers, identity = run.config, run.mesh.world, {}, ""
    for number, name in enumerate(config.order, 1):
        before, identity = identity, _identity(configs.stage(config, name), identity)
        label, done = f"[{number}/{len(config.order)}] {name}", files.noted(run.workdir / name / "done.json") or {}
        finished = sync.agree(int(done.get("identity") == identity), world)
        if not finished and run.stage not in (None, name):
            raise ConfigError(f"--stage={run.stage} needs the stage {name}, not done in {run.workdir}: run it first")
        if not finished:
            _tell(world, label)
            done = _run_stage(run, name, before, identity)
        numbers[name] = done.get("numbers", {})
        told = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in numbers[name].items())
        _tell(world, f"{label} {'was done before' if finished else 'done'}: {told}")
        if world.rank == 0:
            files.write_json(numbers, run.workdir / "stages.json")
        if name == run.stage:
            break
    return {f"{name}/{key}": value for name, own in numbers.items() for key, value in own.items()}


def stage_config(config: Any, workdir: Path, name: str) -> ConfigDict:
    """The config that a stage runs with: the experiment's, its section over it, and the stage before that has weights."""
    own, leaves = configs.stage(config, name), ("train", "average_weights")
    earlier = [each for each in config.order[: config.order.index(name)] if config.stages[each].job in leaves]
    if earlier:
        start = workdir / earlier[-1]
        if own.job == "train":
            own.train.init_from = own.train.init_from or str(start)
        elif own.job == "average_weights" and not own.average_weights.checkpoints:
            kept = sorted(step_folders.committed(start / "checkpoints").values())
            with own.ignore_type():
                own.average_weights.checkpoints = tuple(map(str, kept))
        elif own.job == "sample":
            own.sample.checkpoint = own.sample.checkpoint or str(start)
    return own.lock()


def _run_stage(run: Run, name: str, before: str, identity: str) -> dict[str, Any]:
    """Runs one stage and returns what is noted of it."""
    own, folder = stage_config(run.config, run.workdir, name), run.workdir / name
    world, begin = run.mesh.world, time.monotonic()
    started = files.noted(folder / "started.json")
    if own.job == "train" and started not in (None, {"before": before}) and checkpoint.latest(folder) is not None:
        raise ConfigError(
            f"{folder} began from other weights than the stage before has now: move it away to train it anew"
        )
    sync.wait(world)  # all have read that
    if world.rank == 0:
        (folder / "done.json").unlink(missing_ok=True)
        files.write_json({"before": before}, folder / "started.json")
        files.write_json(configs.to_plain(own), folder / "config.json")
    found: dict[str, float] = {}

    def work() -> None:
        job = importlib.import_module(f"moviegen.jobs.{own.job}")
        found.update(job.run(Run(own, folder, run.mesh, name, run.writer)))

    if own.job in ONE_RANK:
        sync.first_rank_alone(world, work, folder / "ranks" / "done")
    else:
        work()
    numbers = _progress(folder, name) if own.job == "train" else found
    done = {"identity": identity, "numbers": numbers | {"seconds": round(time.monotonic() - begin, 1)}}
    if world.rank == 0:
        files.write_json(done, folder / "done.json")
    return done


def _progress(folder: Path, name: str) -> dict[str, float]:
    """What a training's loss, of videos where it has some, and its held-out loss were at its beginning and at its end."""
    lines, found = read_metrics(folder, name), {}
    of = {key: [line[f"{name}/{key}"] for line in lines if f"{name}/{key}" in line] for key in LOSSES}
    losses, heldout = of["video_loss"] or of["image_loss"], of["heldout_loss"]
    if losses:
        count = -(-len(losses) // TENTH)
        found |= {"first_loss": sum(losses[:count]) / count, "last_loss": sum(losses[-count:]) / count}
    return found | ({"heldout_before": heldout[0], "heldout_after": heldout[-1]} if heldout else {})


def _identity(own: ConfigDict, before: str) -> str:
    """A checksum of a stage's settings and, by `before`, of those of the stages that it goes on from."""
    aside = ASIDE if own.job == "train" else ()
    settings = {key: value for key, value in configs.to_plain(own).items() if key not in aside}
    return hashlib.sha256(json.dumps([settings, before], sort_keys=True).encode()).hexdigest()[:16]


def _tell(world: Any, line: str) -> None:
    if world.rank == 0:
        print(line, flush=True)
