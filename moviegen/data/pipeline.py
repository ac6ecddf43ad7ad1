"""Training batches of the generator: a pure function of (seed, step), cut the same on any number of ranks.

A run that goes on draws on where its checkpoint says it was: images and videos are counted by themselves, in samples.
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import streams
from moviegen.data import sources, table
from moviegen.data.order import Order, Place
from moviegen.errors import ConfigError
from moviegen.models import flow
from moviegen.parallel.mesh import ALONE, Group
from moviegen.storage import files
from moviegen.streams import Stream
from moviegen.text.source import TextSource, open_text

KINDS = ("video", "image")
NAMED = 5  # of the rows that a message is about


class Data(NamedTuple):
    """Rows by split: "video" and "image" to train on, "heldout" (may be missing) to validate; text, latent statistics.

    The first two are drawn by their `orders`, from `places` on, where step `begun` found them.
    """

    rows: dict[str, list[table.Row]]
    text: TextSource
    frames: int  # latent frames of a video
    shift: list[float]
    scale: list[float]
    autoencoder: str | None  # checksum of the weights that made the latents, where that is known
    orders: dict[str, Order]
    begun: int = 0
    places: dict[str, Place] = {kind: Place() for kind in KINDS}


class Batch(NamedTuple):
    """What one training step sees: latents and noise (b c t h w), times (b,), text as the transformer takes it."""

    latents: np.ndarray
    noise: np.ndarray
    t: np.ndarray
    text: dict


def open_data(config: Any, workdir: str | Path, world: Group = ALONE) -> Data:
    """The data that `config.data` names, checked. Raises ConfigError or DataError before any training."""
    found = sources.open_tables(config, Path(workdir), world)
    orders = {kind: Order(config.seed, [row.video for row in found.rows.get(kind, ())]) for kind in KINDS}
    frames = -(-config.data.num_frames // 8)
    return Data(found.rows, open_text(config), frames, *found.statistics, found.autoencoder, orders)


def is_image_step(config: Any, step: int) -> bool:
    """Whether this step trains on images: a fraction `data.image_fraction` of the steps, drawn from the seed."""
    data = config.data
    return data.num_frames == 1 or streams.rng(Stream.IMAGE_STEP, config.seed, step).random() < data.image_fraction


def batch(data: Data, config: Any, step: int, positions: range) -> Batch:
    """The samples at these positions in the global batch of step `step`."""
    chosen = drawn(data, config, step, positions)
    rngs = [streams.rng(Stream.SAMPLE, config.seed, step, position) for position in positions]
    x, text = _latents(data, chosen, rngs), []
    for row, rng in zip(chosen, rngs, strict=True):
        dropped = draw_dropped(config, rng)
        text.append({name: data.text.empty[name] if name in dropped else own for name, own in row.text.items()})
    noise, t = flow.draw_batch(config.seed, step, positions, x.shape[1:], config.train.time_logit_mean)
    return Batch(x, noise, t, data.text.read(text))


def drawn(data: Data, config: Any, step: int, positions: Sequence[int]) -> list[table.Row]:
    """The rows at these positions in the global batch of step `step`.

    Every epoch is a new order of all rows of a kind; places in it are counted in samples, so they do not depend on the
    ranks, and steps of the other kind do not move them.
    """
    kind = "image" if is_image_step(config, step) else "video"
    rows, order = data.rows[kind], data.orders[kind]
    if not rows:
        raise ConfigError("the data has no samples")
    first = _place(data, config, kind, step)
    return [rows[order.row(order.after(first, position))] for position in positions]


def position(data: Data, config: Any, step: int) -> dict[str, dict]:
    """Where in its rows of each kind a run is before step `step`, as JSON holds it."""
    return {kind: data.orders[kind].note(_place(data, config, kind, step)) for kind in KINDS if data.rows.get(kind)}


def resumed(data: Data, step: int, noted: Mapping[str, dict]) -> Data:
    """The data as a run draws on from it at `step`, where it noted this `position`."""
    places = {kind: data.orders[kind].find(found) for kind, found in noted.items() if data.rows.get(kind)}
    return data._replace(begun=step, places=data.places | places)


def changes(data: Data, noted: Mapping[str, dict], names: Path) -> list[str]:
    """A line for each kind of rows that are no longer those of a `position`; `names` was left by `note_names` then."""
    before, lines = {}, []
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(names.read_text(encoding="utf-8"))
    for kind, found in noted.items():
        now = [row.video for row in data.rows.get(kind, ())]
        if now and found["table"] == data.orders[kind].digest():
            continue
        line = f"the {kind}s to train on are others than those of the checkpoint: {found['rows']} then, {len(now)} now"
        then = before.get(kind, now)
        for what, more in (("new", set(now) - set(then)), ("gone", set(then) - set(now))):
            line += f"; {len(more)} {what}: {', '.join(sorted(more)[:NAMED])}" if more else ""
        lines.append(f"{line}; the epoch goes on, the others keep their order")
    return lines


def note_names(data: Data, file: Path) -> None:
    """Writes the names of the rows to train on, so that `changes` can say which are new."""
    names = {kind: [row.video for row in data.rows.get(kind, ())] for kind in KINDS}
    files.write_text(json.dumps(names), file)


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


def _place(data: Data, config: Any, kind: str, step: int) -> Place:
    images = _image_steps(config, data.begun, step)
    steps = images if kind == "image" else step - data.begun - images
    return data.orders[kind].after(data.places[kind], steps * config.train.batch_size)


def _image_steps(config: Any, begun: int, step: int) -> int:
    """How many steps from `begun` on and before `step` train on images."""
    counts = _counts(config.seed, config.data.num_frames, config.data.image_fraction, begun)
    while len(counts) <= step - begun:
        counts.append(counts[-1] + is_image_step(config, begun + len(counts) - 1))
    return counts[step - begun]


@functools.lru_cache(maxsize=4)
def _counts(*of: Any) -> list[int]:
    """What `_image_steps` has counted so far, of a run with these settings: every step is looked at once."""
    return [0]
