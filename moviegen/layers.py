"""Layers as pure functions of tensors: projections, norms, attention, SwiGLU, 2.5-D convolution, embeddings.

All of them may be called inside compiled functions. Weights are (out, in) or (out, in, kernel...), as in every format
that we read. Norms, softmax and statistics are float32; matrix products run in `dtype`.
"""

import mindspore as ms
from mindspore import ops

from moviegen import backend

ON_ASCEND = backend.device() == "Ascend"
_matmul_bt = ops.MatMul(transpose_b=True)
_bmm = ops.BatchMatMul()
_bmm_bt = ops.BatchMatMul(transpose_b=True)
_bmm_at = ops.BatchMatMul(transpose_a=True)
# Scores of one query chunk: small enough to leave the 4 GB of a long sequence's budget to q, k, v and the output.
_SCORE_BYTES = 1 << 28


def to_compute(x: ms.Tensor, dtype: str) -> ms.Tensor:
    """x as a matrix product's operand in the compute dtype ("bfloat16_simulated": rounded, but stored in float32)."""
    if dtype == "bfloat16":
        return ops.cast(x, ms.bfloat16)
    if dtype == "bfloat16_simulated":
        return ops.cast(ops.cast(x, ms.bfloat16), ms.float32)
    return x


def linear(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor | None = None, dtype: str = "float32") -> ms.Tensor:
    """x (..., in) times w (out, in), plus b (out,)."""
    rows = ops.reshape(to_compute(x, dtype), (-1, x.shape[-1]))  # 2-D products are the faster kernel
    y = _matmul_bt(rows, to_compute(w, dtype))
    if b is not None:
        y = ops.bias_add(y, ops.cast(b, y.dtype))
    return ops.reshape(y, x.shape[:-1] + (w.shape[0],))


def rms_norm(x: ms.Tensor, scale: ms.Tensor, eps: float) -> ms.Tensor:
    """x / rms(x) * scale over the last axis, in float32."""
    x = ops.cast(x, ms.float32)
    if ON_ASCEND:
        return ops.rms_norm(x, scale, eps)[0]
    return x * ops.rsqrt(ops.mean(ops.square(x), -1, True) + eps) * scale


def layer_norm(x: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor, eps: float) -> ms.Tensor:
    """(x - mean) / std * scale + bias over the last axis, in float32."""
    x = ops.cast(x, ms.float32)
    return ops.LayerNorm(-1, -1, eps)(x, scale, bias)[0]


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
    return linear(ops.silu(linear(x, gate, None, dtype)) * linear(x, up, None, dtype), down, None, dtype)


def timestep_embedding(t: ms.Tensor, dim: int, max_period: float = 10000.0) -> ms.Tensor:
    """Sinusoids of t (b,): (b dim), cosines first, frequencies max_period^(-i / (dim/2))."""
    half = dim // 2
    # Constants worked out in python: the CPU kernel of exp is off by 4e-6, a thousandth of a radian at t = 1000.
    freqs = ms.Tensor([max_period ** (-i / half) for i in range(half)], ms.float32)
    angles = ops.reshape(ops.cast(t, ms.float32), (-1, 1)) * ops.reshape(freqs, (1, half))
    return ops.concat((ops.cos(angles), ops.sin(angles)), -1)


def spatial_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor, stride: int = 1, padding: int = 0) -> ms.Tensor:
    """Per-frame 2-D convolution of x (b c t h w) with w (out, in, k, k), zero padded."""
    # As a 3-D convolution with a kernel of one frame: no transposes, which cost more than the kernel's difference.
    return ops.conv3d(x, ops.expand_dims(w, 2), b, (1, stride, stride), "pad", (0, padding, padding))


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


def _softmax_rows(q: ms.Tensor, k: ms.Tensor, bias: ms.Tensor | None) -> ms.Tensor:
    scores = ops.cast(_bmm_bt(q, k), ms.float32)
    if bias is not None:
        scores = scores + bias
    return ops.cast(ops.softmax(scores, -1), q.dtype)


def attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: ms.Tensor | None = None) -> ms.Tensor:
    """Softmax attention, q (b h n d), k and v (b h m d), additive bias (b 1 1 m) or None -> (b h n d)."""
    q = q * (q.shape[-1] ** -0.5)  # scaling q is n*d work, scaling the scores n*m
    return _bmm(_softmax_rows(q, k, bias), v)
