"""2.5-D convolution: a 2-D one on every frame, then a 1-D one over time, on video (b c t h w).

The shapes are chosen for MindSpore's CPU kernels; the arithmetic is that of plain convolutions. A convolution's gradients lay
out the patches of one picture in memory, k times its size, and every compiled graph keeps that memory for ever: so
pictures are small. They are cut and put together by unstack and stack, since a compiled `transpose` keeps twice its size.
"""

import math

import mindspore as ms
from mindspore import ops

_LARGE = 2**20  # values of a clip from which cutting it for the temporal convolution costs no time


def spatial_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    """2-D convolution of every frame of x (b c t h w) with w (out, in, k, k), k 1 or 3, zero padded to the same size."""
    n, c, t, height, width = x.shape
    if w.shape[2] == 1:
        y = ops.conv2d(ops.reshape(x, (n, c, t * height, width)), w, b, 1, "valid")
        return ops.reshape(y, (n, w.shape[0], t, height, width))
    return from_pictures(ops.conv2d(to_pictures(x, 2), w, b, 1, "pad", 1), t, 2)


def halving_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    """3x3 convolution of every frame with stride 2; zeros at the right and bottom only, as the image VAE pads: h -> h // 2.

    Height must be even.
    """
    t = x.shape[2]
    x = to_pictures(x, 2)
    m, c, height, width = x.shape
    x = ops.concat((x, ops.zeros((m, c, height, 1), x.dtype)), 3)
    x = ops.concat((x, ops.zeros((m, c, 1, width + 1), x.dtype)), 2)
    return from_pictures(ops.conv2d(x, w, b, 2, "valid"), t, 2)


def temporal_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor, stride: int = 1, padding: str = "replicate") -> ms.Tensor:
    """Per-pixel 1-D convolution over time of x (b c t h w) with w (out, in, k), k 1 or 3.

    padding "replicate" repeats the end frames, symmetric in time; "zeros" is the seed's upsampling.
    """
    n, c, t, height, width = x.shape
    parts = math.gcd(16, height * width) if x.size > _LARGE else 1
    x = to_pictures(ops.reshape(x, (n, c, t, parts, height * width // parts)), 3)
    if w.shape[2] == 3:
        if padding == "replicate":
            x = ops.concat((x[:, :, :1], x, x[:, :, t - 1 :]), 2)
        else:
            zero = ops.zeros((x.shape[0], c, 1, x.shape[3]), x.dtype)
            x = ops.concat((zero, x, zero), 2)
    y = from_pictures(ops.conv2d(x, ops.expand_dims(w, 3), b, (stride, 1), "valid"), parts, 3)
    return ops.reshape(y, (n, w.shape[0], y.shape[2], height, width))


def to_pictures(x: ms.Tensor, axis: int) -> ms.Tensor:
    """Five axes as four: each slice along `axis` becomes a picture of its own in the batch, (slices x b, ...)."""
    if x.shape[axis] == 1:
        return ops.squeeze(x, axis)
    x = ops.stack(ops.unstack(x, axis), 0)
    return ops.reshape(x, (-1, *x.shape[2:]))


def from_pictures(x: ms.Tensor, slices: int, axis: int) -> ms.Tensor:
    """The inverse of `to_pictures`."""
    if slices == 1:
        return ops.expand_dims(x, axis)
    return ops.stack(ops.unstack(ops.reshape(x, (slices, -1, *x.shape[1:])), 0), axis)
