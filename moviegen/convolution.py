"""2.5-D convolution: a 2-D one on every frame, then a 1-D one over time, on video (b c t h w) without moving axes.

The shapes are chosen for MindSpore's CPU kernels; the arithmetic is that of plain convolutions.
"""

import mindspore as ms
from mindspore import ops

# The gradient of a 3x3 convolution lays out all patches of a picture in memory, 36 bytes per input value. Above this
# many bytes for a clip its frames are pictures of their own: as fast there (128 channels of 16x64x64: 0.4 s), in half of the
# memory.
_COLUMNS = 2**27


def spatial_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    """2-D convolution of every frame of x (b c t h w) with w (out, in, k, k), k 1 or 3, zero padded to the same size."""
    n, c, t, height, width = x.shape
    out = w.shape[0]
    if w.shape[2] == 1:
        y = ops.conv2d(ops.reshape(x, (n, c, t * height, width)), w, b, 1, "valid")
        return ops.reshape(y, (n, out, t, height, width))
    if 4 * 9 * c * t * height * width > _COLUMNS:
        return conv_by_frame(x, w, b)
    # All frames of a clip as one tall picture, a row of zeros after each: the gradient's kernels take their time per
    # picture, 56 ms instead of 150 for 4x16x16x32x32, and nothing has to be transposed.
    gap = ops.zeros((n, c, t, 1, width), x.dtype)
    tall = ops.reshape(ops.concat((x, gap), 3), (n, c, t * (height + 1), width))
    y = ops.conv2d(tall, w, b, 1, "pad", 1)
    return ops.reshape(y, (n, out, t, height + 1, width))[:, :, :, :height]


def conv_by_frame(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    """The 3x3 `spatial_conv` with every frame as a picture: what it takes for large clips."""
    n, c, t, height, width = x.shape
    frames = ops.reshape(ops.transpose(x, (0, 2, 1, 3, 4)), (n * t, c, height, width))
    y = ops.reshape(ops.conv2d(frames, w, b, 1, "pad", 1), (n, t, w.shape[0], height, width))
    return ops.transpose(y, (0, 2, 1, 3, 4))


def halving_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    """3x3 convolution of every frame with stride 2; zeros at the right and bottom only, as the image VAE pads: h -> h // 2.

    Height must be even.
    """
    n, c, t, height, width = x.shape
    # With two rows of zeros after each frame, frames start at even rows of the tall picture.
    gap = ops.zeros((n, c, t, 2, width), x.dtype)
    tall = ops.reshape(ops.concat((x, gap), 3), (n, c, t * (height + 2), width))
    side = ops.zeros((n, c, t * (height + 2), 1), x.dtype)
    tail = ops.zeros((n, c, 1, width + 1), x.dtype)
    y = ops.conv2d(ops.concat((ops.concat((tall, side), 3), tail), 2), w, b, 2, "valid")
    return ops.reshape(y, (n, w.shape[0], t, height // 2 + 1, width // 2))[:, :, :, : height // 2]


def temporal_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor, stride: int = 1, padding: str = "replicate") -> ms.Tensor:
    """Per-pixel 1-D convolution over time of x (b c t h w) with w (out, in, k), k 1 or 3.

    padding "replicate" repeats the end frames, symmetric in time; "zeros" is the seed's upsampling.
    """
    n, c, t, height, width = x.shape
    if w.shape[2] == 3:
        if padding == "replicate":
            x = ops.concat((x[:, :, :1], x, x[:, :, t - 1 :]), 2)
        else:
            zero = ops.zeros((n, c, 1, height, width), x.dtype)
            x = ops.concat((zero, x, zero), 2)
        t = t + 2
    y = ops.conv2d(ops.reshape(x, (n, c, t, height * width)), ops.expand_dims(w, 3), b, (stride, 1), "valid")
    return ops.reshape(y, (n, w.shape[0], y.shape[2], height, width))
