"""The autoencoder's losses as compiled functions; each is a mean, so that none depends on the size of the videos.

`scale` is 1 over the number of pieces of the global batch: the ranks' values add up to the mean over all of it.
"""

import functools

from mindspore import ops

from moviegen.nn import kernels


@functools.lru_cache
def make_sample_and_kl(channels: int, scale: float):
    def sample_and_kl(p, x, noise):
        mean = x[:, :channels]
        logvar = ops.clip_by_value(x[:, channels:], -30.0, 20.0)
        kl = scale * 0.5 * kernels.mean(ops.square(mean) + ops.exp(logvar) - 1.0 - logvar)
        return mean + ops.exp(0.5 * logvar) * noise, kl

    return sample_and_kl


@functools.lru_cache
def make_reconstruction(l1: float, mse: float, scale: float):
    def reconstruction(p, decoded, video):
        shown = decoded if decoded.shape == video.shape else decoded[:, :, : video.shape[2]]
        diff = shown - video
        mean_square = kernels.mean(ops.square(diff))
        return l1 * kernels.mean(ops.abs(diff)) + mse * mean_square, scale * mean_square

    return reconstruction


@functools.lru_cache
def make_outlier(radius: float, weight: float):
    """weight * mean over pixels of max(|X - Mean| - radius |Std|, 0): norms over channels, statistics over a frame."""

    # Paper, TAE, outlier penalty loss: it leaves open whether statistics pool over time, here they do not.
    def outlier(p, z):
        b, c, t, h, w = z.shape
        rows = ops.reshape(ops.transpose(z, (0, 2, 1, 3, 4)), (b * t, c, h * w))
        centred = rows - kernels.mean(rows, 2, True)
        # 1e-12: the root of zero has no gradient, and a frame of one pixel is its own mean.
        distance = ops.sqrt(ops.sum(ops.square(centred), 1) + 1e-12)  # (frames, pixels)
        spread = ops.sqrt(ops.sum(kernels.mean(ops.square(centred), 2), 1) + 1e-12)  # (frames,)
        return weight * kernels.mean(ops.relu(distance - radius * ops.reshape(spread, (-1, 1))))

    return outlier
