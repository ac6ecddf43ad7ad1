"""The best linear code at the autoencoder's compression, PCA of 8x8x8 blocks, which it must beat."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from moviegen.evaluation.baselines import BLOCK, from_blocks, to_blocks, to_uint8


class LinearCode(NamedTuple):
    """PCA of 8x8x8x3 blocks: `mean` (1536,), orthonormal `basis` (channels, 1536), all `eigenvalues` (1536,), falling.

    The eigenvalues are variances in squared levels; the sum of those beyond `channels` is the squared error per block.
    """

    mean: np.ndarray
    basis: np.ndarray
    eigenvalues: np.ndarray


def fit(clips: Iterable[np.ndarray], channels: int = 16) -> LinearCode:
    """Fits the code to all 8x8x8 blocks of uint8 (t h w c) clips; ends that fill no whole block are left out."""
    size = BLOCK**3 * 3
    count, total, square = 0, np.zeros(size), np.zeros((size, size))
    for clip in clips:
        whole = [length - length % BLOCK for length in clip.shape[:3]]
        if 0 in whole:
            continue
        rows = to_blocks(clip[: whole[0], : whole[1], : whole[2]]).reshape(-1, size) - 128.0
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


def roundtrip(code: LinearCode, video: np.ndarray) -> np.ndarray:
    """Encodes each 8x8x8 block to `channels` numbers and back, uint8 (t h w c) -> the same shape.

    Sizes that 8 does not divide are padded by replicating the last frame, row or column, and cropped afterwards.
    """
    blocks = to_blocks(video)
    rows = blocks.reshape(-1, BLOCK**3 * 3) - code.mean
    rows = (rows @ code.basis.T) @ code.basis + code.mean
    return to_uint8(from_blocks(rows.reshape(blocks.shape)), video.shape)
