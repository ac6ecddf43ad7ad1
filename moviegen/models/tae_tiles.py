"""Decodes long videos in overlapping tiles of frames: memory for one tile, and tiles on several ranks at a time."""

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np

from moviegen import backend, collectives
from moviegen.mesh import ALONE, Group
from moviegen.models import tae

# Paper, TAE: 32 frames a tile, 16 of them overlapping the tile before, blended linearly.
TILE, OVERLAP = 4, 2  # latent frames


def starts(length: int) -> list[int]:
    """First latent frame of every tile of a video of `length` latent frames; the last tile ends with the video."""
    return [*range(0, length - TILE, TILE - OVERLAP), max(0, length - TILE)]


def weights(length: int, per_latent: int) -> np.ndarray:
    """How much each tile counts in each frame, (tiles, frames) of sum 1: a later tile's weight rises over its overlap."""
    frames = np.arange(length * per_latent)
    found: list[np.ndarray] = []
    for start in starts(length):
        # Centres of frames, so that two tiles are mirror images of each other in their overlap.
        rise = (
            np.clip((frames + 0.5 - start * per_latent) / (OVERLAP * per_latent), 0, 1)
            if start
            else np.ones(len(frames))
        )
        found = [earlier * (1 - rise) for earlier in found] + [rise]
    return np.stack(found)


def decode(
    params: Mapping[str, Any], cfg: Any, latents: Any, num_frames: int | None = None, group: Group = ALONE
) -> np.ndarray:
    """Video (b 3 t h w) of raw latents (b c t h w) like `tae.decode`, in tiles where there are more than one.

    The ranks of `group`, which are given the same latents, decode a tile each in turn; all return the whole video.
    """
    latents = backend.tensor(latents)
    length, per_latent = latents.shape[2], 2 ** (len(cfg.channel_multipliers) - 1)
    table, video = weights(length, per_latent), None
    for tile, start in enumerate(starts(length)):
        if tile % group.size == group.rank:
            made = tae.decode(params, cfg, latents[:, :, start : start + TILE]).asnumpy()
            if video is None:
                video = np.zeros((*made.shape[:2], length * per_latent, *made.shape[3:]), np.float32)
            at = slice(start * per_latent, start * per_latent + made.shape[2])
            video[:, :, at] += table[tile, at, None, None] * made
    if group.size > 1:
        if video is None:  # more ranks than tiles
            b, _, _, h, w = latents.shape
            video = np.zeros((b, 3, length * per_latent, h * per_latent, w * per_latent), np.float32)
        video = collectives.all_reduce(group)(ms.Tensor(video)).asnumpy()
    return video[:, :, :num_frames]
