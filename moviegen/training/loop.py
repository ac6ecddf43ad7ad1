"""The training loop of every model: resume, step, log, validate, save; a killed run continues as if nothing had happened."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.data import feeding
from moviegen.errors import ConfigError, DataError, Stopped
from moviegen.parallel import sync
from moviegen.runner import Run
from moviegen.storage import checkpoint, files, step_folders
from moviegen.storage.writers import Progress, Writer
from moviegen.training import meters, optim, profile, state as states, stop

Tree = dict[str, Any]
FRESH_PLATEAU = {"best": float("inf"), "bad": 0, "factor": 1.0}
MAX_NAMES = 16  # of a step's samples in a message
MAX_TABLE_ROWS = 60  # a longer table of parameters goes to a file


class Task(NamedTuple):
    """A model to train, as the loop sees it.

    Args:
        name: prefix of the metrics' names, and the beginning of every message.
        layout: shapes of all parameters, and how they are sharded.
        first_state: () -> the state of step 0; called where there is no checkpoint to resume from.
        micro_batches: step -> this rank's inputs, one micro-batch after the other; all are of one size. A pure function:
            threads call it ahead of the step.
        loss_and_grads: (params, inputs, step) -> (losses with "loss" among them, gradients), both of the global batch; also
            vectors that `parts` is to see.
        numbers: (losses, step) -> (numbers for the progress line, numbers for the metrics).
        parts: (losses, step) -> {name: (sum, count)} of a step's losses, of which means over all steps are logged.
        load: step -> what it processes.
        names: step -> the names of its samples on all ranks, to tell of a step that is skipped.
        validate: (shards of the EMA weights, step, writer) -> (metrics, score), where the lowest score is the best.
            None where there is nothing to validate on.
        show: (shards of the EMA weights, step, writer) -> None, every `valid.every` steps: samples to look at.
        meta: step -> what a checkpoint notes besides what the loop itself does.
        restore: (a checkpoint's meta) -> None; called once where a run goes on from one.
        export: (shards of the EMA weights) -> a file that it writes at the end. Like the others, every rank calls it.
        warm_up: (the weights to compute with, how many steps follow) -> None; called once before the first of them.
        starts: prefix of paths -> first step of a network with optimizer steps of its own (`states.update`).
    """

    name: str
    layout: states.Layout
    first_state: Callable[[], states.State]
    micro_batches: Callable[[int], Iterable[Any]]
    loss_and_grads: Callable[[Tree, Any, int], tuple[Tree, Tree]]
    numbers: Callable[[dict[str, float], int], tuple[dict[str, float], dict[str, float]]]
    names: Callable[[int], list[str]]
    parts: Callable[[dict[str, Any], int], dict[str, tuple[float, float]]] = lambda losses, step: {}
    load: Callable[[int], meters.Load] = lambda step: meters.Load()
    validate: Callable[[Tree, int, Writer], tuple[dict[str, float], float]] | None = None
    show: Callable[[Tree, int, Writer], None] | None = None
    meta: Callable[[int], dict[str, Any]] = lambda step: {}
    restore: Callable[[dict[str, Any]], None] = lambda meta: None
    export: Callable[[Tree], Path] | None = None
    warm_up: Callable[[Tree, int], None] = lambda params, steps: None
    starts: Mapping[str, int] = {}


def train(run: Run, task: Task) -> tuple[dict[str, float], dict[str, float]]:
    """Trains to `train.steps`; returns the numbers last logged and the last validation's metrics.

    Resumes from the newest checkpoint in `workdir/checkpoints`. On a mesh every rank runs this. A step with a loss or a
    gradient that is not finite is skipped; ConfigError after `train.max_bad_steps` of them in a row. At SIGINT or SIGTERM
    the step is finished and saved, then Stopped is raised; so it is where the inputs of the next step cannot be made, then
    what they raised.
    """
    config, world, name, steps = run.config, run.mesh.world, task.name, run.config.train.steps
    folder = run.workdir / "checkpoints"
    if world.rank == 0:
        step_folders.clean(folder)
    start, state, notes = resume(config, folder, task)
    sync.wait(world)  # each rank reads its own slices: a shared disk is not as fast for all
    writer, progress = run.open_writer(name, resume_step=start), Progress(name, steps, world.rank)
    if world.rank == 0:
        print(parameter_table(task.layout.shapes, run.workdir), flush=True)
        if notes["plateau"] is not None and task.validate is None:
            print("no held-out data (data.validation_csv): no validation, and optim.plateau cannot act", flush=True)
    task.warm_up(state.params, steps - start)
    logged: dict[str, float] = {}
    validated: dict[str, float] = {}
    if task.validate is not None and not start and config.train.get("init_from"):  # what a stage is to better
        writer.write_scalars(0, _named(name, task.validate(states.ema_weights(state), 0, writer)[0]))
    saving, done, stopped, skipped = None, start, [], []
    most_skipped = min(config.train.max_bad_steps, steps)
    meter = meters.Meter(world.size, config.train.get("peak_tflops", 0.0))
    with (
        stop.requests() as asked,
        profile.steps(config, run.workdir, world.rank) as profiled,
        feeding.Feed(task.micro_batches, steps, *feeding.of(config.data)) as feed,
    ):
        while done < steps and not stopped:
            step, done, score = done, done + 1, None  # the score is that of the weights after this step
            profiled(done)
            begun, due = time.monotonic(), _due(done, config.train.log_every, steps)
            losses, grads = loss_and_grads(task, state.params, feed.take(step), step)
            asked["inputs"] = float(feed.fails(done))
            lr = rate(config, notes["plateau"], step)
            outcome = states.update(state, grads, step, lr, config, task.layout, task.starts, losses | asked, due)
            del losses, grads  # or they would be there beside the next step's
            if outcome.broken:
                skipped.append(_what_is_wrong(task, step, outcome))
                notes["skipped_steps"] += 1
                writer.write_scalars(done, _named(name, {"skipped_steps": notes["skipped_steps"]}))
                if world.rank == 0:
                    print(f"{name}: skipped {skipped[-1]}", flush=True)
                if len(skipped) == most_skipped:
                    break
            else:
                skipped.clear()
            stopped = [each for each in asked if outcome.numbers.pop(each)]  # by what came on any rank
            parts = {} if skipped else task.parts(outcome.numbers, step)
            meter.add(time.monotonic() - begun, feed.waited, task.load(step), parts)
            feed.waited = 0.0
            if not skipped and due:
                shown, metrics = task.numbers(outcome.numbers, step)
                logged |= shown | metrics
                others = {"norm": outcome.norm, "weight_norm": outcome.weight_norm, "lr": lr}
                others |= {"skipped_steps": notes["skipped_steps"]} | meter.read()
                writer.write_scalars(done, _named(name, metrics | others))
                progress.update(done, *meters.words(others), **shown, norm=outcome.norm, lr=lr)
            if task.validate is not None and _due(done, config.train.validate_every, steps):
                validated, score = task.validate(states.ema_weights(state), done, writer)
                writer.write_scalars(done, _named(name, validated))
                if notes["plateau"] is not None:
                    notes["plateau"] = optim.plateau(notes["plateau"], score, config.optim.plateau)
            if task.show is not None and not stopped and _due(done, config.valid.every, steps):
                task.show(states.ema_weights(state), done, writer)
            last = bool(stopped) or done == steps
            if last or _due(done, config.train.checkpoint_every, steps):
                if saving is not None:
                    saving.result()
                meta = {"step": done, "score": score, "learning_rate": rate(config, notes["plateau"], done)} | notes
                saving = states.save(folder, done, state, meta | task.meta(done), config, task.layout, last)
        if saving is not None:
            saving.result()
        writer.close()
        if stopped and done < steps and world.rank == 0:
            print(
                f"{name}: step {done} of {steps} is saved in {folder}; the same command continues from it", flush=True
            )
        sync.wait(world)  # the end of one rank ends the others: the first one has committed its checkpoint by now
        if "inputs" in stopped and done < steps:
            feed.take(done)  # raises where they failed, which ends the ranks that wait in the next line
            sync.wait(world)
            raise DataError(f"{name}: the inputs of step {done} cannot be made on another rank, which says why")
    if skipped and len(skipped) == most_skipped:
        raise ConfigError(_too_many(skipped, config, folder))
    if stopped and done < steps:
        raise Stopped(signal.Signals[stopped[-1]])
    exported = task.export(states.ema_weights(state)) if task.export is not None else None
    if world.rank == 0:
        weights = f"{'averaged ' if state.ema else ''}weights in {exported}, " if exported else ""
        print(f"{name}: {steps} steps done; {weights}checkpoints in {folder}", flush=True)
    return logged, validated


def resume(config: Any, folder: Path, task: Task) -> tuple[int, states.State, dict[str, Any]]:
    """Returns the step to start with, the state, and what the loop notes in checkpoints: {"plateau", "skipped_steps"}.

    "plateau" is that rule's state, None where the config has no such rule.
    """
    plateau = dict(FRESH_PLATEAU) if "plateau" in config.optim and config.optim.plateau.factor else None
    step = checkpoint.latest(folder)
    if step is None:
        return 0, task.first_state(), {"plateau": plateau, "skipped_steps": 0}
    task.restore(checkpoint.lazy(folder, step)[1])  # which may refuse it, before the state is read
    state, meta = states.restore(folder, step, task.layout)
    plateau = plateau and (meta.get("plateau") or plateau)
    before, now = meta.get("learning_rate"), rate(config, plateau, step)
    moved = before is not None and step < config.train.steps and not math.isclose(before, now, rel_tol=1e-6)
    if moved and task.layout.mesh.world.rank == 0:
        print(
            f"optim or train.steps changed: the learning rate of step {step} was {before:g} and is {now:g}", flush=True
        )
    return step, state, {"plateau": plateau, "skipped_steps": meta.get("skipped_steps", 0)}


def rate(config: Any, plateau: Mapping[str, float] | None, step: int) -> float:
    """Returns the learning rate of a step: the schedule's, lowered as the plateau rule has found."""
    lr = optim.learning_rate(config.optim, step, config.train.steps)
    return lr if plateau is None else max(lr * plateau["factor"], min(lr, config.optim.plateau.min_learning_rate))


def loss_and_grads(task: Task, params: Tree, micro_batches: Iterable[Any], step: int) -> tuple[Tree, Tree]:
    """Returns the losses and gradients of a step: their means over its micro-batches."""
    found, count = [], 0
    for inputs in micro_batches:
        more = task.loss_and_grads(params, inputs, step)
        for total, part in zip(found, more, strict=False):
            for key in list(part):  # one by one, so that the gradients are not there a third time
                total[key] = total[key] + part.pop(key)
        found = found or list(more)
        del more
        count += 1
    losses, grads = ({k: tree.pop(k) / count for k in list(tree)} if count > 1 else tree for tree in found)
    return losses, grads


def parameter_table(shapes: Mapping[str, tuple[int, ...]], workdir: Path) -> str:
    """Returns clu's table of the parameters; a long one is written to `workdir/parameters.txt` and its total returned."""
    from clu import parameter_overview  # imports jax, which takes half a second

    arrays = {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}  # without memory
    table = parameter_overview.get_parameter_overview(arrays, include_stats=False)
    if len(shapes) <= MAX_TABLE_ROWS:
        return table
    path = workdir / "parameters.txt"
    files.write_text(table + "\n", path)
    return f"parameters: {table.splitlines()[-1]} in {len(shapes)} arrays, listed in {path}"


def _due(done: int, every: int, steps: int) -> bool:
    return done % every == 0 or done == steps


def _named(name: str, numbers: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in numbers.items()}


def _what_is_wrong(task: Task, step: int, outcome: states.Outcome) -> str:
    numbers = ", ".join(f"{key} {value:g}" for key, value in outcome.broken.items())
    names = task.names(step)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"step {step} ({numbers}){', samples ' if names else ''}{', '.join(names[:MAX_NAMES])}{more}"


def _too_many(skipped: list[str], config: Any, folder: Path) -> str:
    step = checkpoint.latest(folder)
    return (
        f"{len(skipped)} steps in a row had a loss or gradients that are not finite (train.max_bad_steps is "
        f"{config.train.max_bad_steps}), the last one {skipped[-1]}; the last checkpoint is "
        f"{'none' if step is None else f'that of step {step}'} in {folder}: look at these samples, or lower "
        "optim.learning_rate, and start again"
    )
