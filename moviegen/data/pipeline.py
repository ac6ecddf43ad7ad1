"""Training batches of the generator: a pure function of (seed, step), cut the same on any number of ranks.

A step is of one bucket. A run that goes on draws on where its checkpoint says it was, counted in samples of each bucket.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import streams
from moviegen.data import sources, table
from moviegen.data.order import Order, Place
from moviegen.data.turns import Turns
from moviegen.errors import ConfigError
from moviegen.models import flow
from moviegen.parallel import buckets
from moviegen.parallel.buckets import Bucket
from moviegen.parallel.mesh import ALONE, Group
from moviegen.storage import files
from moviegen.streams import Stream
from moviegen.text.source import TextSource, open_text

NAMED = 5  # of the rows that a message is about


class Data(NamedTuple):
    """All buckets of the experiment, rows by the names of those that are trained or validated on, text, latent statistics.

    `turns` say of which bucket a step is. Rows to train on are drawn by their `orders`, from `places` on, where step `begun`
    found them.
    """

    buckets: tuple[Bucket, ...]
    rows: dict[str, list[table.Row]]
    heldout: dict[str, list[table.Row]]
    text: TextSource
    shift: list[float]
    scale: list[float]
    autoencoder: str | None  # checksum of the weights that made the latents, where that is known
    turns: Turns
    orders: dict[str, Order]
    begun: int = 0
    places: Mapping[str, Place] = {}


class Batch(NamedTuple):
    """What one training step sees: latents and noise (b c t h w), times (b,), text as the transformer takes it."""

    latents: np.ndarray
    noise: np.ndarray
    t: np.ndarray
    text: dict
    bucket: Bucket


def open_data(config: Any, workdir: str | Path, world: Group = ALONE, unit: int = 1) -> Data:
    """The data that `config.data` names, checked. Raises ConfigError or DataError before any training.

    unit: into how many parts a batch is cut, by ranks and by accumulation. The first rank prints a table of the buckets.
    """
    found, shapes = sources.open_tables(config, Path(workdir), world), buckets.table(config, unit)
    trained = [each for each in shapes if each.weight and found.rows.get(each.name)]
    _check(config, shapes, found.rows, unit)
    rows = {each.name: found.rows[each.name] for each in trained}
    heldout = {each.name: found.heldout[each.name] for each in shapes if found.heldout.get(each.name)}
    turns = Turns(config.seed, config.data.image_fraction, {each: len(rows[each.name]) for each in trained})
    orders = {name: Order(config.seed, [row.video for row in own]) for name, own in rows.items()}
    if world.rank == 0:
        print("\n".join(_told(config, trained, rows, turns)), flush=True)
        if empty := [each.name for each in shapes if each.weight and each not in trained]:
            print(f"buckets without a row, which are left out: {', '.join(empty)}", flush=True)
    return Data(shapes, rows, heldout, open_text(config), *found.statistics, found.autoencoder, turns, orders)


def _check(config: Any, shapes: Sequence[Bucket], rows: Mapping[str, list], unit: int) -> None:
    """ConfigError for a kind of which there is no sample, and for configured buckets whose rows do not fill a batch."""
    for kind in dict.fromkeys(each.kind for each in shapes):
        if not any(each.weight and rows.get(each.name) for each in shapes if each.kind == kind):
            raise ConfigError(
                f"data.image_fraction is {config.data.image_fraction}, but there are no {kind}s to train on: no bucket of "
                f"{kind}s has rows and a weight above 0"
            )
    if not buckets.configured(config):
        return
    short = [each for each in shapes if each.weight and 0 < len(rows.get(each.name, ())) < each.batch_size]
    wrong, smaller, without = [], [], []
    for each in short:
        count = len(rows[each.name])
        wrong.append(f"{each.name} has {count} rows, a batch of it {each.batch_size}")
        (smaller if count >= unit else without).append(f"{each.name}={count // unit * unit}")
    if wrong:
        settings, mends = config.data.buckets, []
        for key, texts in (("batch_sizes", smaller), ("weights", without)):
            mends += [f"data.buckets.{key}={(*texts, *settings[key])!r}"] if texts else []
        none = tuple(f"{each.name}=0" for each in short)
        other = f", or data.buckets.weights={(*none, *settings.weights)!r} to leave their rows out" if smaller else ""
        raise ConfigError(f"buckets that cannot fill one batch: {'; '.join(wrong)}: set {' and '.join(mends)}{other}")


def _told(config: Any, trained: Sequence[Bucket], rows: Mapping[str, list], turns: Turns) -> Iterator[str]:
    """A table of the buckets that are trained on, in lines."""
    heads = ("bucket", "rows", "batch", "weight", "tokens of a sample", "steps an epoch", "of the steps")
    yield "  ".join((heads[0].ljust(14), *heads[1:]))
    for each in trained:
        count, epoch = len(rows[each.name]), math.ceil(len(rows[each.name]) / each.batch_size)
        share = f"{100 * turns.shares[each.name]:.1f}%"
        cells = (count, each.batch_size, f"{each.weight:g}", buckets.tokens(each, config), epoch, share)
        yield "  ".join((each.name.ljust(14), *(str(c).rjust(len(h)) for c, h in zip(cells, heads[1:], strict=True))))


def bucket_of(data: Data, step: int) -> Bucket:
    """The bucket that this step trains on, the same on all ranks."""
    return data.turns.at(step)


def batch(data: Data, config: Any, step: int, positions: range) -> Batch:
    """The samples at these positions in the global batch of step `step`."""
    chosen, bucket = drawn(data, step, positions), bucket_of(data, step)
    rngs = [streams.rng(Stream.SAMPLE, config.seed, step, position) for position in positions]
    x, text = _latents(data, bucket, chosen, rngs), []
    for row, rng in zip(chosen, rngs, strict=True):
        dropped = draw_dropped(config, rng)
        text.append({name: data.text.empty[name] if name in dropped else own for name, own in row.text.items()})
    noise, t = flow.draw_batch(config.seed, step, positions, x.shape[1:], config.train.time_logit_mean)
    return Batch(x, noise, t, data.text.read(text), bucket)


def drawn(data: Data, step: int, positions: Sequence[int]) -> list[table.Row]:
    """The rows at these positions in the global batch of step `step`.

    Every epoch is a new order of all rows of a bucket; places in it are counted in samples, so they do not depend on the
    ranks, and steps of other buckets do not move them.
    """
    bucket = bucket_of(data, step)
    rows, order, first = data.rows[bucket.name], data.orders[bucket.name], _place(data, bucket, step)
    return [rows[order.row(order.after(first, position))] for position in positions]


def position(data: Data, step: int) -> dict[str, dict]:
    """Where in the rows of each bucket a run is before step `step`, as JSON holds it."""
    trained = (each for each in data.buckets if each.name in data.rows)
    return {each.name: data.orders[each.name].note(_place(data, each, step)) for each in trained}


def resumed(data: Data, step: int, noted: Mapping[str, dict]) -> Data:
    """The data as a run draws on from it at `step`, where it noted this `position`."""
    found = {name: place for name, place in _by_bucket(data, noted).items() if name in data.rows}
    return data._replace(begun=step, places={name: data.orders[name].find(place) for name, place in found.items()})


def taken_over(data: Data, noted: Mapping[str, dict]) -> Data:
    """The data as the stage after one that noted this `position` draws from it: on in buckets of the very same rows."""
    places = {}
    for name, order in data.orders.items():
        for found in noted.values():
            place = Place(found["epoch"], found["index"])
            if found["table"] == order.digest() and order.note(place) == found:  # of the same seed too
                places[name] = place
    return data._replace(places=places)


def changes(data: Data, noted: Mapping[str, dict], names: Path) -> list[str]:
    """A line for each bucket whose rows are no longer those of a `position`; `names` was left by `note_names` then."""
    before, lines, noted = {}, [], _by_bucket(data, noted)
    with contextlib.suppress(OSError, ValueError):
        before = _by_bucket(data, json.loads(names.read_text(encoding="utf-8")))
    for name, found in noted.items():
        now = [row.video for row in data.rows.get(name, ())]
        if found["table"] == data.orders[name].digest() if now else not (found["epoch"] or found["index"]):
            continue
        kind = next((each.kind for each in data.buckets if each.name == name), "")
        alone = sum(each.kind == kind for each in data.buckets) == 1
        line = (
            f"the {f'{kind}s' if alone else f'samples of {name}'} to train on are others than those of the checkpoint: "
        )
        line += f"{found['rows']} then, {len(now)} now"
        then = before.get(name, now)
        for what, more in (("new", set(now) - set(then)), ("gone", set(then) - set(now))):
            line += f"; {len(more)} {what}: {', '.join(sorted(more)[:NAMED])}" if more else ""
        lines.append(f"{line}; the epoch goes on, the others keep their order" if now else line)
    new = [name for name in data.rows if name not in noted]
    return lines + (
        [f"an epoch begins in buckets that the checkpoint has not drawn from: {', '.join(new)}"] if new else []
    )


def _by_bucket(data: Data, noted: Mapping[str, Any]) -> dict[str, Any]:
    """What was noted by bucket; before there were buckets, by the kind of the one that there was."""
    own = {kind: [each.name for each in data.buckets if each.kind == kind] for kind in ("video", "image")}
    return {own[key][0] if len(own.get(key, ())) == 1 else key: found for key, found in noted.items()}


def note_names(data: Data, file: Path) -> None:
    """Writes the names of the rows to train on, so that `changes` can say which are new."""
    names = {name: [row.video for row in rows] for name, rows in data.rows.items()}
    files.write_text(json.dumps(names), file)


def draw_dropped(config: Any, rng: np.random.Generator) -> frozenset[str]:
    """The encoders of a sample that see the empty prompt: all (`data.text_drop_prob`), or some (`data.text_drop_each`)."""
    encoders = sorted(config.model.text_dims)
    if rng.random() < config.data.text_drop_prob:
        return frozenset(encoders)
    each = config.data.get("text_drop_each", {})
    return frozenset(name for name in encoders if rng.random() < each.get(name, 0.0))


def heldout_batches(
    data: Data, times: Sequence[float], accumulate: int = 1, piece: Group = ALONE
) -> Iterator[tuple[Batch, int]]:
    """Validation batches of this piece of the ranks: held-out samples at every time, the noise the same every time.

    One bucket follows the other. Every sample counts once: of a batch as many as the number beside it, the first. All
    batches of a bucket are as large as those that are trained on, in `accumulate` parts, for which the graphs are compiled,
    and all pieces have equally many, filled up with the last sample, since ranks compute together.
    """
    for bucket in data.buckets:
        rows, size = data.heldout.get(bucket.name, ()), bucket.batch_size // (piece.size * accumulate)
        for start in range(piece.rank * size, len(rows) + piece.rank * size, size * piece.size):
            indices = [min(i, len(rows) - 1) for i in range(start, start + size)]
            counted = min(size, max(0, len(rows) - start))
            chosen = [rows[i] for i in indices]
            x = _latents(data, bucket, chosen, [streams.rng(Stream.VALIDATION_SAMPLE, 0, i) for i in indices])
            noise, _ = flow.draw_batch(0, 0, indices, x.shape[1:], stream=Stream.VALIDATION_NOISE)
            text = data.text.read([row.text for row in chosen])
            for t in times:
                yield Batch(x, noise, np.full(size, t, np.float32), text, bucket), counted


def _latents(data: Data, bucket: Bucket, rows: Sequence[table.Row], rngs: Sequence[np.random.Generator]) -> np.ndarray:
    """Draws (b c t h w) of the rows' latents, of about zero mean and unit variance by the data's statistics."""
    drawn = np.stack([table.read_latents(row, bucket.latents[0], rng) for row, rng in zip(rows, rngs, strict=True)])
    shift, scale = (np.asarray(v, np.float32).reshape(1, -1, 1, 1, 1) for v in (data.shift, data.scale))
    return (drawn - shift) * scale


def _place(data: Data, bucket: Bucket, step: int) -> Place:
    samples = data.turns.steps(bucket, data.begun, step) * bucket.batch_size
    return data.orders[bucket.name].after(data.places.get(bucket.name, Place()), samples)
