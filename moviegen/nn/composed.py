"""RMSNorm and attention composed of kernels that the CPU has, with gradients of their own."""

import functools

import mindspore as ms
from mindspore import nn, ops

_matmul = ops.MatMul()
_bmm = ops.BatchMatMul()
_bmm_bt = ops.BatchMatMul(transpose_b=True)
_bmm_at = ops.BatchMatMul(transpose_a=True)
_softmax = ops.Softmax(-1)  # the primitive: a bprop cannot call functions that branch in python, as ops.softmax does
_MASKED = -3e4  # finite, in float16 too, so that a sample whose text is wholly masked gives numbers
# Scores of one query chunk: small enough to leave the 4 GB of a long sequence's budget to q, k, v and the output.
_SCORE_BYTES = 1 << 28


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
    return _rms_norm(x, scale, eps)[0]


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


def attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, seen: ms.Tensor | None) -> ms.Tensor:
    """Softmax attention, shapes as in `layers.attention`.

    Queries go in chunks where the scores would not fit, so that memory grows with n + m, not with n * m.
    """
    b, h, n, d = q.shape
    m = k.shape[2]
    q = q * (d**-0.5)  # scaling q is n*d work, scaling the scores n*m
    if seen is not None:  # as one more feature of q and k, instead of a pass over the scores
        column = ops.reshape(ops.cast((1 - seen) * _MASKED, k.dtype), (b, 1, m, 1))
        k = ops.concat((k, ops.tile(column, (1, h, 1, 1))), -1)
        q = ops.concat((q, ops.ones((b, h, n, 1), q.dtype)), -1)
    rows = max(1, _SCORE_BYTES // (4 * b * h * m))
    if rows >= n:
        return _attend(q, k, v)[0]
    return _attend_in_chunks(rows)(q, k, v)
