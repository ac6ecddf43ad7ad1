"""The training loop of every model: resume, step, log, validate, save; a killed run continues as if nothing had happened."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.parallel import sync
from moviegen.runner import Run
from moviegen.storage import checkpoint, files, step_folders
from moviegen.storage.writers import Progress, Writer
from moviegen.training import optim, state as states

Tree = dict[str, Any]
FRESH_PLATEAU = {"best": float("inf"), "bad": 0, "factor": 1.0}
MAX_TABLE_ROWS = 60  # a longer table of parameters goes to a file


class Task(NamedTuple):
    """A model to train, as the loop sees it.

    Args:
        name: prefix of the metrics' names, and the beginning of every message.
        layout: shapes of all parameters, and how they are sharded.
        first_state: () -> the state of step 0; called where there is no checkpoint to resume from.
        micro_batches: step -> this rank's inputs, one micro-batch after the other; all are of one size.
        loss_and_grads: (params, inputs, step) -> (losses with "loss" among them, gradients), both of the global batch.
        numbers: (losses, step) -> (numbers for the progress line, numbers for the metrics).
        validate: (shards of the EMA weights, step, writer) -> (metrics, score), where the lowest score is the best.
            None where there is nothing to validate on.
        meta: step -> what a checkpoint notes besides the step, the score and the plateau rule's state.
        restore: (a checkpoint's meta) -> None; called once where a run goes on from one.
        export: (shards of the EMA weights) -> a file that it writes at the end. Like the others, every rank calls it.
        starts: prefix of paths -> first step of a network with optimizer steps of its own (`states.update`).
    """

    name: str
    layout: states.Layout
    first_state: Callable[[], states.State]
    micro_batches: Callable[[int], Iterable[Any]]
    loss_and_grads: Callable[[Tree, Any, int], tuple[Tree, Tree]]
    numbers: Callable[[dict[str, float], int], tuple[dict[str, float], dict[str, float]]]
    validate: Callable[[Tree, int, Writer], tuple[dict[str, float], float]] | None = None
    meta: Callable[[int], dict[str, Any]] = lambda step: {}
    restore: Callable[[dict[str, Any]], None] = lambda meta: None
    export: Callable[[Tree], Path] | None = None
    starts: Mapping[str, int] = {}


def train(run: Run, task: Task) -> tuple[dict[str, float], dict[str, float]]:
    """Trains to `train.steps`; returns the numbers last logged and the last validation's metrics.

    Resumes from the newest checkpoint in `workdir/checkpoints`. On a mesh every rank runs this. FloatingPointError where
    a logged loss is not finite.
    """
    config, world, name, steps = run.config, run.mesh.world, task.name, run.config.train.steps
    folder = run.workdir / "checkpoints"
    if world.rank == 0:
        step_folders.clean(folder)
    start, state, plateau = resume(config, folder, task)
    writer, progress = run.open_writer(name, resume_step=start), Progress(name, steps, world.rank)
    if world.rank == 0:
        print(parameter_table(task.layout.shapes, run.workdir), flush=True)
        if plateau is not None and task.validate is None:
            print("no held-out data (data.validation_csv): no validation, and optim.plateau cannot act", flush=True)
    logged: dict[str, float] = {}
    validated: dict[str, float] = {}
    saving = None
    for step in range(start, steps):
        losses, grads = loss_and_grads(task, state.params, step)
        lr = optim.learning_rate(config.optim, step, steps)
        if plateau is not None:
            lr = max(lr * plateau["factor"], min(lr, config.optim.plateau.min_learning_rate))
        norm = states.update(state, grads, step, lr, config, task.layout, task.starts)
        del grads  # or they would be there beside the next step's
        done, score = step + 1, None  # the score of the weights after this step
        if _due(done, config.train.log_every, steps):
            values = {key: float(value.asnumpy()) for key, value in losses.items()}
            if not np.isfinite(values["loss"]):
                raise FloatingPointError(
                    f"the loss of step {step} is {values['loss']}; the last checkpoint is in {folder}"
                )
            shown, metrics = task.numbers(values, step)
            logged |= shown | metrics
            writer.write_scalars(done, _named(name, metrics | {"norm": norm, "lr": lr}))
            progress.update(done, **shown)
        if task.validate is not None and _due(done, config.train.validate_every, steps):
            validated, score = task.validate(states.ema_weights(state, config), done, writer)
            writer.write_scalars(done, _named(name, validated))
            if plateau is not None:
                plateau = optim.plateau(plateau, score, config.optim.plateau)
        if _due(done, config.train.checkpoint_every, steps):
            if saving is not None:
                saving.result()
            meta = {"step": done, "score": score, "plateau": plateau} | task.meta(done)
            saving = states.save(folder, done, state, meta, config, task.layout)
    if saving is not None:
        saving.result()
    writer.close()
    sync.barrier(world)
    exported = task.export(states.ema_weights(state, config)) if task.export is not None else None
    if world.rank == 0:
        weights = f"averaged weights in {exported}, " if exported else ""
        print(f"{name}: {steps} steps done; {weights}checkpoints in {folder}", flush=True)
    return logged, validated


def resume(config: Any, folder: Path, task: Task) -> tuple[int, states.State, dict[str, float] | None]:
    """Returns the step to start with, the state, and the plateau rule's state where the config has such a rule."""
    plateau = dict(FRESH_PLATEAU) if "plateau" in config.optim and config.optim.plateau.factor else None
    step = checkpoint.latest(folder)
    if step is None:
        return 0, task.first_state(), plateau
    task.restore(checkpoint.lazy(folder, step)[1])  # which may refuse it, before the state is read
    state, meta = states.restore(folder, step, task.layout)
    return step, state, plateau and (meta.get("plateau") or plateau)


def loss_and_grads(task: Task, params: Tree, step: int) -> tuple[Tree, Tree]:
    """Returns the losses and gradients of a step: their means over its micro-batches."""
    found, count = [], 0
    for inputs in task.micro_batches(step):
        more = task.loss_and_grads(params, inputs, step)
        found = [{k: a[k] + b[k] for k in a} for a, b in zip(found, more, strict=True)] if found else list(more)
        del more
        count += 1
    losses, grads = ({k: v / count for k, v in tree.items()} if count > 1 else tree for tree in found)
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
