"""Layers as pure functions of tensors: projections, norms, attention, embeddings.

Weights are (out, in). Norms, softmax and statistics are float32; matrix products run in `dtype`.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.ops.auto_generate import SplitWithSize

from moviegen.nn import kernels

_matmul_bt = ops.MatMul(transpose_b=True)
_split = SplitWithSize()


def to_compute(x: ms.Tensor, dtype: str) -> ms.Tensor:
    """x as a matrix product's operand in the compute dtype ("bfloat16_simulated": rounded, but stored in float32)."""
    if dtype == "float32":
        return x  # not cast: a parameter that is gathered in another dtype than it is computed with must not go unseen
    if dtype == "bfloat16_simulated":
        return ops.cast(ops.cast(x, ms.bfloat16), ms.float32)
    return ops.cast(x, ms.float16 if dtype == "float16" else ms.bfloat16)


def cut(x: ms.Tensor, start: int, stop: int, axis: int) -> ms.Tensor:
    """x from `start` to `stop` along an axis, in pieces of SplitWithSize: Ascend compiles a slice anew for each shape."""
    length = x.shape[axis]
    if start == 0 and stop == length:
        return x
    if start == 0:
        return _split(x, (stop, length - stop), axis)[0]
    if stop == length:
        return _split(x, (start, length - start), axis)[1]
    return _split(x, (start, stop - start, length - stop), axis)[1]


def pieces(x: ms.Tensor, n: int, axis: int) -> tuple[ms.Tensor, ...]:
    """x cut into `n` equal pieces along an axis."""
    return _split(x, (x.shape[axis] // n,) * n, axis)


def linear(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor | None = None, dtype: str = "float32") -> ms.Tensor:
    """x (..., in) times w (out, in), plus b (out,)."""
    rows = ops.reshape(to_compute(x, dtype), (-1, x.shape[-1]))  # 2-D products are the faster kernel
    y = _matmul_bt(rows, to_compute(w, dtype))
    if b is not None:
        y = kernels.add_bias(y, ops.cast(b, y.dtype))
    return ops.reshape(y, x.shape[:-1] + (w.shape[0],))


def rms_norm(x: ms.Tensor, scale: ms.Tensor, eps: float) -> ms.Tensor:
    """x / rms(x) * scale over the last axis, in float32."""
    return kernels.rms_norm(ops.cast(x, ms.float32), scale, eps)


def layer_norm(x: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor, eps: float) -> ms.Tensor:
    """(x - mean) / std * scale + bias over the last axis, in float32."""
    return kernels.layer_norm(ops.cast(x, ms.float32), scale, bias, eps)


class _SquareSum(nn.Cell):
    """MindSpore's own gradient multiplies by one number spread over all of x, a constant as large as x in the graph."""

    def construct(self, x):
        return ops.sum(ops.square(x))

    def bprop(self, x, out, dout):
        return (x * (2 * dout),)


_square_sum = _SquareSum()


def square_sum(x: ms.Tensor) -> ms.Tensor:
    """Sum of the squares of all of x."""
    return _square_sum(x)


def square_sums(x: ms.Tensor) -> ms.Tensor:
    """Sums of the squares of each sample of x (b n c), (b,); for numbers to look at, not to be differentiated."""
    b, n, c = x.shape
    return ops.reshape(kernels.sums(ops.reshape(ops.square(x), (b, 1, n * c)), 2), (b,))


@ops.constexpr
def _frequencies(half: int, max_period: float) -> ms.Tensor:
    # By python: the CPU kernel of exp is off by 4e-6, a thousandth of a radian at t = 1000. Outside of the graph, where a
    # loop over 128 numbers takes three seconds to compile.
    return ms.Tensor([[max_period ** (-i / half) for i in range(half)]], ms.float32)


def timestep_embedding(t: ms.Tensor, dim: int, max_period: float = 10000.0) -> ms.Tensor:
    """Sinusoids of t (b,): (b dim), cosines first, frequencies max_period^(-i / (dim/2))."""
    angles = ops.reshape(ops.cast(t, ms.float32), (-1, 1)) * _frequencies(dim // 2, max_period)
    return ops.concat((ops.cos(angles), ops.sin(angles)), -1)


def resize_table(table: np.ndarray, length: int) -> np.ndarray:
    """A table of learned positions (old, d) as (length, d), linear between its rows, first and last row kept; float32."""
    table = np.asarray(table, np.float32)
    at = np.linspace(0, len(table) - 1, length)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(table) - 1)
    weight = (at - low)[:, None]
    return ((1 - weight) * table[low] + weight * table[high]).astype(np.float32)


def attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, seen: ms.Tensor | None = None) -> ms.Tensor:
    """Softmax attention of q (b h n d) over k and v (b h m d) -> (b h n d), in the dtype of these.

    Nobody attends to keys where seen (b 1 1 m), 1 or 0, is 0.
    """
    return kernels.attention(q, k, v, seen)
