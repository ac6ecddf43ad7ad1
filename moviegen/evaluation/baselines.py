"""What the autoencoder must beat at its compression of 8x8x8: average-pooling, and the best linear code (PCA)."""

from collections.abc import Iterable
from typing import NamedTuple

import einops
import numpy as np

BLOCK = 8  # pixels and frames per latent, in each of t, h and w


class LinearCode(NamedTuple):
    """PCA of 8x8x8x3 blocks: `mean` (1536,), orthonormal `basis` (channels, 1536), all `eigenvalues` (1536,), falling.

    The eigenvalues are variances in squared levels; the sum of those beyond `channels` is the squared error per block.
    """

    mean: np.ndarray
    basis: np.ndarray
    eigenvalues: np.ndarray


def pool(video: np.ndarray) -> np.ndarray:
    """Averages blocks of 8x8x8 and upsamples them trilinearly, uint8 (t h w c) -> the same shape.

    Sizes that 8 does not divide are padded by replicating the last frame, row or column, and cropped afterwards.
    """
    small = _to_blocks(video).mean(axis=3)
    for axis in range(3):
        small = _upsample(small, axis)
    return _to_uint8(small, video.shape)


def linear(code: LinearCode, video: np.ndarray) -> np.ndarray:
    """Encodes each 8x8x8 block to `channels` numbers and back, uint8 (t h w c) -> the same shape; pads as `pool`."""
    blocks = _to_blocks(video)
    rows = blocks.reshape(-1, BLOCK**3 * 3) - code.mean
    rows = (rows @ code.basis.T) @ code.basis + code.mean
    made = rows.reshape(blocks.shape)
    made = einops.rearrange(made, "t h w (i j k) c -> (t i) (h j) (w k) c", i=BLOCK, j=BLOCK, k=BLOCK)
    return _to_uint8(made, video.shape)


def fit_linear(clips: Iterable[np.ndarray], channels: int = 16) -> LinearCode:
    """Fits the code to all 8x8x8 blocks of uint8 (t h w c) clips; ends that fill no whole block are left out."""
    size = BLOCK**3 * 3
    count, total, square = 0, np.zeros(size), np.zeros((size, size))
    for clip in clips:
        whole = [length - length % BLOCK for length in clip.shape[:3]]
        if 0 in whole:
            continue
        rows = _to_blocks(clip[: whole[0], : whole[1], : whole[2]]).reshape(-1, size) - 128.0
        # float32 holds sums of products of one piece; pieces add up in float64.
        for piece in np.array_split(rows.astype(np.float32), max(1, len(rows) // 4096)):
            count += len(piece)
            total += piece.sum(axis=0, dtype=np.float64)
            square += piece.T @ piece
    if count < size:
        raise ValueError(f"the clips hold {count} blocks of 8x8x8, PCA needs at least {size}")
    mean = total / count
    values, vectors = np.linalg.eigh(square / count - np.outer(mean, mean))
    return LinearCode(mean + 128.0, np.ascontiguousarray(vectors[:, ::-1][:, :channels].T), values[::-1].copy())


def _to_blocks(video: np.ndarray) -> np.ndarray:
    """(t h w c) -> float64 (t/8 h/8 w/8 512 c)."""
    padding = [(0, -length % BLOCK) for length in video.shape[:3]] + [(0, 0)]
    padded = np.pad(video, padding, mode="edge").astype(np.float64)
    return einops.rearrange(padded, "(t i) (h j) (w k) c -> t h w (i j k) c", i=BLOCK, j=BLOCK, k=BLOCK)


def _to_uint8(video: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.clip(np.rint(video[: shape[0], : shape[1], : shape[2]]), 0, 255).astype(np.uint8)


def _upsample(x: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation by 8 along an axis, half-pixel centres (align_corners=False), ends held."""
    length = x.shape[axis]
    place = np.clip((np.arange(length * BLOCK) + 0.5) / BLOCK - 0.5, 0, length - 1)
    low = np.minimum(place.astype(int), max(length - 2, 0))
    weight = (place - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    high = np.minimum(low + 1, length - 1)
    return np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight
