"""The CPU's form of `kernels.group_norm`, and of it followed by SiLU, the activation of every convolution in the autoencoder.

The latter has its own gradient: the composed one makes twice the passes. A product with a vector of ones is faster on CPU
than a reduction.
"""

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops.auto_generate import SiLU, SiLUGrad

# Primitives: a Cell's bprop cannot call functions that branch in python, as ops.tile and ops.sum do.
_matmul, _batch_matmul, _tile, _sum = ops.MatMul(), ops.BatchMatMul(), ops.Tile(), ops.ReduceSum()
_silu, _silu_grad = SiLU(), SiLUGrad()
_batch_norm = ops.BatchNorm(False, 1e-12, 0.1, "NCHW")


def _row_sums(x, rows):
    flat = ops.reshape(x, (rows, -1))
    return _matmul(flat, ops.ones((flat.shape[1], 1), ms.float32))


def _row_products(x, y, rows):
    """Sums over each row of x * y, (rows, 1), without the product as an array of its own."""
    return ops.reshape(_batch_matmul(ops.reshape(x, (rows, 1, -1)), ops.reshape(y, (rows, -1, 1))), (rows, 1))


def _affine(x, gain, offset):
    """x (b c ...) * gain (b * c,) + offset (b * c,), in one pass."""
    rows = gain.shape[0]
    # An inference BatchNorm: a broadcasting product keeps index tables of four times its result as long as its graph.
    zero, one = ops.zeros((rows,), ms.float32), ops.ones((rows,), ms.float32)
    return ops.reshape(_batch_norm(ops.reshape(x, (1, rows, -1, x.shape[-1])), gain, offset, zero, one)[0], x.shape)


def _spread(x, times):
    """(rows, 1) -> (rows * times,): each value `times` times."""
    return ops.reshape(_tile(ops.reshape(x, (-1, 1)), (1, times)), (-1,))


class _GroupNormSilu(nn.Cell):
    """x (b c t h w) -> (silu(norm(x)), and what the gradient needs: x - mean, norm(x), 1/std (b groups 1))."""

    def construct(self, x, scale, bias, groups, eps):
        b, c = x.shape[0], x.shape[1]
        n = x.shape[2] * x.shape[3] * x.shape[4] * (c // groups)
        mean = _spread(_row_sums(x, b * groups) / n, c // groups)
        centred = _affine(x, ops.ones((b * c,), ms.float32), -mean)
        rstd = ops.rsqrt(_row_products(centred, centred, b * groups) / n + eps)
        y = _affine(centred, _spread(rstd, c // groups) * _tile(scale, (b,)), _tile(bias, (b,)))
        return _silu(y), centred, y, rstd

    def bprop(self, x, scale, bias, groups, eps, out, dout):
        _, centred, y, rstd = out
        b, c = x.shape[0], x.shape[1]
        n = x.shape[2] * x.shape[3] * x.shape[4] * (c // groups)
        dy = _silu_grad(dout[0], y)
        weights = _tile(scale, (b,))
        sums = ops.reshape(_row_sums(dy, b * c), (b * c,))
        products = ops.reshape(_row_products(dy, centred, b * c), (b * c,))
        mean_dy = _spread(_row_sums(sums * weights, b * groups) / n, c // groups)
        mean_product = _spread(_row_sums(products * weights, b * groups) / n, c // groups)
        rstd = _spread(rstd, c // groups)
        zero = ops.zeros((b * c,), ms.float32)
        dx = _affine(dy, rstd * weights, zero) - _affine(centred, rstd * rstd * rstd * mean_product, rstd * mean_dy)
        dscale = _sum(ops.reshape(products * rstd, (b, c)), 0)
        return dx, dscale, _sum(ops.reshape(sums, (b, c)), 0), groups, eps


_group_norm_silu = _GroupNormSilu()


def group_norm(x: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor, groups: int, eps: float) -> ms.Tensor:
    b, c = x.shape[0], x.shape[1]
    rows = ops.reshape(ops.cast(x, ms.float32), (b * groups, -1))
    mean = ops.mean(rows, -1, True)
    centred = rows - mean
    rstd = ops.rsqrt(ops.mean(ops.square(centred), -1, True) + eps)
    y = ops.reshape(centred * rstd, (b, c, -1))
    return ops.reshape(y * ops.reshape(scale, (1, c, 1)) + ops.reshape(bias, (1, c, 1)), x.shape)


def group_norm_silu(x: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor, groups: int, eps: float) -> ms.Tensor:
    return _group_norm_silu(ops.cast(x, ms.float32), scale, bias, groups, eps)[0]
