"""Long and large videos in tiles: memory for one tile however many frames there are, and tiles on several ranks at a time.

Tiles are not the whole: GroupNorm's statistics and temporal attention see a tile alone, and so do convolutions at its ends.
Overlapping tiles are blended; docs/tae.md says what of a seam is left.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mindspore as ms
import numpy as np

from moviegen.models.tae import model as tae
from moviegen.nn import backend
from moviegen.parallel import collectives
from moviegen.parallel.mesh import ALONE, Group

# Paper, TAE: 32 frames a tile, in the decoder 16 of them overlapping the tile before, blended linearly.
TILE, OVERLAP = 4, 2  # latent frames


def starts(length: int, tile: int = TILE, overlap: int = OVERLAP) -> list[int]:
    """Where every tile of `length` latents along an axis starts; the last tile ends with them."""
    return [*range(0, length - tile, tile - overlap), max(0, length - tile)]


def row_of(places: list[int], number: int, length: int, per_latent: int, tile: int, overlap: int) -> np.ndarray:
    """How much a tile counts in each of its own frames."""
    start = places[number]
    frames = np.arange(start, min(start + tile, length), 1 / per_latent)

    def rise(at: int) -> np.ndarray:
        # Centres of frames, so that two tiles are mirror images of each other in their overlap.
        return np.clip((frames + 0.5 / per_latent - at) / overlap, 0, 1)

    row = rise(start) if start else np.ones(len(frames))
    for later in places[number + 1 :]:
        if later >= start + tile:
            break
        row = row * (1 - rise(later))
    return row


def stream(
    params: Mapping[str, Any], cfg: Any, latents: Any, num_frames: int | None = None, group: Group = ALONE
) -> Iterator[np.ndarray]:
    """The frames of `decode` a few at a time, in order, (b 3 n h w) each; all at once where ranks share out the tiles."""
    if group.size > 1:
        yield decode(params, cfg, latents, num_frames, group)
        return
    latents = backend.tensor(latents)
    length, per_latent = latents.shape[2], _factor(cfg)
    places = starts(length)
    left = length * per_latent if num_frames is None else num_frames
    kept: np.ndarray | None = None  # frames from this tile's start on that earlier tiles have a share in
    for number, (start, until) in enumerate(itertools.pairwise([*places, length])):
        made = _weighted(params, cfg, latents, places, number)
        if kept is not None:
            made[:, :, : kept.shape[2]] += kept
        ready = (until - start) * per_latent
        kept = made[:, :, ready:]
        if left > 0:
            yield made[:, :, : min(ready, left)]
        left -= ready


def decode(
    params: Mapping[str, Any], cfg: Any, latents: Any, num_frames: int | None = None, group: Group = ALONE
) -> np.ndarray:
    """Video (b 3 t h w) of raw latents (b c t h w) like `tae.decode`, in tiles where there are more than one.

    The ranks of `group`, which are given the same latents, decode a tile each in turn; all return the whole video.
    """
    if group.size == 1:
        return np.concatenate(list(stream(params, cfg, latents, num_frames)), 2)
    latents = backend.tensor(latents)
    b, _, length, h, w = latents.shape
    per_latent, places = _factor(cfg), starts(length)
    video = np.zeros((b, 3, length * per_latent, h * per_latent, w * per_latent), np.float32)
    for number in range(group.rank, len(places), group.size):
        made = _weighted(params, cfg, latents, places, number)
        start = places[number] * per_latent
        video[:, :, start : start + made.shape[2]] += made
    return collectives.all_reduce(group)(backend.tensor(video)).asnumpy()[:, :, :num_frames]


def encode(params: Mapping[str, Any], cfg: Any, video: Any) -> tuple[np.ndarray, np.ndarray]:
    """Posterior (mean, logvar) like `tae.encode`, of video (b 3 t h w), 32 frames at a time without overlap (paper)."""
    length, per_latent = video.shape[2], _factor(cfg)

    def one(piece: Any) -> np.ndarray:
        return np.concatenate([x.asnumpy() for x in tae.encode(params, cfg, piece)], 1)

    pieces = [
        _in_space(one, np.asarray(video[:, :, at : at + TILE * per_latent]), cfg, per_latent, 1)
        for at in range(0, length, TILE * per_latent)
    ]
    both = np.concatenate(pieces, 2)
    return both[:, : cfg.latent_channels], both[:, cfg.latent_channels :]


def _factor(cfg: Any) -> int:
    return 2 ** (len(cfg.channel_multipliers) - 1)


def _weighted(params: Any, cfg: Any, latents: ms.Tensor, places: list[int], number: int) -> np.ndarray:
    """A tile's frames, each times its weight."""
    length, per_latent = latents.shape[2], _factor(cfg)
    piece = latents[:, :, places[number] : places[number] + TILE].asnumpy()
    made = _in_space(lambda x: tae.decode(params, cfg, backend.tensor(x)).asnumpy(), piece, cfg, 1, per_latent)
    row = row_of(places, number, length, per_latent, TILE, OVERLAP).astype(np.float32)
    return made * row[:, None, None]


def _in_space(apply: Callable[[np.ndarray], np.ndarray], x: np.ndarray, cfg: Any, taken: int, given: int) -> np.ndarray:
    """apply(x), x (b c t h w), in tiles of `cfg.spatial_tile` latents (0: in one), a quarter of which is blended with the next.

    `taken`, `given`: how many pixels of x and of the result a latent is wide.
    """
    tile = cfg.get("spatial_tile", 0)
    sides = [n // taken for n in x.shape[3:]]
    if not tile or max(sides) <= tile:
        return apply(x)
    overlap, out = max(1, tile // 4), None
    places = [starts(n, tile, overlap) for n in sides]
    for i, top in enumerate(places[0]):
        for j, left in enumerate(places[1]):
            piece = x[..., top * taken : (top + tile) * taken, left * taken : (left + tile) * taken]
            made = apply(np.ascontiguousarray(piece))
            if out is None:
                out = np.zeros((*made.shape[:3], *(n * given for n in sides)), np.float32)
            rows = [row_of(places[k], at, sides[k], given, tile, overlap) for k, at in ((0, i), (1, j))]
            y, z = top * given, left * given
            out[..., y : y + made.shape[3], z : z + made.shape[4]] += made * np.outer(*rows).astype(np.float32)
    return out
