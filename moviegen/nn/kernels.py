"""Operations with one form for the CPU and one for Ascend; no other file asks for the device.

A form of Ascend's has never run, for want of a card: it is compiled on a CPU as a card would be given it. There a primitive
should have a kernel of the library "aclnn"; the others' are compiled on the spot, for each shape.
"""

from typing import Any

import mindspore as ms
from mindspore import mint, ops

from moviegen.nn import backend, composed

# Read where an operation is called or compiled, never at import, so that `--job=audit_ascend` can set it on a CPU.
ON_ASCEND = backend.device() == "Ascend"

_bmm = ops.BatchMatMul()


def form(cpu: Any, ascend: Any) -> Any:
    """The one of two that this device runs."""
    return ascend if ON_ASCEND else cpu


# -- Elementwise and broadcast: CPU kernels are slow where they broadcast, and for the gradients of activations.
def repeated(x: ms.Tensor, times: tuple[int, ...]) -> ms.Tensor:
    """x as an operand that is to be broadcast `times` along each axis."""
    return x if ON_ASCEND else ops.tile(x, times)


def repeated_rows(row: ms.Tensor, n: int) -> ms.Tensor:
    """row (b 1 d) as an operand that is to be broadcast over n rows; on CPU a product with ones, whose gradient is fast."""
    return row if ON_ASCEND else _bmm(ops.ones((row.shape[0], n, 1), row.dtype), row)


def add_bias(y: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    """y (rows, n) + b (n,)."""
    return y + b if ON_ASCEND else ops.bias_add(y, b)


def silu(x: ms.Tensor) -> ms.Tensor:
    """x * sigmoid(x)."""
    return ops.silu(x) if ON_ASCEND else x * ops.sigmoid(x)


def gelu(x: ms.Tensor) -> ms.Tensor:
    """x * P(a standard normal number is less than x)."""
    return mint.nn.functional.gelu(x) if ON_ASCEND else 0.5 * x * (1 + ops.erf(x * 0.7071067811865476))


def gelu_tanh(x: ms.Tensor) -> ms.Tensor:
    """gelu by its approximation with tanh."""
    if ON_ASCEND:
        return mint.nn.functional.gelu(x, approximate="tanh")
    # 1 + tanh(z) = 2 sigmoid(2 z): the CPU kernel of gelu takes ten times torch's time.
    return x * ops.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


# -- Norms
def rms_norm(x: ms.Tensor, scale: ms.Tensor, eps: float) -> ms.Tensor:
    """x / rms(x) * scale over the last axis, all float32."""
    return ops.rms_norm(x, scale, eps)[0] if ON_ASCEND else composed.rms_norm(x, scale, eps)


def layer_norm(x: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor, eps: float) -> ms.Tensor:
    """(x - mean) / std * scale + bias over the last axis, all float32."""
    if ON_ASCEND:
        return ops.layer_norm(x, x.shape[-1:], scale, bias, eps)
    return ops.LayerNorm(-1, -1, eps)(x, scale, bias)[0]


# -- Attention
def attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, seen: ms.Tensor | None) -> ms.Tensor:
    """Softmax attention, shapes as in `layers.attention`."""
    if ON_ASCEND and q.dtype != ms.float32:  # which the fused kernel does not take
        b, h, n, d = q.shape
        hidden = None if seen is None else ops.tile(seen == 0, (1, 1, n, 1))
        return ops.flash_attention_score(q, k, v, h, attn_mask=hidden, scalar_value=d**-0.5, input_layout="BNSD")
    return composed.attention(q, k, v, seen)


# -- Gathers
def lookup(table: ms.Tensor, index: ms.Tensor) -> ms.Tensor:
    """Rows of a table (n d) at index (m,), in float32."""
    if ON_ASCEND:
        return ops.cast(ops.embedding(index, table), ms.float32)
    return ops.gather(ops.cast(table, ms.float32), index, 0)  # the CPU kernel has no bfloat16


# -- Types
def product_dtype(stored: str) -> str:
    """The dtype in which weights that are stored in one are multiplied: a CPU has no products in bfloat16."""
    return "float32" if stored == "bfloat16" and not ON_ASCEND else stored
