"""Trains the temporal autoencoder; a killed run continues from its workdir as if nothing had happened."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from moviegen import backend, checkpoint, optim, reconstruction, safetensors_io
from moviegen import mesh as meshes
from moviegen import state as states
from moviegen.data import crops, video
from moviegen.models import tae, tae_linear
from moviegen.writers import Writer


def run(config: Any, workdir: str | Path, stage: str | None = None, name: str = "tae") -> dict[str, float]:
    """Train to `train.steps` and return the validation numbers of the averaged weights.

    Starts from the newest checkpoint in `workdir`, else from the weights that `train.init_from` names (a safetensors file
    or a checkpoint folder), else from a linear autoencoder fitted to `train.linear_start` clips, else from random ones.
    """
    workdir, steps, mesh = Path(workdir), config.train.steps, meshes.current()
    layout = states.Layout(tae.shapes(config.tae), mesh, config.train.zero_stage)
    folder = workdir / "checkpoints"
    start, state = _start(config, folder, layout)
    writer = Writer(workdir, name, resume_step=start, rank=mesh.world.rank)
    source = crops.source(config.data)
    weights = dict(config.loss)
    heldout = functools.cache(lambda: reconstruction.validation_clips(config))
    metrics: dict[str, float] = {}
    saving = None
    for step in range(start, steps):
        score = None  # of the weights after this step
        clips = crops.batch(
            source, config.data, config.seed, step, config.train.batch_size, mesh.batch.rank, mesh.batch.size
        )
        noise = _noise(config, step, clips, mesh.batch.rank)
        losses, grads = tae.loss_and_grads(
            state.params, config.tae, clips, noise, weights, mesh, config.train.zero_stage
        )
        lr = optim.learning_rate(config.optim, step, steps)
        norm = states.update(state, grads, step, lr, config, layout)
        del grads  # or they would be there beside the next step's
        done = step + 1
        if done % config.train.log_every == 0 or done == steps:
            numbers = {key: float(value.asnumpy()) for key, value in losses.items()}
            if not np.isfinite(numbers["loss"]):
                raise FloatingPointError(
                    f"the loss of step {step} is {numbers['loss']}; the last checkpoint is in {folder}"
                )
            numbers["psnr"] = float(10 * np.log10(4 / numbers.pop("mse")))  # the video's range [-1, 1] is 2 wide
            writer.scalars(
                done, {f"{name}/{key}": v for key, v in numbers.items()} | {f"{name}/norm": norm, f"{name}/lr": lr}
            )
            writer.progress(name, done, steps, **numbers)
        if done % config.train.validate_every == 0 or done == steps:
            # By every rank: MindSpore's collectives on CPU wait 30 s for a rank that does it alone, and no longer.
            metrics = reconstruction.evaluate(layout.whole(states.averaged(state, config)), config.tae, heldout())
            score = -metrics["synthetic_psnr"]  # there whatever the run trains on; the best is the lowest
            writer.scalars(done, {f"{name}/{key}": value for key, value in metrics.items()})
            if mesh.world.rank == 0:
                print(f"{name} {done}/{steps}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()), flush=True)
        if done % config.train.checkpoint_every == 0 or done == steps:
            if saving is not None:
                saving.result()
            saving = states.save(folder, done, state, {"step": done, "score": score}, config, layout)
    if saving is not None:
        saving.result()
    average = layout.whole(states.averaged(state, config))
    meshes.barrier(mesh.world)
    if mesh.world.rank != 0:
        return metrics
    path = safetensors_io.write(average, workdir / "tae.safetensors", "float16")
    _show(writer, steps, average, config, heldout())
    writer.close()
    print(f"{name}: {steps} steps done; averaged weights in {path}, checkpoints in {folder}", flush=True)
    return metrics


def load_weights(path: str | Path, cfg: Any) -> dict[str, Any]:
    """Autoencoder weights from a safetensors file or the averaged weights of a checkpoint folder, checked against cfg."""
    from moviegen.errors import DataError

    path = Path(path)
    if path.is_dir():
        arrays = checkpoint.load(path, select="^ema/")[0]["ema"]
    else:
        arrays = safetensors_io.read(path)
    want = tae.shapes(cfg)
    wrong = [name for name in want | arrays if name not in arrays or want.get(name) != arrays[name].shape]
    if wrong:
        raise DataError(
            f"{path}: these weights are not of this tae config: {', '.join(sorted(wrong)[:5])} ({len(wrong)} differ)"
        )
    return backend.to_tensors({name: array.astype(np.float32) for name, array in arrays.items()})


def _start(config: Any, folder: Path, layout: states.Layout) -> tuple[int, states.State]:
    step = checkpoint.latest(folder)
    if step is not None:
        return step, states.restore(folder, step, layout)[0]
    given = config.train.init_from
    if given:
        params = load_weights(given, config.tae)
    elif config.train.get("linear_start"):
        params = _linear_start(config)
    else:
        params = tae.init(config.tae, config.seed)
    master = {path: layout.place(path, array) for path, array in backend.to_numpy(params).items()}
    return 0, states.fresh(master, layout)


def _linear_start(config: Any) -> dict[str, Any]:
    """Weights fitted in closed form to `train.linear_start` clips, four times as large as the training crops."""
    data, source = config.data, crops.source(config.data)
    drawn = [
        source(np.random.default_rng([config.seed, i, 5]), data.num_frames, 2 * data.height, 2 * data.width)
        for i in range(config.train.linear_start)
    ]
    return tae_linear.init(config.tae, drawn, config.seed)


def _noise(config: Any, step: int, clips: np.ndarray, rank: int) -> np.ndarray:
    b, _, t, h, w = clips.shape
    shape, first = (config.tae.latent_channels, -(-t // 8), h // 8, w // 8), rank * b
    return np.stack(
        [np.random.default_rng([config.seed, step, first + i, 1]).standard_normal(shape, np.float32) for i in range(b)]
    )


def _show(writer: Writer, step: int, params: Any, config: Any, clips: dict[str, np.ndarray]) -> None:
    for label, clip in clips.items():
        made = reconstruction.roundtrip(params, config.tae, clip[:16])
        pair = np.concatenate([clip[:16:5], made[::5]], 1)  # originals above reconstructions
        sheet = np.concatenate(list(pair), 1)
        video.write_png(writer.workdir / "samples" / f"recons-{label}.png", sheet)
        writer.images(step, {label: sheet})
