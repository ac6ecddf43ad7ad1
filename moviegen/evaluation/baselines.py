"""Average-pooling at the autoencoder's compression of 8x8x8, which it must beat, and the blocks that this is made of."""

import einops
import numpy as np

BLOCK = 8  # pixels and frames per latent, in each of t, h and w


def pool(video: np.ndarray) -> np.ndarray:
    """Averages blocks of 8x8x8 and upsamples them trilinearly, uint8 (t h w c) -> the same shape.

    Sizes that 8 does not divide are padded by replicating the last frame, row or column, and cropped afterwards.
    """
    small = to_blocks(video).mean(axis=3)
    for axis in range(3):
        small = _upsample(small, axis)
    return to_uint8(small, video.shape)


def to_blocks(video: np.ndarray) -> np.ndarray:
    """Cuts (t h w c) into blocks of 8x8x8, float64 (t/8 h/8 w/8 512 c); pads as `pool`."""
    padding = [(0, -length % BLOCK) for length in video.shape[:3]] + [(0, 0)]
    padded = np.pad(video, padding, mode="edge").astype(np.float64)
    return einops.rearrange(padded, "(t i) (h j) (w k) c -> t h w (i j k) c", i=BLOCK, j=BLOCK, k=BLOCK)


def from_blocks(blocks: np.ndarray) -> np.ndarray:
    """The inverse of `to_blocks`, without the cropping."""
    return einops.rearrange(blocks, "t h w (i j k) c -> (t i) (h j) (w k) c", i=BLOCK, j=BLOCK, k=BLOCK)


def to_uint8(video: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Crops (t h w c) to `shape` and rounds to levels of 0 to 255."""
    video = video[: shape[0], : shape[1], : shape[2]]
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def _upsample(x: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation by 8 along an axis, half-pixel centres (align_corners=False), ends held."""
    length = x.shape[axis]
    place = np.clip((np.arange(length * BLOCK) + 0.5) / BLOCK - 0.5, 0, length - 1)
    low = np.minimum(place.astype(int), max(length - 2, 0))
    weight = (place - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    high = np.minimum(low + 1, length - 1)
    return np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight
