"""Training batches of the generator: a pure function of (seed, step), cut the same on any number of ranks."""

import functools
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import flow, streams
from moviegen.data import sources, table
from moviegen.errors import ConfigError
from moviegen.parallel.mesh import ALONE, Group
from moviegen.streams import Stream
from moviegen.text.source import TextSource, open_text


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
    found, text = sources.open_tables(config, Path(workdir), world), open_text(config)
    frames = -(-config.data.num_frames // 8)
    return Data({split: _samples(rows, frames, text) for split, rows in found.rows.items()}, *found.statistics)


def _samples(rows: Sequence[table.Row], frames: int, text: TextSource) -> Samples:
    def latents(index: int, rng: np.random.Generator) -> np.ndarray:
        return table.read_latents(rows[index], 1 if rows[index].image else frames, rng)

    def read_text(indices: Sequence[int], dropped: Sequence[Set[str]]) -> dict:
        pairs = [(rows[i].text, drop) for i, drop in zip(indices, dropped, strict=True)]
        return text.read([{k: text.empty[k] if k in drop else v for k, v in own.items()} for own, drop in pairs])

    return Samples(len(rows), latents, read_text)


def is_image_step(config: Any, step: int) -> bool:
    """Whether this step trains on images: a fraction `data.image_fraction` of the steps, drawn from the seed."""
    if config.data.num_frames == 1:
        return True
    return streams.rng(Stream.IMAGE_STEP, config.seed, step).random() < config.data.image_fraction


def batch(data: Data, config: Any, step: int, positions: range) -> Batch:
    """The samples at these positions in the global batch of step `step`.

    Every epoch is a new order of all samples, drawn from the seed; the position is counted in samples, so it does not
    depend on how many ranks there are. Prompts are dropped as `draw_dropped` says.
    """
    samples = data.samples["image" if is_image_step(config, step) else "video"]
    if not samples.count:
        raise ConfigError("the data has no samples")
    made, indices, dropped = [], [], []
    for position in positions:
        epoch, place = divmod(step * config.train.batch_size + position, samples.count)
        index = int(_order(config.seed, samples.count, epoch)[place])
        rng = streams.rng(Stream.SAMPLE, config.seed, step, position)
        made.append(samples.latents(index, rng))
        indices.append(index)
        dropped.append(draw_dropped(config, rng))
    x = normalize(np.stack(made), data)
    noise, t = flow.draw_batch(config.seed, step, positions, x.shape[1:], config.train.time_logit_mean)
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
        indices = range(stop - size, stop)
        drawn = [samples.latents(i, streams.rng(Stream.VALIDATION_SAMPLE, 0, i)) for i in indices]
        x = normalize(np.stack(drawn), data)
        noise, _ = flow.draw_batch(0, 0, indices, x.shape[1:], stream=Stream.VALIDATION_NOISE)
        text = samples.text(indices, [frozenset()] * size)
        for t in times:
            yield Batch(x, noise, np.full(size, t, np.float32), text)


def normalize(x: np.ndarray, data: Data) -> np.ndarray:
    """Raw latents (b c t h w) to about zero mean and unit variance by the data's statistics."""
    shift, scale = (np.asarray(v, np.float32).reshape(1, -1, 1, 1, 1) for v in (data.shift, data.scale))
    return (x - shift) * scale


@functools.lru_cache(maxsize=4)
def _order(seed: int, count: int, epoch: int) -> np.ndarray:
    return streams.rng(Stream.ORDER, seed, epoch).permutation(count)
