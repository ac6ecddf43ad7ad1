"""Trains the generator by flow matching; a killed run continues from its workdir as if nothing had happened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moviegen import backend, checkpoint, mesh, optim
from moviegen.data import pipeline
from moviegen.errors import ConfigError
from moviegen.models import transformer
from moviegen.writers import Writer

VALIDATION_TIMES = tuple(np.linspace(0, 1, 12)[1:-1])  # ten times without the ends, as the seed's
FRESH_PLATEAU = {"best": float("inf"), "bad": 0, "factor": 1.0}


def run(config: Any, workdir: str | Path, stage: str | None = None, name: str = "train") -> dict[str, float]:
    """Train to `train.steps` and return the last losses.

    Starts from the newest checkpoint in `workdir`, else from the averaged weights of the stage before (`train.init_from`,
    a checkpoint folder; position tables grow to this config's), else from random weights.
    """
    workdir, steps = Path(workdir), config.train.steps
    parts = _parts(config)
    data = pipeline.open_data(config, workdir)
    folder = workdir / "checkpoints"
    start, params, average, state, rule = _start(config, folder)
    writer = Writer(workdir, name, resume_step=start, rank=mesh.rank())
    if rule is not None and "heldout" not in data.samples:
        print("no held-out data (data.validation_csv): no validation, and optim.plateau cannot act", flush=True)
    metrics: dict[str, float] = {}
    for step in range(start, steps):
        loss, grads = _loss_and_grads(params, config, data, step, parts)
        norm = optim.global_norm(grads)
        lr = optim.learning_rate(config.optim, step, steps)
        if rule is not None:
            lr = max(lr * rule["factor"], min(lr, config.optim.plateau.min_learning_rate))
        optim.adamw_update(params, grads, state, step, lr, config.optim, norm)
        if config.ema.decay:
            # An average over few steps weighs the random start too much: the decay grows to its value.
            optim.ema_update(average, params, min(config.ema.decay, (1 + step) / (10 + step)))
        done = step + 1
        if done % config.train.log_every == 0 or done == steps:
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss of step {step} is {loss}; the last checkpoint is in {folder}")
            kind = "image" if pipeline.is_image_step(config, step) else "video"
            metrics |= {"loss": loss, f"{kind}_loss": loss}
            writer.scalars(done, {f"{name}/{kind}_loss": loss, f"{name}/norm": norm, f"{name}/lr": lr})
            writer.progress(name, done, steps, loss=loss)
        if "heldout" in data.samples and (done % config.train.validate_every == 0 or done == steps):
            metrics["heldout_loss"] = _validate(average if config.ema.decay else params, config, data)
            writer.scalars(done, {f"{name}/heldout_loss": metrics["heldout_loss"]})
            if rule is not None:
                rule = optim.plateau(rule, metrics["heldout_loss"], config.optim.plateau)
        if (done % config.train.checkpoint_every == 0 or done == steps) and mesh.rank() == 0:
            trees = {"params": params, "opt/m": state["m"], "opt/v": state["v"]}
            trees["ema"] = average if config.ema.decay else params
            meta = {"step": done, "samples_seen": done * config.train.batch_size, "plateau": rule}
            meta |= {"latent_shift": data.shift, "latent_scale": data.scale}
            checkpoint.save(folder, done, trees, meta, config.train.keep_checkpoints)
    writer.close()
    mesh.barrier()
    if mesh.rank() == 0:
        print(f"{name}: {steps} steps done; checkpoints in {folder}", flush=True)
    return metrics


def _parts(config: Any) -> list[range]:
    """This rank's positions in the global batch, one range for each micro-batch."""
    size, pieces = config.train.batch_size, mesh.ranks() * config.optim.accumulate
    if size % pieces:
        raise ConfigError(
            f"train.batch_size is {size}, which is not a multiple of {mesh.ranks()} ranks x "
            f"optim.accumulate = {config.optim.accumulate}"
        )
    each = size // pieces
    first = mesh.rank() * config.optim.accumulate
    return [range((first + i) * each, (first + i + 1) * each) for i in range(config.optim.accumulate)]


def _loss_and_grads(params: Any, config: Any, data: Any, step: int, parts: list[range]) -> tuple[float, dict]:
    """Mean over micro-batches and ranks."""
    total, grads = 0.0, None
    for part in parts:
        batch = pipeline.batch(data, config, step, part)
        loss, more = transformer.loss_and_grads(params, config.model, *batch)
        total += float(loss.asnumpy()) / len(parts)
        grads = more if grads is None else {path: grads[path] + g for path, g in more.items()}
    if len(parts) > 1:
        grads = {path: g / len(parts) for path, g in grads.items()}
    if mesh.ranks() > 1:
        grads = mesh.all_reduce_mean(grads)
        total = float(mesh.all_reduce_mean({"loss": np.float32(total)})["loss"].asnumpy())
    return total, grads


def _validate(params: Any, config: Any, data: Any) -> float:
    """Flow-matching loss on held-out samples, the same noise and times every time."""
    from moviegen import flow

    size = min(config.train.batch_size // mesh.ranks(), data.samples["heldout"].count)
    losses = []
    for batch in pipeline.heldout_batches(data, config, VALIDATION_TIMES, size):
        noisy = flow.interpolate(batch.latents, batch.noise, batch.t)
        velocity = transformer.apply(params, config.model, noisy, batch.t, batch.text).asnumpy()
        losses.append(float(np.mean((velocity - flow.target(batch.latents, batch.noise)) ** 2)))
    return float(np.mean(losses))


def _start(config: Any, folder: Path) -> tuple:
    """(step, params, average, moments, plateau state or None)."""
    watched = "plateau" in config.optim and config.optim.plateau.factor
    step = checkpoint.latest(folder)
    if step is not None:
        trees, meta = checkpoint.load(folder, step)
        print(f"continuing from step {step} in {folder}", flush=True)
        state = {name: backend.to_tensors(trees[f"opt/{name}"]) for name in "mv"}
        rule = (meta["plateau"] or dict(FRESH_PLATEAU)) if watched else None
        return step, backend.to_tensors(trees["params"]), backend.to_tensors(trees["ema"]), state, rule
    if config.train.init_from:
        weights: Mapping[str, Any] = checkpoint.load(config.train.init_from, select="^ema/")[0]["ema"]
        params = transformer.interpolate_positions(weights, config.model)
    else:
        params = transformer.init(config.model, config.seed)
    average = backend.to_tensors({path: array.copy() for path, array in backend.to_numpy(params).items()})
    return 0, params, average, optim.init_state(params), dict(FRESH_PLATEAU) if watched else None
