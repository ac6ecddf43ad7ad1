"""Trains the temporal autoencoder; a killed run continues from its workdir as if nothing had happened."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from moviegen import streams
from moviegen.data import crops, video
from moviegen.errors import ConfigError
from moviegen.evaluation import reconstruction
from moviegen.models import lpips
from moviegen.models.tae import linear_start as tae_linear
from moviegen.models.tae import model as tae
from moviegen.models.tae import step as tae_step
from moviegen.models.tae import weights as tae_weights
from moviegen.nn import backend
from moviegen.parallel import comm, sync
from moviegen.runner import Run
from moviegen.storage import checkpoint, safetensors_io
from moviegen.storage.progress import Progress
from moviegen.storage.writers import Writer
from moviegen.streams import Stream
from moviegen.training import adversary, optim
from moviegen.training import state as states


def train(run: Run) -> dict[str, float]:
    """Train to `train.steps` and return the validation numbers of the averaged weights.

    Starts from the newest checkpoint in `workdir`, else from the weights that `train.init_from` names (a safetensors file
    or a checkpoint folder), else from a linear autoencoder fitted to `train.linear_start` clips, else from random ones.
    """
    config, workdir, mesh, name = run.config, run.workdir, run.mesh, run.stage or "tae"
    steps = config.train.steps
    layout = states.Layout(tae.shapes(config.tae), mesh, config.train.zero_stage)
    rival = adversary.layout(config, mesh)
    perceptual = None
    if config.loss.get("lpips"):
        read = functools.partial(lpips.load, config.loss.lpips_weights, "loss.lpips_weights", "--config.loss.lpips=0")
        perceptual = sync.from_first(mesh.world, read, lpips.shapes())
    folder = workdir / "checkpoints"
    source = crops.source(config.data, workdir, mesh.world)
    start, state, opponent = _start(config, folder, layout, rival, source)
    writer, progress = run.open_writer(name, resume_step=start), Progress(name, steps, mesh.world.rank)
    heldout = functools.cache(lambda: reconstruction.validation_clips(config))
    metrics: dict[str, float] = {}
    saving = None
    for step in range(start, steps):
        score = None  # of the weights after this step
        clips = crops.batch(
            source, config.data, config.seed, step, config.train.batch_size, mesh.batch.rank, mesh.batch.size
        )
        losses, grads, lesson = _loss_and_grads(config, state, opponent, clips, step, mesh, perceptual)
        lr = optim.learning_rate(config.optim, step, steps)
        norm = states.update(state, grads, step, lr, config, layout)
        if lesson:
            adversary.update(opponent, lesson, step, lr, config, rival)
        del grads, lesson  # or they would be there beside the next step's
        done = step + 1
        if done % config.train.log_every == 0 or done == steps:
            numbers = {key: float(value.asnumpy()) for key, value in losses.items()}
            if not np.isfinite(numbers["loss"]):
                raise FloatingPointError(
                    f"the loss of step {step} is {numbers['loss']}; the last checkpoint is in {folder}"
                )
            numbers["psnr"] = float(10 * np.log10(4 / numbers.pop("mse")))  # the video's range [-1, 1] is 2 wide
            writer.write_scalars(
                done, {f"{name}/{key}": v for key, v in numbers.items()} | {f"{name}/norm": norm, f"{name}/lr": lr}
            )
            progress.update(done, **numbers)
        if done % config.train.validate_every == 0 or done == steps:
            # By every rank: MindSpore's collectives on CPU wait 30 s for a rank that does it alone, and no longer.
            average = layout.whole(states.averaged(state, config))
            metrics = reconstruction.evaluate(average, config.tae, heldout(), perceptual)
            score = -metrics["synthetic_psnr"]  # there whatever the run trains on; the best is the lowest
            writer.write_scalars(done, {f"{name}/{key}": value for key, value in metrics.items()})
            if mesh.world.rank == 0:
                print(f"{name} {done}/{steps}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()), flush=True)
                _show(writer, done, average, config, heldout())
        if done % config.train.checkpoint_every == 0 or done == steps:
            if saving is not None:
                saving.result()
            both = adversary.joined(state, opponent), adversary.joint_layout(layout, rival)
            saving = states.save(folder, done, both[0], {"step": done, "score": score}, config, both[1])
    if saving is not None:
        saving.result()
    average = layout.whole(states.averaged(state, config))
    sync.barrier(mesh.world)
    if mesh.world.rank != 0:
        return metrics
    path = safetensors_io.write(average, workdir / "tae.safetensors", "float16")
    writer.close()
    print(f"{name}: {steps} steps done; averaged weights in {path}, checkpoints in {folder}", flush=True)
    return metrics


def _loss_and_grads(config, state, opponent, clips, step, mesh, perceptual):
    """Losses and gradients of a step's clips, and the discriminator's gradients ({} where it does not play).

    The clips are taken in `optim.accumulate` parts, of which the mean is the whole batch's.
    """
    pieces = config.optim.get("accumulate", 1)
    if len(clips) % pieces:
        raise ConfigError(
            f"optim.accumulate is {pieces}, which does not divide the {len(clips)} clips of step {step} on each rank "
            "(train.batch_size, or data.image_batch_size, over the ranks)"
        )
    noise, weights = _noise(config, step, clips, mesh.batch.rank), _weights(config, step)
    adversarial = config.loss.adversarial if adversary.plays(config, opponent, step) else None
    params = state.params | (opponent.params if adversarial else {})
    exchange = comm.make(mesh, config.train.zero_stage, tae_step.shapes(config.tae, adversarial))
    found: list[dict] = [{}, {}]
    for own in np.split(np.arange(len(clips)), pieces):
        more = tae_step.loss_and_grads(
            params,
            config.tae,
            clips[own],
            noise[own],
            weights,
            exchange,
            perceptual,
            adversarial,
            config.train.get("recompute_levels", ()),
        )
        for i, tree in enumerate(more):
            found[i] = {key: found[i][key] + v if found[i] else v for key, v in tree.items()}
    losses, grads = ({key: v / pieces if pieces > 1 else v for key, v in tree.items()} for tree in found)
    lesson = {path: grads.pop(path) for path in list(grads) if path.startswith(adversary.PREFIX)}
    return losses, grads, lesson


def _weights(config: Any, step: int) -> dict[str, float]:
    """Every loss's weight in this step."""
    loss = config.loss
    found = {key: loss.get(key, 0.0) for key in ("l1", "mse", "kl", "lpips")}
    found["outlier"] = loss.get("outlier", 0.0) if step >= loss.get("outlier_start", 0) else 0.0
    found["outlier_radius"] = loss.get("outlier_radius", 3.0)
    found["adversarial"] = loss.adversarial.weight if "adversarial" in loss else 0.0
    return found


def _start(
    config: Any, folder: Path, layout: states.Layout, rival: states.Layout | None, source: crops.Source
) -> tuple[int, states.State, states.State | None]:
    step = checkpoint.latest(folder)
    if step is not None:
        state, _ = states.restore(folder, step, adversary.joint_layout(layout, rival))
        return step, *adversary.parted(state, rival)
    given = config.train.init_from
    if given:
        read = functools.partial(tae_weights.load, given, config.tae)
        params = sync.from_first(layout.mesh.world, read, layout.shapes)
    elif config.train.get("linear_start"):
        params = _linear_start(config, source)
    else:
        params = tae.init(config.tae, config.seed)
    master = {path: layout.place(path, array) for path, array in backend.to_numpy(params).items()}
    return 0, states.fresh(master, layout), adversary.fresh(config, rival) if rival else None


def _linear_start(config: Any, source: crops.Source) -> dict[str, Any]:
    """Weights fitted in closed form to `train.linear_start` clips, four times as large as the training crops."""
    data = config.data
    drawn = [
        source(streams.rng(Stream.LINEAR_START, config.seed, i), data.num_frames, 2 * data.height, 2 * data.width)
        for i in range(config.train.linear_start)
    ]
    return tae_linear.init(config.tae, drawn, config.seed)


def _noise(config: Any, step: int, clips: np.ndarray, rank: int) -> np.ndarray:
    b, _, t, h, w = clips.shape
    shape, first = (config.tae.latent_channels, -(-t // 8), h // 8, w // 8), rank * b
    return np.stack(
        [
            streams.rng(Stream.TAE_POSTERIOR, config.seed, step, first + i).standard_normal(shape, np.float32)
            for i in range(b)
        ]
    )


def _show(writer: Writer, step: int, params: Any, config: Any, clips: dict[str, np.ndarray]) -> None:
    for label, clip in clips.items():
        made = reconstruction.roundtrip(params, config.tae, clip[:16])
        pair = np.concatenate([clip[:16:5], made[::5]], 1)  # originals above reconstructions
        sheet = np.concatenate(list(pair), 1)
        video.write_png(writer.workdir / "samples" / f"recons-{label}.png", sheet)
        writer.write_images(step, {label: sheet})
