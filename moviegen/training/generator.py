"""Trains the generator by flow matching; a killed run continues from its workdir as if nothing had happened."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.data import pipeline
from moviegen.models.transformer import model as transformer
from moviegen.models.transformer import positions
from moviegen.models.transformer import step as transformer_step
from moviegen.parallel import comm, sync
from moviegen.runner import Run
from moviegen.storage import checkpoint
from moviegen.storage.progress import Progress
from moviegen.training import optim
from moviegen.training import state as states

VALIDATION_TIMES = tuple(np.linspace(0, 1, 12)[1:-1])  # ten times without the ends, as the seed's
FRESH_PLATEAU = {"best": float("inf"), "bad": 0, "factor": 1.0}


def train(run: Run) -> dict[str, float]:
    """Train to `train.steps` and return the last losses.

    Starts from the newest checkpoint in `workdir`, else from the averaged weights of the stage before (`train.init_from`,
    a checkpoint folder; position tables grow to this config's), else from random weights. On a mesh every rank runs this.
    """
    config, workdir, mesh, name = run.config, run.workdir, run.mesh, run.stage or "train"
    steps = config.train.steps
    shapes, keys = transformer.shapes(config.model), config.train
    layout = states.Layout(shapes, mesh, keys.zero_stage, keys.offload_optimizer)
    parts = _parts(config, mesh)
    data = pipeline.open_data(config, workdir, mesh.world)
    folder = workdir / "checkpoints"
    start, state, rule = _start(config, folder, layout)
    writer, progress = run.open_writer(name, resume_step=start), Progress(name, steps, mesh.world.rank)
    if rule is not None and "heldout" not in data.samples and mesh.world.rank == 0:
        print("no held-out data (data.validation_csv): no validation, and optim.plateau cannot act", flush=True)
    metrics: dict[str, float] = {}
    saving = None
    for step in range(start, steps):
        score = None  # of the weights after this step
        loss, grads = _loss_and_grads(state.params, config, data, step, parts, mesh)
        lr = optim.learning_rate(config.optim, step, steps)
        if rule is not None:
            lr = max(lr * rule["factor"], min(lr, config.optim.plateau.min_learning_rate))
        norm = states.update(state, grads, step, lr, config, layout)
        del grads  # or they would be there beside the next step's
        done = step + 1
        if done % config.train.log_every == 0 or done == steps:
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss of step {step} is {loss}; the last checkpoint is in {folder}")
            kind = "image" if pipeline.is_image_step(config, step) else "video"
            metrics |= {"loss": loss, f"{kind}_loss": loss}
            writer.write_scalars(done, {f"{name}/{kind}_loss": loss, f"{name}/norm": norm, f"{name}/lr": lr})
            progress.update(done, loss=loss)
        if "heldout" in data.samples and (done % config.train.validate_every == 0 or done == steps):
            average = layout.model(states.averaged(state, config))
            score = metrics["heldout_loss"] = _validate(average, config, data, mesh)
            writer.write_scalars(done, {f"{name}/heldout_loss": metrics["heldout_loss"]})
            if rule is not None:
                rule = optim.plateau(rule, metrics["heldout_loss"], config.optim.plateau)
        if done % config.train.checkpoint_every == 0 or done == steps:
            meta = {"step": done, "samples_seen": done * config.train.batch_size, "plateau": rule}
            meta |= {"latent_shift": data.shift, "latent_scale": data.scale, "score": score}
            if saving is not None:
                saving.result()
            saving = states.save(folder, done, state, meta, config, layout)
    if saving is not None:
        saving.result()
    writer.close()
    sync.barrier(mesh.world)
    if mesh.world.rank == 0:
        print(f"{name}: {steps} steps done; checkpoints in {folder}", flush=True)
    return metrics


def _parts(config: Any, mesh: Any) -> list[range]:
    """This rank's positions in the global batch, one range for each micro-batch."""
    batch, pieces = mesh.batch, config.optim.accumulate
    each = config.train.batch_size // (batch.size * pieces)
    return [range((batch.rank * pieces + i) * each, (batch.rank * pieces + i + 1) * each) for i in range(pieces)]


def _loss_and_grads(
    params: Any, config: Any, data: Any, step: int, parts: list[range], mesh: Any
) -> tuple[float, dict]:
    """Mean over micro-batches and ranks."""
    total, grads = 0.0, None
    for part in parts:
        batch = pipeline.batch(data, config, step, part)
        loss, more = transformer_step.loss_and_grads(params, config.model, *batch, _comm(config, mesh))
        total += float(loss.asnumpy()) / len(parts)
        grads = more if grads is None else {path: grads[path] + g for path, g in more.items()}
    if len(parts) > 1:
        grads = {path: g / len(parts) for path, g in grads.items()}
    return total, grads


def _comm(config: Any, mesh: Any) -> comm.Comm:
    cfg = config.model
    return comm.make(mesh, config.train.zero_stage, transformer.shapes(cfg), cfg.get("compute_dtype", "float32"))


def _validate(params: Any, config: Any, data: Any, mesh: Any) -> float:
    """Flow-matching loss on held-out samples, the same noise and times every time. Every rank works on all of them."""
    from moviegen import flow

    size = min(config.train.batch_size // mesh.batch.size, data.samples["heldout"].count)
    losses = []
    for batch in pipeline.heldout_batches(data, config, VALIDATION_TIMES, size):
        noisy = flow.interpolate(batch.latents, batch.noise, batch.t)
        velocity = transformer.apply(params, config.model, noisy, batch.t, batch.text, _comm(config, mesh)).asnumpy()
        losses.append(float(np.mean((velocity - flow.target(batch.latents, batch.noise)) ** 2)))
    return float(np.mean(losses))


def _start(config: Any, folder: Path, layout: states.Layout) -> tuple:
    """(step, state, plateau state or None)."""
    watched = "plateau" in config.optim and config.optim.plateau.factor
    rule = dict(FRESH_PLATEAU) if watched else None
    step = checkpoint.latest(folder)
    if step is not None:
        state, meta = states.restore(folder, step, layout)
        return step, state, (meta["plateau"] or rule) if watched else None
    if config.train.init_from:
        grow = functools.partial(positions.interpolate_positions, cfg=config.model)
        return 0, states.grown(config.train.init_from, layout, grow), rule
    return 0, states.fresh(transformer.init(config.model, config.seed, layout.place), layout), rule
