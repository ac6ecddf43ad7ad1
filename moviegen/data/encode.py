"""Videos and images into the latent cache, those of one shape together."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.data import files, latent_cache, video
from moviegen.errors import DataError
from moviegen.models.tae import model as tae, tiles as tae_tiles, weights as tae_weights
from moviegen.parallel import sync
from moviegen.parallel.mesh import Group
from moviegen.storage import fingerprint
from moviegen.storage.files import read_json, write_json
from moviegen.storage.writers import Progress

NEW, REPLACED = "are new", "are no longer those that were encoded"
RESHAPED = "have another shape or rate by data.buckets than their latents"
BATCH, BATCH_PIXELS = 8, 1 << 19  # encoded at once: so many of one shape, fewer where they are large


class Item(NamedTuple):
    """One row of a table: its name in the cache, its kind or split, its frames uint8 (t h w c) on demand.

    The frames of a long film come in pieces, of `video.PIECE` but for the last.
    """

    name: str
    kind: str
    frames: Callable[[], np.ndarray | Iterable[np.ndarray]]
    caption: str = ""  # of an embedded set's row
    line: int = 0  # of a csv's row
    file: files.File | None = None  # that the frames are of
    bucket: tuple[str, float] | None = None  # where there are several: its bucket's name, the rate at which it is shown


def encode(
    items: Sequence[Item],
    config: Any,
    folder: Path,
    of: str,
    identity: Mapping | None = None,
    rank: int = 0,
    rates: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Writes the posteriors of `items`, this rank's share, to the cache `folder`, and its statistics.

    What is in the cache is kept, but for items whose file or bucket has changed. More bad items of the source `of` than
    `data.max_bad_fraction` of a rank's raise a DataError, a cache of something else a ConfigError; `identity` is what the
    items depend on besides names and config; `rates`: frames a second, by name, of those whose frames were read. Returns
    how many were encoded, kept, bad.
    """
    tae.compute_dtype(config.tae)  # checked before a cache is begun
    store = latent_cache.ShardWriter(folder, config.data.get("latent_dtype", "float32"), rank)
    weights = tae_weights.configured(config)
    latent_cache.check_or_write(folder, latent_cache.fingerprint(config, weights) | (identity or {}))
    cached = latent_cache.open_cache(folder)
    why = {item.name: _lacks(cached, item) for item in items}
    missing = [item for item in items if why[item.name]]
    for reason in (REPLACED, RESHAPED):
        if again := [name for name, found in why.items() if found == reason]:
            named = f"{', '.join(again[:5])}{', ...' if len(again) > 5 else ''}"
            print(f"{of}: {len(again)} files {reason}, and are encoded again: {named}", flush=True)
    bad = files.Bad(len(items), config.data.max_bad_fraction, of)
    kept, encoded = len(items) - len(missing), 0
    noted: dict[str, list | None] = {}

    def read(item: Item) -> np.ndarray | Iterator[np.ndarray]:
        path = item.file.path if item.file else Path()
        noted[item.name] = fingerprint.of_file(path) if path.is_file() else None
        return _read(item)

    if missing:
        params = tae_weights.load_to_compute(weights, config.tae)
        progress = Progress("encode_video", len(items), rank)
        try:
            for batch, clips in _batches(files.each(missing, bad, read)):
                try:
                    shape, mean, logvar = _posterior(params, config.tae, clips)
                except DataError as error:  # of a film whose first pieces are good
                    bad.add(batch[0], error)
                    continue
                for item, *posterior in zip(batch, mean, np.exp(0.5 * logvar), strict=False):
                    try:
                        latent_cache.check_finite(item.name, *posterior)
                    except DataError as error:
                        bad.add(item, error)
                        continue
                    rate = item.bucket[1] if item.bucket else (rates or {}).get(item.name, 0.0)
                    store.add(item.name, *posterior, item.kind, noted.pop(item.name), rate, shape)
                    encoded += 1
                progress.update(kept + encoded + len(bad.reasons), encoded=encoded, bad=len(bad.reasons))
        finally:
            store.flush()
    latent_cache.note_statistics(folder)
    return {"encoded": encoded, "kept": kept, "bad": len(bad.reasons)}


def _posterior(
    params: Mapping, cfg: Any, clips: np.ndarray | Iterator[np.ndarray]
) -> tuple[tuple[int, int, int], np.ndarray, np.ndarray]:
    """Frames, height and width, posterior mean and logvar of float32 (b c t h w), or of a film's pieces uint8 (t h w c)."""
    if isinstance(clips, np.ndarray):
        return clips.shape[2:], *tae_tiles.encode(params, cfg, clips)
    frames, found = 0, []
    for piece in clips:
        frames += len(piece)
        found.append(tae_tiles.encode(params, cfg, video.to_model(piece)[None]))
    mean, logvar = (np.concatenate(parts, 2) for parts in zip(*found, strict=True))
    return (frames, *piece.shape[1:3]), mean, logvar


def _read(item: Item) -> np.ndarray | Iterator[np.ndarray]:
    """The frames of a clip that is small enough to be encoded with others, or the pieces of a larger one, not yet read."""
    pieces, head, pixels = _checked(item), [], 0
    for piece in pieces:
        head.append(piece)
        pixels += piece.size // 3
        if pixels > BATCH_PIXELS // 2:
            return itertools.chain(head, pieces)
    return np.concatenate(head)


def _checked(item: Item) -> Iterator[np.ndarray]:
    """The pieces of a film. DataError at its end if all was of one colour."""
    frames = item.frames()
    colour, flat = None, True
    for piece in [frames] if isinstance(frames, np.ndarray) else frames:
        colour = piece[0, 0, 0] if colour is None else colour
        flat = flat and bool((piece == colour).all())
        yield piece
    if flat:
        raise DataError(
            f"{item.file.path if item.file else item.name}: all pixels have the one colour {colour.tolist()}"
        )


def total(found: dict[str, float], folder: Path, world: Group) -> dict[str, float]:
    """The sums of the numbers that all ranks `found`, on the first rank, through files of `folder`."""
    if world.size == 1:
        return found
    left = [folder / f"encode_video_{rank}.json" for rank in range(world.size)]
    write_json(found, left[world.rank])
    sync.wait(world)  # one rank may need an hour more than another
    if world.rank:
        return found
    counts = [read_json(path) for path in left]
    for path in left:
        path.unlink()
    return {key: sum(each.get(key, 0) for each in counts) for key in dict.fromkeys(itertools.chain(*counts))}


def _lacks(cached: latent_cache.Cache, item: Item) -> str | None:
    """Why an item is to be encoded; None: its latents are in the cache."""
    try:
        cached.check_name(item.name, item.file.outside if item.file else False)
        stored = cached.find(item.name)
        path = item.file.path if item.file else Path()
    except DataError:  # it is told when the item is read
        return NEW
    if not stored.is_file():
        return NEW
    if stored.file and path.is_file() and not fingerprint.is_same(path, stored.file):
        return REPLACED
    return RESHAPED if item.bucket and item.bucket != (stored.bucket, stored.fps) else None


def _batches(
    read: Iterable[tuple[Item, np.ndarray | Iterator[np.ndarray]]],
) -> Iterator[tuple[list[Item], np.ndarray | Iterator[np.ndarray]]]:
    """Items of one shape with their clips, float32 (b c t h w); a film that comes in pieces by itself.

    The last batch of a shape is filled up with copies of a clip: another batch size would be another graph to compile.
    When too many items are bad, those that were read before are given out first.
    """
    waiting: dict[tuple[int, ...], list[tuple[Item, np.ndarray]]] = {}
    refused = None
    try:
        for item, frames in read:
            if not isinstance(frames, np.ndarray):
                yield [item], frames
                continue
            group = waiting.setdefault(frames.shape, [])
            group.append((item, frames))
            if len(group) == _batch_size(frames):
                yield _stacked(waiting.pop(frames.shape))
    except DataError as error:
        refused = error
    for group in waiting.values():
        yield _stacked(group)
    if refused:
        raise refused


def _batch_size(frames: np.ndarray) -> int:
    return min(BATCH, max(1, BATCH_PIXELS // (frames.size // 3)))


def _stacked(group: list[tuple[Item, np.ndarray]]) -> tuple[list[Item], np.ndarray]:
    clips = [video.to_model(frames) for _, frames in group]
    clips += clips[-1:] * (_batch_size(group[0][1]) - len(clips))
    return [item for item, _ in group], np.stack(clips)
