"""Videos and images into the latent cache, those of one shape together."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.data import files, latent_cache, video
from moviegen.errors import DataError
from moviegen.models.tae import model as tae, tiles as tae_tiles, weights as tae_weights
from moviegen.parallel import sync
from moviegen.parallel.mesh import ALONE, Group
from moviegen.storage import fingerprint
from moviegen.storage.files import read_json, write_json
from moviegen.storage.writers import Progress

BATCH, BATCH_PIXELS = 8, 1 << 19  # encoded at once: so many of one shape, fewer where they are large


class Item(NamedTuple):
    """One row of a table: its name in the cache, its kind or split, its frames uint8 (t h w c) on demand."""

    name: str
    kind: str
    frames: Callable[[], np.ndarray]
    caption: str = ""  # of an embedded set's row
    line: int = 0  # of a csv's row
    file: files.File | None = None  # that the frames are of


def encode(
    items: Sequence[Item],
    config: Any,
    folder: Path,
    of: str,
    identity: Mapping | None = None,
    world: Group = ALONE,
    rates: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Writes the posteriors of this rank's share of `items` to the cache `folder`, and its statistics.

    What is in the cache is kept, but for items whose file has changed. More bad items of the source `of` than
    `data.max_bad_fraction` of a rank's raise a DataError, a cache of something else a ConfigError; `identity` is what the
    items depend on besides names and config; `rates`: frames a second, by name, of those whose frames were read. Returns
    how many were encoded, kept, bad.
    """
    tae.compute_dtype(config.tae)  # checked before a cache is begun
    store = latent_cache.ShardWriter(folder, config.data.get("latent_dtype", "float32"), world.rank)
    weights = tae_weights.configured(config)
    latent_cache.check_or_write(folder, latent_cache.fingerprint(config, weights) | (identity or {}))
    own, cached = items[world.rank :: world.size], latent_cache.open_cache(folder)
    missing = [item for item in own if not _is_there(cached, item)]
    if changed := [item.name for item in missing if item.name in cached.shards]:
        print(
            f"{of}: {len(changed)} files are no longer those that were encoded, and are encoded again: "
            f"{', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}",
            flush=True,
        )
    bad = files.Bad(len(own), config.data.max_bad_fraction, of)
    kept, encoded = len(own) - len(missing), 0
    noted: dict[str, list | None] = {}

    def read(item: Item) -> np.ndarray:
        path = item.file.path if item.file else Path()
        noted[item.name] = fingerprint.of_file(path) if path.is_file() else None
        frames = item.frames()
        if all((frame == frames[0, 0, 0]).all() for frame in frames):
            raise DataError(
                f"{path if item.file else item.name}: all pixels have the one colour {frames[0, 0, 0].tolist()}"
            )
        return frames

    if missing:
        params = tae_weights.load_to_compute(weights, config.tae)
        progress = Progress("encode_video", len(own), world.rank)
        try:
            for batch, clips in _batches(files.each(missing, bad, read)):
                mean, logvar = tae_tiles.encode(params, config.tae, clips)
                for item, *posterior in zip(batch, mean, np.exp(0.5 * logvar), strict=False):
                    try:
                        latent_cache.check_finite(item.name, *posterior)
                    except DataError as error:
                        bad.add(item, error)
                        continue
                    rate = (rates or {}).get(item.name, 0.0)
                    store.add(item.name, *posterior, item.kind, noted.pop(item.name), rate)
                    encoded += 1
                progress.update(kept + encoded + len(bad.reasons), encoded=encoded, bad=len(bad.reasons))
        finally:
            store.flush()
    latent_cache.note_statistics(folder)
    return {"encoded": encoded, "kept": kept, "bad": len(bad.reasons)}


def total(found: dict[str, int], folder: Path, world: Group) -> dict[str, int]:
    """The sum of what all ranks `found`, on the first rank, through files of `folder`."""
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
    return {key: sum(each[key] for each in counts) for key in found}


def _is_there(cached: latent_cache.Cache, item: Item) -> bool:
    """Whether an item's latents are in the cache, and not of a file that another has replaced."""
    try:
        cached.check_name(item.name, item.file.outside if item.file else False)
        stored = cached.find(item.name)
        path = item.file.path if item.file else Path()
    except DataError:  # it is told when the item is read
        return False
    changed = stored.file and path.is_file() and not fingerprint.is_same(path, stored.file)
    return stored.is_file() and not changed


def _batches(read: Iterable[tuple[Item, np.ndarray]]) -> Iterator[tuple[list[Item], np.ndarray]]:
    """Items of one shape with their clips, float32 (b c t h w).

    The last batch of a shape is filled up with copies of a clip: another batch size would be another graph to compile.
    When too many items are bad, those that were read before are given out first.
    """
    waiting: dict[tuple[int, ...], list[tuple[Item, np.ndarray]]] = {}
    refused = None
    try:
        for item, frames in read:
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
