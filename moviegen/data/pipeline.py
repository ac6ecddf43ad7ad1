"""Training batches of the generator: a pure function of (seed, step), cut the same on any number of ranks."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import flow, streams
from moviegen.data import sources, table
from moviegen.errors import ConfigError
from moviegen.parallel.mesh import ALONE, Group
from moviegen.streams import Stream
from moviegen.text.source import TextSource, open_text


class Data(NamedTuple):
    """Rows by split: "video" and "image" to train on, "heldout" (may be missing) to validate; text, latent statistics."""

    rows: dict[str, list[table.Row]]
    text: TextSource
    frames: int  # latent frames of a video
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
    found = sources.open_tables(config, Path(workdir), world)
    return Data(found.rows, open_text(config), -(-config.data.num_frames // 8), *found.statistics)


def is_image_step(config: Any, step: int) -> bool:
    """Whether this step trains on images: a fraction `data.image_fraction` of the steps, drawn from the seed."""
    data = config.data
    return data.num_frames == 1 or streams.rng(Stream.IMAGE_STEP, config.seed, step).random() < data.image_fraction


def batch(data: Data, config: Any, step: int, positions: range) -> Batch:
    """The samples at these positions in the global batch of step `step`.

    Every epoch is a new order of all samples; places in it are counted in samples, so they do not depend on the ranks.
    """
    rows = data.rows["image" if is_image_step(config, step) else "video"]
    if not rows:
        raise ConfigError("the data has no samples")
    chosen = []
    for position in positions:
        epoch, place = divmod(step * config.train.batch_size + position, len(rows))
        chosen.append(rows[_order(config.seed, len(rows), epoch)[place]])
    rngs = [streams.rng(Stream.SAMPLE, config.seed, step, position) for position in positions]
    x, text = _latents(data, chosen, rngs), []
    for row, rng in zip(chosen, rngs, strict=True):
        dropped = draw_dropped(config, rng)
        text.append({name: data.text.empty[name] if name in dropped else own for name, own in row.text.items()})
    noise, t = flow.draw_batch(config.seed, step, positions, x.shape[1:], config.train.time_logit_mean)
    return Batch(x, noise, t, data.text.read(text))


def draw_dropped(config: Any, rng: np.random.Generator) -> frozenset[str]:
    """The encoders of a sample that see the empty prompt: all (`data.text_drop_prob`), or some (`data.text_drop_each`)."""
    encoders = sorted(config.model.text_dims)
    if rng.random() < config.data.text_drop_prob:
        return frozenset(encoders)
    each = config.data.get("text_drop_each", {})
    return frozenset(name for name in encoders if rng.random() < each.get(name, 0.0))


def heldout_batches(data: Data, times: Sequence[float], size: int, piece: Group = ALONE) -> Iterator[tuple[Batch, int]]:
    """Validation batches of this piece of the ranks: held-out samples at every time, the noise the same every time.

    Every sample counts once: of a batch as many as the number beside it, the first. All batches have the size for which
    the graphs are compiled and all pieces equally many, filled up with the last sample, since ranks compute together.
    """
    rows = data.rows["heldout"]
    for start in range(piece.rank * size, len(rows) + piece.rank * size, size * piece.size):
        indices = [min(i, len(rows) - 1) for i in range(start, start + size)]
        counted = min(size, max(0, len(rows) - start))
        chosen = [rows[i] for i in indices]
        x = _latents(data, chosen, [streams.rng(Stream.VALIDATION_SAMPLE, 0, i) for i in indices])
        noise, _ = flow.draw_batch(0, 0, indices, x.shape[1:], stream=Stream.VALIDATION_NOISE)
        text = data.text.read([row.text for row in chosen])
        for t in times:
            yield Batch(x, noise, np.full(size, t, np.float32), text), counted


def _latents(data: Data, rows: Sequence[table.Row], rngs: Sequence[np.random.Generator]) -> np.ndarray:
    """Draws (b c t h w) of the rows' latents, of about zero mean and unit variance by the data's statistics."""
    frames = [1 if row.image else data.frames for row in rows]
    drawn = np.stack([table.read_latents(*each) for each in zip(rows, frames, rngs, strict=True)])
    shift, scale = (np.asarray(v, np.float32).reshape(1, -1, 1, 1, 1) for v in (data.shift, data.scale))
    return (drawn - shift) * scale


@functools.lru_cache(maxsize=4)
def _order(seed: int, count: int, epoch: int) -> np.ndarray:
    return streams.rng(Stream.ORDER, seed, epoch).permutation(count)
