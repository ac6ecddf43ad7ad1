"""Training batches of the generator: a pure function of (seed, step), cut the same on any number of ranks."""

import functools
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import flow, streams
from moviegen.data import latent_cache, latents, table
from moviegen.errors import ConfigError
from moviegen.models.text import toy as toy_text
from moviegen.parallel.mesh import ALONE, Group
from moviegen.streams import Stream
from moviegen.text import batch as text_batch


class Samples(NamedTuple):
    """Samples by index: raw latents (c t h w), given a generator for what is drawn, and text.

    `text(indices, dropped)` takes of each sample the encoders that get the empty prompt in place of its own.
    """

    count: int
    latents: Callable[[int, np.random.Generator], np.ndarray]
    text: Callable[[Sequence[int], Sequence[Set[str]]], dict]


class Data(NamedTuple):
    """Sources of a run: "video" and "image" to train on, "heldout" (may be missing) to validate; latent statistics."""

    samples: dict[str, Samples]
    shift: list[float]
    scale: list[float]


class Batch(NamedTuple):
    """What one training step sees: latents and noise (b c t h w), times (b,), text as the transformer takes it."""

    latents: np.ndarray
    noise: np.ndarray
    t: np.ndarray
    text: dict


def open_data(config: Any, workdir: str | Path, world: Group = ALONE) -> Data:
    """The data that `config.data` names, checked. Raises ConfigError or DataError before any training."""
    if config.data.source == "csv":
        samples = _from_csv(config, Path(workdir) / "ranks", world)
        channels = config.tae.latent_channels
        shift, scale = (
            np.broadcast_to(v, channels).tolist() for v in (config.tae.latent_shift, config.tae.latent_scale)
        )
        # Statistics of the set itself, where the cache has them, instead of SD3.5's.
        return Data(samples, *(latent_cache.open_cache(config.data.latent_folder).statistics() or (shift, scale)))
    cached = latents.prepare(config, workdir, world)
    samples = {name: _embedded(cached, name, config) for name in cached.latents}
    images = samples.pop("heldout_image", None)
    if images is not None and config.data.image_fraction == 1:
        samples["heldout"] = images
    return Data(samples, cached.shift, cached.scale)


def _embedded(cached: latents.LatentSet, split: str, config: Any) -> Samples:
    arrays, captions = cached.latents[split], cached.captions[split]

    def text(indices, dropped):
        found = {}
        for name, width in config.model.text_dims.items():
            prompts = ["" if name in drop else captions[i] for i, drop in zip(indices, dropped, strict=True)]
            found |= toy_text.encode(prompts, {name: width})
        return found

    return Samples(len(arrays), lambda i, rng: arrays[i], text)


def _from_csv(config: Any, shared: Path, world: Group) -> dict[str, Samples]:
    """Images of the table train in image steps, videos in the others; at num_frames 1 every row counts as an image."""
    data, empty = config.data, table.empty_text(config.data)
    frames = -(-data.num_frames // 8)
    rows = table.read_once(config, data.csv, shared / "train.csv", world)
    images = [row for row in rows if row.image or data.num_frames == 1]
    videos = [row for row in rows if not row.image]
    for kind, found, share in (("image", images, data.image_fraction), ("video", videos, 1 - data.image_fraction)):
        if share and not found and data.num_frames > 1:
            raise ConfigError(
                f"data.image_fraction is {data.image_fraction}, but {data.csv} has no usable {kind}: "
                f"set it to {0.0 if kind == 'image' else 1.0} or add {kind}s"
            )
    samples = {"image": _from_table(images, 1, empty), "video": _from_table(videos, frames, empty)}
    if data.validation_csv:
        heldout = table.read_once(config, data.validation_csv, shared / "validation.csv", world)
        heldout = [row for row in heldout if data.num_frames == 1 or not row.image]
        if not heldout:
            raise ConfigError(f"data.validation_csv is {data.validation_csv!r}, which has no usable video: add some")
        samples["heldout"] = _from_table(heldout, frames, empty)
    return samples


def _from_table(rows: list[table.Row], frames: int, empty: dict[str, Any]) -> Samples:
    def text(indices, dropped):
        return text_batch.read_text(
            [
                {name: empty[name] if name in drop else file for name, file in rows[i].text.items()}
                for i, drop in zip(indices, dropped, strict=True)
            ]
        )

    return Samples(len(rows), lambda i, rng: table.read_latents(rows[i], frames, rng), text)


def is_image_step(config: Any, step: int) -> bool:
    """Whether this step trains on images: a share `data.image_fraction` of the steps, drawn from the seed."""
    if config.data.num_frames == 1:
        return True
    return streams.rng(Stream.IMAGE_STEP, config.seed, step).random() < config.data.image_fraction


def batch(data: Data, config: Any, step: int, part: range) -> Batch:
    """The samples `part` (positions in the global batch) of step `step`.

    Every epoch is a new order of all samples, drawn from the seed; the position is counted in samples, so it does not
    depend on how many ranks there are. Prompts are dropped as `draw_dropped` says.
    """
    samples = data.samples["image" if is_image_step(config, step) else "video"]
    made, indices, dropped = [], [], []
    for position in part:
        index = _index(config.seed, samples.count, step * config.train.batch_size + position)
        rng = streams.rng(Stream.SAMPLE, config.seed, step, position)
        made.append(samples.latents(index, rng))
        indices.append(index)
        dropped.append(draw_dropped(config, rng))
    x = normalize(np.stack(made), data)
    noise, t = flow.draw_batch(config.seed, step, part, x.shape[1:], config.train.time_logit_mean)
    return Batch(x, noise, t, samples.text(indices, dropped))


def draw_dropped(config: Any, rng: np.random.Generator) -> frozenset[str]:
    """The encoders of one sample that see the empty prompt, for guidance.

    All with probability `data.text_drop_prob`; else each by itself with that of `data.text_drop_each`.
    """
    encoders = sorted(config.model.text_dims)
    if rng.random() < config.data.text_drop_prob:
        return frozenset(encoders)
    each = config.data.get("text_drop_each", {})
    return frozenset(name for name in encoders if rng.random() < each.get(name, 0.0))


def heldout_batches(data: Data, config: Any, times: Sequence[float], size: int):
    """Validation batches: every held-out sample at every time, with noise that is the same in every validation.

    All batches have one size, for which the graphs are compiled: where it does not divide the number of samples, the
    last batch takes some a second time.
    """
    samples = data.samples["heldout"]
    for start in range(0, samples.count, size):
        stop = min(start + size, samples.count)
        part = range(stop - size, stop)
        x = normalize(np.stack([samples.latents(i, streams.rng(Stream.VALIDATION_SAMPLE, 0, i)) for i in part]), data)
        noise, _ = flow.draw_batch(0, 0, part, x.shape[1:], stream=Stream.VALIDATION_NOISE)
        text = samples.text(list(part), [frozenset()] * size)
        for t in times:
            yield Batch(x, noise, np.full(size, t, np.float32), text)


def normalize(x: np.ndarray, data: Data) -> np.ndarray:
    """Raw latents (b c t h w) to about zero mean and unit variance by the data's statistics."""
    shift, scale = (np.asarray(v, np.float32).reshape(1, -1, 1, 1, 1) for v in (data.shift, data.scale))
    return (x - shift) * scale


def _index(seed: int, count: int, position: int) -> int:
    if not count:
        raise ConfigError("the data has no samples")
    epoch, place = divmod(position, count)
    return int(_order(seed, count, epoch)[place])


@functools.lru_cache(maxsize=4)
def _order(seed: int, count: int, epoch: int) -> np.ndarray:
    return streams.rng(Stream.ORDER, seed, epoch).permutation(count)
