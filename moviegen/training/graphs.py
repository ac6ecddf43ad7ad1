"""Every step that an experiment would take, on zeros: what `--job=audit_ascend` compiles."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from moviegen import config as configs, settings
from moviegen.models import lpips
from moviegen.models.tae import model as tae, shapes as tae_shapes, step as tae_step, tiles
from moviegen.models.text import clip, t5
from moviegen.models.text.shapes import FLOAT32
from moviegen.models.transformer import model as transformer, step as transformer_step
from moviegen.models.transformer.shapes import encoders as attended, parameter_dtypes
from moviegen.nn import dtypes
from moviegen.nn.compile_only import by_path, group_name, zeros
from moviegen.parallel import buckets, comm, rules, sharding
from moviegen.parallel.mesh import ALONE, AXES, ONE, Group, Mesh
from moviegen.text import encoders, source
from moviegen.training import state as states, warmup

Shapes = Mapping[str, tuple[int, ...]]


class Case(NamedTuple):
    """A step of an experiment.

    Args:
        name: which.
        take: number of layers -> None; takes it with so many.
        layers: how many the model has; they share their graphs, so that one and two of them tell of all.
    """

    name: str
    take: Callable[[int], Any]
    layers: int = 1


def of_experiment(config: Any, job: str, axes: Mapping[str, int]) -> Iterator[Case]:
    """The steps of the experiment whose job this is, on the last rank of a mesh: the one that has the padding."""
    mesh = _mesh(axes)
    if job == "train":
        yield from _of_generator(config, mesh)
    else:
        yield from _of_autoencoder(config, mesh)


def _mesh(axes: Mapping[str, int]) -> Mesh:
    data, zero, sp = (axes[name] for name in AXES)

    def group(name: str, size: int) -> Group:
        return ALONE if size == 1 else Group(group_name(name, size), size, size - 1)

    groups = group("world", data * zero * sp), group("sequence", sp), group("shard", zero * sp), group("replicas", data)
    return Mesh(data, zero, sp, *groups)


def _exchange(mesh: Mesh, zero_stage: int, shapes: Shapes, kinds: Mapping[str, str] = {}) -> comm.Comm:
    """A step's exchanges with ranks that are not there: what is between graphs is zeros."""

    def all_gather(params: Mapping[str, Any]) -> dict[str, Any]:
        return by_path({path: shapes[path] for path in params}, kinds)

    return comm.make(mesh, zero_stage, shapes, kinds)._replace(
        all_gather=all_gather, reducer=comm.LOCAL.reducer, all_reduce=comm.LOCAL.all_reduce
    )


def _given(mesh: Mesh, zero_stage: int, shapes: Shapes, kinds: Mapping[str, str] = {}) -> dict[str, Any]:
    """The parameters as a rank has them: float32 shards at ZeRO stage 3 of several, else whole as they are computed with."""
    if zero_stage < 3 or mesh.shard.size == 1:
        return by_path(shapes, kinds)
    return by_path({path: sharding.shard_shape(shape, mesh.shard.size) for path, shape in shapes.items()})


# ---- the generator, its text encoders, and what it needs of the autoencoder


def _of_generator(config: Any, mesh: Mesh) -> Iterator[Case]:
    sample, layers, stage = config.sample, config.model.num_layers, config.train.zero_stage
    unit = mesh.batch.size * config.optim.accumulate

    def model_of(count: int) -> tuple:
        model = config.model.copy_and_resolve_references().unlock()
        model.num_layers = count
        shapes = transformer.shapes(model)
        kinds = parameter_dtypes(model)
        return model, _given(mesh, stage, shapes, kinds), _exchange(mesh, stage, shapes, kinds)

    def inputs(case: warmup.Case) -> tuple:
        latents = zeros("float32", (case.samples, config.model.latent_channels, *case.bucket.latents))
        return latents, zeros("float32", (case.samples,)), warmup.zero_text(config, case)

    def train(case: warmup.Case) -> Callable:
        def take(count: int) -> None:
            model, params, exchange = model_of(count)
            latents, t, text = inputs(case)
            transformer_step.loss_and_grads(params, model, latents, latents, t, text, exchange, config.train.recompute)

        return take

    def velocity(count: int) -> None:
        model, params, exchange = model_of(count)
        batch = sample.batch_size * (1 + (sample.guidance_scale != 1))
        shape = buckets.Bucket(sample.num_frames, sample.height, sample.width)
        latents, t, text = inputs(_case(config, shape, batch))
        context = transformer.attended(params, model, text, batch, exchange)
        transformer.velocity(params, model, latents, t, context, exchange)

    def update(count: int) -> None:
        _update(config, transformer.shapes(model_of(count)[0]), mesh)

    short = not source.is_toy(config)  # of the first shape, if it is a video's
    for kind, bucket in rules.kinds(config, unit).items():
        samples = max(1, bucket.batch_size // unit)
        yield Case(f"train on {kind}", train(_case(config, bucket, samples)), layers)
        if short and bucket.kind == "video":
            yield Case(f"train on {kind}, a short text", train(_case(config, bucket, samples, short)), layers)
        short = False
    yield Case("update", update, layers)
    unfit = [key for key in settings.broken(configs.flat(config), "sample") if key != "sample.prompts"]
    if unfit:  # as in a stage that another one samples after
        print(f"audit_ascend: sampling is left out: the model cannot take {', '.join(unfit)}", flush=True)
    else:
        yield Case("a step of sampling", velocity, layers)
    yield from _text_encoders(config, mesh)
    yield from _coding(config.tae, sample.num_frames, sample.height, sample.width)


def _case(config: Any, bucket: buckets.Bucket, samples: int, short: bool = False) -> warmup.Case:
    """So many samples of a shape, with texts as long as their budgets, or short ones."""
    lengths = source.possible_lengths(config)[0 if short else -1]
    half, whole = transformer.context_lengths(sum(lengths.values()))
    return warmup.Case(bucket, samples, lengths, half if short or source.is_toy(config) else whole)


def _text_encoders(config: Any, mesh: Mesh) -> Iterator[Case]:
    """Those whose folders the experiment names."""
    settings = config.get("text")
    for name in attended(config.model) if settings else ():
        if not settings.encoders[name]:
            print(f"audit_ascend: text.encoders.{name} names no folder, so that encoder is left out", flush=True)
            continue
        model = encoders.look(config, name).cfg
        length = -(-settings.budgets[name] // encoders.LENGTH_STEP) * encoders.LENGTH_STEP
        ids = np.zeros((settings.batch_size, length), np.int32)
        yield Case(f"embed by {name}", _embedding(model, ids, mesh, config.train.zero_stage), model.num_layers)


def _embedding(whole: Any, ids: np.ndarray, mesh: Mesh, stage: int) -> Callable:
    module = clip if "projection_width" in whole else t5
    ids = ids[:, : whole.positions] if module is clip else ids

    def take(count: int) -> None:
        model = whole.copy_and_resolve_references()
        model.num_layers = count
        shapes = module.shapes(model)
        exchange = _exchange(mesh, stage, shapes, dtypes.by_path(shapes, model.compute_dtype, FLOAT32))
        module.apply(_given(mesh, stage, shapes), model, ids, np.ones_like(ids), exchange)

    return take


# ---- the autoencoder


def _of_autoencoder(config: Any, mesh: Mesh) -> Iterator[Case]:
    data, loss, stage = config.data, config.loss, config.train.zero_stage
    adversarial = loss.adversarial if "adversarial" in loss and loss.adversarial.weight else None
    shapes, kinds = tae_shapes.shapes(config.tae, adversarial), tae_shapes.parameter_dtypes(config.tae, adversarial)
    pieces = mesh.batch.size * config.optim.get("accumulate", 1)
    weights = {**loss, "adversarial": adversarial.weight if adversarial else 0.0}

    def train(clips: int, frames: int) -> Callable:
        def take(_: int) -> None:
            batch, latent_frames = max(1, clips // pieces), -(-frames // 8)
            video = zeros("float32", (batch, 3, frames, data.height, data.width))
            noise = (batch, config.tae.latent_channels, latent_frames, data.height // 8, data.width // 8)
            perceptual = by_path(lpips.shapes()) if loss.get("lpips") else None
            tae_step.loss_and_grads(
                _given(mesh, stage, shapes, kinds),
                config.tae,
                video,
                zeros("float32", noise),
                weights,
                _exchange(mesh, stage, shapes, kinds),
                perceptual,
                adversarial,
                config.train.get("recompute_levels", ()),
            )

        return take

    def compare(_: int) -> None:
        pictures = zeros("float32", (lpips.FRAMES, 3, data.height, data.width))
        lpips.distance(by_path(lpips.shapes()), pictures, pictures)

    if data.num_frames > 1 and data.image_fraction < 1:
        yield Case("train on clips", train(config.train.batch_size, data.num_frames))
    if data.num_frames == 1 or data.image_fraction:
        yield Case("train on images", train(data.image_batch_size, 1))
    starts = {tae_shapes.DISCRIMINATOR: 0} if adversarial else {}
    yield Case("update", lambda _: _update(config, shapes, mesh, starts))
    yield from _coding(config.tae, data.num_frames, data.height, data.width)
    if loss.get("lpips") or config.get("evaluate", {}).get("lpips_weights"):
        yield Case("compare by LPIPS", compare)


def _coding(cfg: Any, frames: int, height: int, width: int) -> Iterator[Case]:
    """Encoding and decoding of what is taken at a time of a video."""
    side = 8 * cfg.get("spatial_tile", 0) or max(height, width)
    height, width, frames = min(side, height), min(side, width), min(frames, 8 * tiles.TILE)
    params = by_path(tae_shapes.shapes(cfg), tae_shapes.parameter_dtypes(cfg))
    latents = (cfg.latent_channels, -(-frames // 8), height // 8, width // 8)
    yield Case("encode a video", lambda _: tae.encode(params, cfg, zeros("float32", (1, 3, frames, height, width))))
    yield Case("decode a video", lambda _: tae.decode(params, cfg, zeros("float32", (1, *latents))))


def _update(config: Any, shapes: Shapes, mesh: Mesh, starts: Mapping[str, int] = {}) -> None:
    """An optimizer step on this rank's shards, without what it exchanges."""
    size = mesh.shard.size if config.train.zero_stage else 1
    shards = {path: sharding.shard_shape(shape, size) for path, shape in shapes.items()}
    layout = states.Layout(shards, ONE, 0, averaged=bool(config.ema.decay))
    master, ema, *moments = (by_path(shards) for _ in range(4))
    state = states.State(
        layout.model(master), master, ema if layout.averaged else {}, dict(zip("mv", moments, strict=True))
    )
    states.update(state, by_path(shards), 0, config.optim.learning_rate, config, layout, starts)
