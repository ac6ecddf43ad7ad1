"""Layers as pure functions of tensors: projections, norms, attention, SwiGLU, embeddings.

Weights are (out, in). Norms, softmax and statistics are float32; matrix products run in `dtype`. On Ascend the fused
kernels are called; those lines have never run, for want of a card.
"""

import functools

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from moviegen.nn import kernels

_matmul = ops.MatMul()
_matmul_bt = ops.MatMul(transpose_b=True)
_bmm = ops.BatchMatMul()
_bmm_bt = ops.BatchMatMul(transpose_b=True)
_bmm_at = ops.BatchMatMul(transpose_a=True)
_softmax = ops.Softmax(-1)  # the primitive: a bprop cannot call functions that branch in python, as ops.softmax does
# Scores of one query chunk: small enough to leave the 4 GB of a long sequence's budget to q, k, v and the output.
_SCORE_BYTES = 1 << 28


def to_compute(x: ms.Tensor, dtype: str) -> ms.Tensor:
    """x as a matrix product's operand in the compute dtype ("bfloat16_simulated": rounded, but stored in float32)."""
    if dtype == "float32":
        return x  # not cast: a parameter that is gathered in another dtype than it is computed with must not go unseen
    if dtype == "bfloat16_simulated":
        return ops.cast(ops.cast(x, ms.bfloat16), ms.float32)
    return ops.cast(x, ms.float16 if dtype == "float16" else ms.bfloat16)


def linear(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor | None = None, dtype: str = "float32") -> ms.Tensor:
    """x (..., in) times w (out, in), plus b (out,)."""
    rows = ops.reshape(to_compute(x, dtype), (-1, x.shape[-1]))  # 2-D products are the faster kernel
    y = _matmul_bt(rows, to_compute(w, dtype))
    if b is not None:
        y = ops.bias_add(y, ops.cast(b, y.dtype))
    return ops.reshape(y, x.shape[:-1] + (w.shape[0],))


class _RmsNorm(nn.Cell):
    """Composed RMSNorm with its own gradient.

    Sums and broadcasts are products with a vector: CPU reductions are slower, broadcasts keep 16 bytes per output element.
    """

    def construct(self, x, scale, eps):
        n = x.shape[-1]
        rows = ops.reshape(x, (-1, n))
        inverse = ops.rsqrt(_matmul(ops.square(rows), ops.full((n, 1), 1 / n, dtype=ms.float32)) + eps)
        factor = _matmul(inverse, ops.reshape(scale, (1, n)))
        return ops.reshape(rows * factor, x.shape), inverse, factor

    def bprop(self, x, scale, eps, out, dout):
        n = x.shape[-1]
        _, inverse, factor = out
        rows, d = ops.reshape(x, (-1, n)), ops.reshape(dout[0], (-1, n))
        product = d * rows
        dscale = ops.reshape(_matmul(ops.reshape(inverse, (1, -1)), product), (n,))
        projection = _matmul(product, ops.reshape(scale / n, (n, 1))) * inverse * inverse * inverse
        dx = d * factor - rows * _matmul(projection, ops.ones((1, n), ms.float32))
        return ops.reshape(dx, x.shape), dscale, eps


_rms_norm = _RmsNorm()


def rms_norm(x: ms.Tensor, scale: ms.Tensor, eps: float) -> ms.Tensor:
    """x / rms(x) * scale over the last axis, in float32."""
    x = ops.cast(x, ms.float32)
    if kernels.ON_ASCEND:
        return ops.rms_norm(x, scale, eps)[0]
    return _rms_norm(x, scale, eps)[0]


def repeat_rows(row: ms.Tensor, n: int) -> ms.Tensor:
    """row (b 1 d) -> (b n d), as a product with ones: what a broadcast inside x * row would do, faster on CPU."""
    return _bmm(ops.ones((row.shape[0], n, 1), row.dtype), row)


def layer_norm(x: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor, eps: float) -> ms.Tensor:
    """(x - mean) / std * scale + bias over the last axis, in float32."""
    return ops.LayerNorm(-1, -1, eps)(ops.cast(x, ms.float32), scale, bias)[0]


def group_norm(x: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor, groups: int, eps: float = 1e-6) -> ms.Tensor:
    """GroupNorm of x (b c t h w), statistics over (c/groups, t, h, w), in float32."""
    b, c = x.shape[0], x.shape[1]
    rows = ops.reshape(ops.cast(x, ms.float32), (b * groups, -1))
    mean = ops.mean(rows, -1, True)
    centred = rows - mean
    rstd = ops.rsqrt(ops.mean(ops.square(centred), -1, True) + eps)
    y = ops.reshape(centred * rstd, (b, c, -1))
    return ops.reshape(y * ops.reshape(scale, (1, c, 1)) + ops.reshape(bias, (1, c, 1)), x.shape)


def swiglu(x: ms.Tensor, gate: ms.Tensor, up: ms.Tensor, down: ms.Tensor, dtype: str = "float32") -> ms.Tensor:
    """down(silu(gate x) * (up x))."""
    y = linear(x, gate, None, dtype)
    if kernels.ON_ASCEND:
        return linear(ops.swiglu(ops.concat((y, linear(x, up, None, dtype)), -1), -1), down, None, dtype)
    # silu written out: the gradient of ops.silu is the slower kernel.
    return linear(y * ops.sigmoid(y) * linear(x, up, None, dtype), down, None, dtype)


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


def _probabilities(q, k, dtype):
    return ops.cast(_softmax(ops.cast(_bmm_bt(q, k), ms.float32)), dtype)


def _attention_gradients(q, k, v, p, out, dout):
    # dscores = p * (dout v' - rowsum(dout * out)), the row sum as one more column of the product.
    b, h, n, d = out.shape
    rowsum = _bmm(dout * out, ops.ones((b, h, d, 1), out.dtype))
    ones = ops.ones((b, h, v.shape[2], 1), v.dtype)
    dscores = p * _bmm_bt(ops.concat((dout, -rowsum), -1), ops.concat((v, ones), -1))
    return _bmm(dscores, k), _bmm_at(dscores, q), _bmm_at(p, dout)


class _Attend(nn.Cell):
    """softmax(q k') v; keeps the probabilities for the gradient."""

    def construct(self, q, k, v):
        p = _probabilities(q, k, v.dtype)
        return _bmm(p, v), p

    def bprop(self, q, k, v, out, dout):
        return _attention_gradients(q, k, v, out[1], out[0], dout[0])


class _AttendInChunks(nn.Cell):
    """softmax(q k') v, some queries at a time; computes the probabilities again for the gradient.

    Each chunk waits (`depend`) for the one before: the runtime would otherwise hold the scores of all at once.
    """

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def construct(self, q, k, v):
        out = ()
        previous = v
        for start in range(0, q.shape[2], self.rows):
            chunk = ops.depend(q[:, :, start : start + self.rows], previous)
            previous = _bmm(_probabilities(chunk, k, v.dtype), v)
            out = out + (previous,)
        return ops.concat(out, 2)

    def bprop(self, q, k, v, out, dout):
        dq, dk, dv, last = (), ops.zeros_like(k), ops.zeros_like(v), q
        for start in range(0, q.shape[2], self.rows):
            stop = start + self.rows
            chunk = q[:, :, start:stop]
            chunk = ops.depend(ops.depend(ops.depend(chunk, dk), dv), last)
            p = _probabilities(chunk, k, v.dtype)
            grads = _attention_gradients(chunk, k, v, p, out[:, :, start:stop], dout[:, :, start:stop])
            last = grads[0]
            dq, dk, dv = dq + (last,), dk + grads[1], dv + grads[2]
        return ops.concat(dq, 2), dk, dv


_attend = _Attend()
_attend_in_chunks = functools.cache(_AttendInChunks)


def attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: ms.Tensor | None = None) -> ms.Tensor:
    """Softmax attention, q (b h n d), k and v (b h m d), additive bias (b 1 1 m) or None -> (b h n d).

    Queries go in chunks where the scores would not fit, so that memory grows with n + m, not with n * m.
    """
    b, h, n, d = q.shape
    m = k.shape[2]
    if kernels.ON_ASCEND and q.dtype != ms.float32:  # which the fused kernel does not take
        mask = None if bias is None else ops.tile(ops.cast(bias < 0, ms.uint8), (1, 1, n, 1))  # 1 = leave out
        return ops.flash_attention_score(q, k, v, h, attn_mask=mask, scalar_value=d**-0.5, input_layout="BNSD")
    q = q * (d**-0.5)  # scaling q is n*d work, scaling the scores n*m
    if bias is not None:  # as one more feature of q and k, instead of a pass over the scores
        column = ops.tile(ops.reshape(ops.cast(bias, k.dtype), (b, 1, m, 1)), (1, h, 1, 1))
        q, k = ops.concat((q, ops.ones((b, h, n, 1), q.dtype)), -1), ops.concat((k, column), -1)
    rows = max(1, _SCORE_BYTES // (4 * b * h * m))
    if rows >= n:
        return _attend(q, k, v)[0]
    return _attend_in_chunks(rows)(q, k, v)
