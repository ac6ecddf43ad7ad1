"""Trains the temporal autoencoder, with a discriminator where the config has an adversarial loss."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from moviegen import streams
from moviegen.data import crops, video
from moviegen.errors import ConfigError
from moviegen.evaluation import reconstruction
from moviegen.models import lpips
from moviegen.models.tae import (
    linear_start,
    model as tae,
    shapes as tae_shapes,
    step as tae_step,
    weights as tae_weights,
)
from moviegen.nn import backend
from moviegen.parallel import comm, sync
from moviegen.parallel.mesh import Group, Mesh
from moviegen.runner import Run
from moviegen.storage import safetensors_io
from moviegen.storage.writers import Writer
from moviegen.streams import Stream
from moviegen.training import loop, state as states


def train(run: Run) -> dict[str, float]:
    """Trains to `train.steps`, writes `tae.safetensors`, and returns the validation metrics of the weights in it."""
    _, validated = loop.train(run, make(run))
    return validated


def make(run: Run) -> loop.Task:
    """The training of the autoencoder that `run.config` describes.

    Its metrics are named by the run's stage, or by "tae" where there is none. ConfigError or DataError where the weights
    of LPIPS or the data cannot be used.
    """
    config, workdir, mesh, name = run.config, run.workdir, run.mesh, run.stage or "tae"
    adversarial = config.loss.get("adversarial")
    if adversarial and not adversarial.weight:
        adversarial = None
    trained_with = {"tae": tae_weights.settings(config.tae)}
    tae.compute_dtype(config.tae)  # checked before anything is read
    shapes = tae_shapes.shapes(config.tae, adversarial)
    kinds, stage = tae_shapes.parameter_dtypes(config.tae, adversarial), config.train.zero_stage
    layout = states.Layout(shapes, mesh, stage, averaged=bool(config.ema.decay), dtypes=kinds)
    exchange = comm.make(mesh, stage, shapes, kinds)
    perceptual = _perceptual(config, mesh)
    source = crops.source(config.data, workdir, mesh.world)
    heldout = functools.cache(lambda: reconstruction.validation_clips(config))

    def first_state():
        params = tae_step.init(config.tae, config.seed, adversarial) | start_weights(config, source, mesh.world)
        shards = {path: layout.place(path, array) for path, array in backend.to_numpy(params).items()}
        return states.fresh(shards, layout)

    def loss_and_grads(params, inputs, step):
        weights, recompute = _weights(config, step), config.train.get("recompute_levels", ())
        active = adversarial if adversarial and step >= adversarial.start else None
        return tae_step.loss_and_grads(params, config.tae, *inputs, weights, exchange, perceptual, active, recompute)

    def numbers(losses, step):
        psnr = float(10 * np.log10(4 / losses["mse"]))  # the video's range [-1, 1] is 2 wide
        found = {key: value for key, value in losses.items() if key != "mse"} | {"psnr": psnr}
        return found, found

    def names(step):
        return crops.names(source, config.data, config.seed, step, config.train.batch_size)

    def weights_of(ema):
        return layout.whole({path: ema[path] for path in tae_shapes.shapes(config.tae)})

    def validate(ema, step, writer):
        weights = weights_of(ema)
        metrics = reconstruction.evaluate(weights, config.tae, heldout(), perceptual, mesh.world)
        if mesh.world.rank == 0:
            listed = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items())
            print(f"{name} {step}/{config.train.steps}: {listed}", flush=True)
            _show(run, writer, step, weights, heldout())
        return metrics, -metrics["synthetic_psnr"]  # there whatever the run trains on

    def export(ema):
        weights = weights_of(ema)
        # In float32: these are the weights that the last validation measured.
        path = workdir / "tae.safetensors"
        return safetensors_io.write(weights, path, metadata=trained_with) if mesh.world.rank == 0 else None

    micro_batches = functools.partial(_micro_batches, config, source, mesh)
    starts = {tae_shapes.DISCRIMINATOR: adversarial.start} if adversarial else {}
    own = dict(validate=validate, meta=lambda step: trained_with, export=export, starts=starts)
    return loop.Task(name, layout, first_state, micro_batches, loss_and_grads, numbers, names, **own)


def start_weights(config: Any, source: crops.Source, world: Group) -> dict[str, Any]:
    """Whole parameters on every rank to start with, as the config asks for them; none where they are random.

    `train.init_from` is a safetensors file or a checkpoint folder. `train.linear_start` is the number of clips to which a
    linear autoencoder is fitted in closed form; they are four times as large as the training crops.
    """
    if config.train.init_from:
        read = functools.partial(tae_weights.load, config.train.init_from, config.tae)
        return sync.from_first(world, read, tae_shapes.shapes(config.tae))
    count, data = config.train.get("linear_start", 0), config.data
    if not count:
        return {}
    rngs = (streams.rng(Stream.LINEAR_START, config.seed, i) for i in range(count))
    drawn = [source(rng, data.num_frames, 2 * data.height, 2 * data.width) for rng in rngs]
    return linear_start.init(config.tae, drawn, config.seed)


def _perceptual(config: Any, mesh: Mesh) -> dict[str, Any] | None:
    """Weights of LPIPS, where a loss needs them."""
    if not config.loss.get("lpips"):
        return None
    read = functools.partial(lpips.load, config.loss.lpips_weights, "loss.lpips_weights", "--config.loss.lpips=0")
    return sync.from_first(mesh.world, read, lpips.shapes())


def _micro_batches(config: Any, source: crops.Source, mesh: Mesh, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Clips (b 3 t h w) and the noise of their posteriors, `optim.accumulate` times."""
    batch, pieces = mesh.batch, config.optim.get("accumulate", 1)
    clips = crops.batch(source, config.data, config.seed, step, config.train.batch_size, batch.rank, batch.size)
    if len(clips) % pieces:
        raise ConfigError(
            f"optim.accumulate is {pieces}, which does not divide the {len(clips)} clips of step {step} on each rank "
            "(train.batch_size, or data.image_batch_size, over the ranks)"
        )
    noise = _noise(config, step, clips, batch.rank)
    yield from zip(np.split(clips, pieces), np.split(noise, pieces), strict=True)


def _noise(config: Any, step: int, clips: np.ndarray, rank: int) -> np.ndarray:
    b, _, t, h, w = clips.shape
    shape, first = (config.tae.latent_channels, -(-t // 8), h // 8, w // 8), rank * b
    draws = [streams.rng(Stream.TAE_POSTERIOR, config.seed, step, first + i) for i in range(b)]
    return np.stack([rng.standard_normal(shape, np.float32) for rng in draws])


def _weights(config: Any, step: int) -> dict[str, float]:
    """Every loss's weight in this step."""
    loss = config.loss
    found = {key: loss.get(key, 0.0) for key in ("l1", "mse", "kl", "lpips")}
    found["outlier"] = loss.get("outlier", 0.0) if step >= loss.get("outlier_start", 0) else 0.0
    adversarial = loss.adversarial.weight if "adversarial" in loss else 0.0
    return found | {"outlier_radius": loss.get("outlier_radius", 3.0), "adversarial": adversarial}


def _show(run: Run, writer: Writer, step: int, params: Any, clips: dict[str, np.ndarray]) -> None:
    """Writes sheets of frames, originals above reconstructions."""
    for label, clip in clips.items():
        made = reconstruction.roundtrip(params, run.config.tae, clip[:16])
        sheet = np.concatenate(list(np.concatenate([clip[:16:5], made[::5]], 1)), 1)
        video.write_png(run.workdir / "samples" / f"recons-{label}.png", sheet)
        writer.write_images(step, {label: sheet})
