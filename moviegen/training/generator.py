"""Trains the generator by flow matching."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moviegen.data import pipeline, trained_with
from moviegen.errors import ConfigError, DataError
from moviegen.models.tae import weights as tae_weights
from moviegen.models.transformer import model as transformer, step as transformer_step
from moviegen.models.transformer.shapes import parameter_dtypes
from moviegen.parallel import comm
from moviegen.parallel.mesh import Mesh
from moviegen.runner import Run
from moviegen.storage import checkpoint, trained
from moviegen.storage.trained import Trained
from moviegen.storage.writers import Writer
from moviegen.training import loop, meters, state as states, validation, warmup

Show = Callable[[Any, comm.Comm, Any, int, Writer], None]


def train(run: Run, show: Show | None = None) -> dict[str, float]:
    """Trains to `train.steps`; returns the last losses and the last held-out loss.

    `show` (weights, what computing with them exchanges, the latents' statistics, step, writer) is called every `valid.every`
    steps.
    """
    logged, validated = loop.train(run, make(run, show))
    return {key: value for key, value in (logged | validated).items() if "/" not in key}  # not their parts


def make(run: Run, show: Show | None = None) -> loop.Task:
    """The training of the generator that `run.config` describes.

    Its metrics are named by the run's stage ("t2i/video_loss"), or by "train" where there is none. ConfigError or
    DataError where the data cannot be used.
    """
    config, mesh, stage = run.config, run.mesh, run.config.train.zero_stage
    shapes = transformer.shapes(config.model)
    kinds = parameter_dtypes(config.model)
    layout = states.Layout(shapes, mesh, stage, config.train.offload_optimizer, bool(config.ema.decay), kinds)
    exchange = comm.make(mesh, stage, shapes, kinds)
    begun = _start(run)  # before the data is opened, which may take long
    data = pipeline.open_data(config, run.workdir, mesh.world, mesh.batch.size * config.optim.accumulate)
    made_with = trained_with.describe(config, data.autoencoder)
    name, noted_rows = run.stage or "train", run.workdir / "rows.json"
    loads = {bucket: meters.load(config, bucket) for bucket in data.buckets}

    def micro_batches(step):
        size = bucket_of(step).batch_size
        return (pipeline.batch(data, config, step, own) for own in _positions(config, mesh, size))

    def loss_and_grads(params, batch, step):
        terms: list[Any] = []
        given = *batch[:4], exchange, config.train.recompute, terms.append
        loss, grads = transformer_step.loss_and_grads(params, config.model, *given)
        return {"loss": loss} | meters.by_time(terms[0], batch.t, exchange.batches, exchange.sequence.size), grads

    def numbers(losses, step):
        shown = {"loss": losses["loss"]}
        return shown, {f"{bucket_of(step).kind}_loss": losses["loss"]}

    def parts(losses, step):
        own = {f"loss/{bucket_of(step).name}": (losses["loss"], 1.0)} if len(data.rows) > 1 else {}
        return own | meters.time_parts(losses)

    def bucket_of(step):
        return pipeline.bucket_of(data, step)

    def validate(ema, step, writer):
        found = validation.heldout_loss(layout.model(ema), config, data, exchange, mesh.batch)
        tell([f"step {step}, held-out loss {found['heldout_loss']:.4g}"])
        return found, found["heldout_loss"]

    def sample(ema, step, writer):
        statistics = ConfigDict({"latent_shift": tuple(data.shift), "latent_scale": tuple(data.scale)})
        show(layout.model(ema), exchange, statistics, step, writer)

    def meta(step):
        own = {"latent_shift": data.shift, "latent_scale": data.scale, "trained_with": made_with}
        return own | {"position": pipeline.position(data, step)}

    def first():
        nonlocal data
        if begun:
            meta, told = trained_with.scaled(begun.meta, config.tae, len(data.shift), begun.source)
            tell(told)
            data = _taken_over(data, begun.meta | meta, made_with, begun.source, tell, trained_with.STAGE)
            data = pipeline.taken_over(data, begun.meta.get("position") or {})
        if mesh.world.rank == 0:
            pipeline.note_names(data, noted_rows)
        return first_state(config, layout)

    def restore(found):
        nonlocal data
        data = _taken_over(data, found, made_with, run.workdir / "checkpoints", tell)
        position = found.get("position")
        if mesh.world.rank == 0:
            unknown = "the checkpoint does not say which samples it has seen: an epoch begins"
            tell([unknown] if position is None else pipeline.changes(data, position, noted_rows))
            pipeline.note_names(data, noted_rows)
        data = pipeline.resumed(data, found["step"], position or {})

    def tell(lines):
        for line in lines if mesh.world.rank == 0 else ():
            print(f"{name}: {line}", flush=True)

    def names(step):
        return [row.video for row in pipeline.drawn(data, step, range(bucket_of(step).batch_size))]

    own = dict(validate=validate if data.heldout else None, meta=meta, restore=restore)
    own |= dict(show=sample if show is not None else None, parts=parts, load=lambda step: loads[bucket_of(step)])
    used = [each for each in data.buckets if each.name in data.rows or each.name in data.heldout]
    own["warm_up"] = functools.partial(warmup.compile_all, config, mesh, exchange, used, bool(data.heldout), name)
    return loop.Task(name, layout, first, micro_batches, loss_and_grads, numbers, names, **own)


def _start(run: Run) -> Trained | None:
    """The weights that `train.init_from` names, None where it names none or a run goes on. DataError where none are there."""
    if not run.config.train.init_from or checkpoint.latest(run.workdir / "checkpoints") is not None:
        return None
    try:
        return trained.find(run.config.train.init_from)
    except DataError as error:
        raise DataError(f"train.init_from: {error}") from error


def _taken_over(
    data: pipeline.Data,
    meta: dict,
    made_with: dict,
    where: str | Path,
    tell: Callable,
    refused: tuple[str, ...] = ("model.",),
) -> pipeline.Data:
    """The data as the weights of a checkpoint with this meta know it: normalized by the statistics that they had.

    `tell` gets what has changed since, in lines. Raises ConfigError where that begins with one of `refused`.
    """
    lines = trained_with.check(trained_with.noted(meta), made_with, where, refused)
    if "latent_scale" in meta:
        theirs = [*map(list, tae_weights.latent_statistics(meta, len(data.shift), Path(where)).values())]
        other = trained_with.statistics(theirs, (data.shift, data.scale))
        if other and refused == trained_with.STAGE and data.autoencoder is None:
            raise ConfigError(
                f"{where}: {other[0]}; nothing says which autoencoder made the latents in data.latent_folder, so they count "
                "as another's: encode the clips with --job=encode_video and data.tae_weights of the stage before"
            )
        lines += other
        data = data._replace(shift=theirs[0], scale=theirs[1])
    tell(lines)
    return data


def first_state(config: Any, layout: states.Layout) -> states.State:
    """The state of step 0: the EMA weights that `train.init_from` names (`trained.find`), or random ones.

    Position tables grow to this config's, and a text encoder that the model did not have before is drawn.
    """
    draw = functools.partial(transformer.init, config.model, config.seed, layout.place)
    if config.train.init_from:
        grow = functools.partial(transformer.interpolate_positions, cfg=config.model)
        return states.grown(trained.find(config.train.init_from), layout, grow, draw)
    return states.fresh(draw(), layout)


def _positions(config: Any, mesh: Mesh, size: int) -> list[range]:
    """This rank's positions in a global batch of this size, one range for each micro-batch."""
    batch, pieces = mesh.batch, config.optim.accumulate
    each = size // (batch.size * pieces)
    return [range((batch.rank * pieces + i) * each, (batch.rank * pieces + i + 1) * each) for i in range(pieces)]
