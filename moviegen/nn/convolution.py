"""The CPU's form of the convolutions in kernels.py, whose docstrings say what each computes.

A convolution's gradients lay out the patches of one picture in memory, which its compiled graph keeps: so pictures are
small. They are cut and put together by unstack and stack, since a compiled `transpose` keeps twice its size.
"""

import math

import mindspore as ms
from mindspore import ops

_LARGE = 2**20  # values of a clip from which cutting it for the temporal convolution costs no time


def spatial_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    n, c, t, height, width = x.shape
    if w.shape[2] == 1:
        y = ops.conv2d(ops.reshape(x, (n, c, t * height, width)), w, b, 1, "valid")
        return ops.reshape(y, (n, w.shape[0], t, height, width))
    return from_pictures(ops.conv2d(to_pictures(x, 2), w, b, 1, "pad", 1), t, 2)


def halving_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    t = x.shape[2]
    x = to_pictures(x, 2)
    m, c, height, width = x.shape
    x = ops.concat((x, ops.zeros((m, c, height, 1), x.dtype)), 3)
    x = ops.concat((x, ops.zeros((m, c, 1, width + 1), x.dtype)), 2)
    return from_pictures(ops.conv2d(x, w, b, 2, "valid"), t, 2)


def doubling_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    # As one transposed convolution: what falls on equal pixels is added in the kernel, 4 products for each of 9.
    t = x.shape[2]
    x = to_pictures(x, 2)
    m, c, height, width = x.shape
    shape = (m, w.shape[0], 2 * height, 2 * width)
    w = ops.transpose(_of_repeated(_of_repeated(w, 2), 3), (1, 0, 2, 3))
    transposed = ops.Conv2DTranspose(c, 4, mode=1, pad_mode="pad", pad=1, stride=2)  # c: out of what it transposes
    y = ops.bias_add(transposed(x, w, shape), b)
    return from_pictures(y, t, 2)


def _of_repeated(w: ms.Tensor, axis: int) -> ms.Tensor:
    """A kernel of 3 along an axis whose values are repeated in pairs, as the kernel of 4 of a transposed one of stride 2."""
    before, at, after = ops.unstack(w, axis)
    return ops.stack((after, at + after, before + at, before), axis)


def temporal_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor, stride: int = 1) -> ms.Tensor:
    pictures, parts = _over_time(x)
    if w.shape[2] == 3 and x.shape[2] == 1:  # an image: all taps fall on one frame
        before, at, after = ops.unstack(w, 2)
        w = ops.expand_dims(before + at + after, 2)
    elif w.shape[2] == 3:
        pictures = ops.concat((pictures[:, :, :1], pictures, pictures[:, :, x.shape[2] - 1 :]), 2)
    y = ops.conv2d(pictures, ops.expand_dims(w, 3), b, (stride, 1), "valid")
    return _over_space(y, parts, x.shape)


def temporal_doubling_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor, padding: str = "replicate") -> ms.Tensor:
    # Each frame of a pair is one of 2 taps, as above.
    pictures, parts = _over_time(x)
    t, end = x.shape[2], x.shape[2] - 1
    first, last = pictures[:, :, :1], pictures[:, :, end:]
    if padding == "zeros":
        first, last = ops.zeros_like(first), ops.zeros_like(last)
    before, at, after = ops.unstack(w, 2)
    pair = []
    for taps, seen in (((before, at + after), (first, pictures)), ((before + at, after), (pictures, last))):
        kernel = ops.expand_dims(ops.stack(taps, 2), 3)
        pair.append(ops.conv2d(ops.concat(seen, 2), kernel, b, 1, "valid"))
    y = ops.stack(pair, 3)
    return _over_space(ops.reshape(y, (*y.shape[:2], 2 * t, -1)), parts, x.shape)


def _over_time(x: ms.Tensor) -> tuple[ms.Tensor, int]:
    """x (b c t h w) as pictures of t x some pixels each, and into how many parts the pixels were cut for that."""
    n, c, t, height, width = x.shape
    parts = math.gcd(16, height * width) if x.size > _LARGE else 1
    return to_pictures(ops.reshape(x, (n, c, t, parts, height * width // parts)), 3), parts


def _over_space(y: ms.Tensor, parts: int, shape: tuple[int, ...]) -> ms.Tensor:
    """The inverse of `_over_time`; `shape` is that of its input."""
    y = from_pictures(y, parts, 3)
    return ops.reshape(y, (shape[0], y.shape[1], y.shape[2], *shape[3:]))


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
