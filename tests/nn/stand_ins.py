"""What MindSpore has no CPU kernel for, by what it has, to run Ascend's forms."""

from mindspore import ops


def conv3d(x, w, b, stride, padding, dilation, groups):
    """Conv3DExt."""
    padding = (padding[0], padding[0], padding[1], padding[1], padding[2], padding[2])
    return ops.bias_add(ops.Conv3D(w.shape[0], w.shape[2:], 1, "pad", padding, stride)(x, w), b)


def narrow(x, axis, start, length):
    """Narrow."""
    begin = (0,) * axis + (start,) + (0,) * (len(x.shape) - axis - 1)
    return ops.slice(x, begin, x.shape[:axis] + (length,) + x.shape[axis + 1 :])
