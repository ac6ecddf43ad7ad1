"""Operations with one form for the CPU and one for Ascend; no other file asks for the device.

A form of Ascend's has never run, for want of a card: it is compiled on a CPU as a card would be given it. There a primitive
should have a kernel of the library "aclnn"; the others' are compiled on the spot, for each shape.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint, nn, ops
from mindspore.ops.auto_generate import (
    Conv2DExt,
    Conv3DExt,
    GroupNorm,
    MeanExt,
    Narrow,
    ReduceMax,
    SplitWithSize,
    SumExt,
    UpsampleNearest3D,
)

from moviegen.nn import backend, composed, convolution, group_norm as norms

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


# -- Convolutions of video x (b c t h w): over space with w (out, in, k, k), over time with w (out, in, k)
# On Ascend with kernels of one frame, or of one pixel, which need no pictures; the CPU's forms are explained in convolution.py.

_conv2d, _conv3d, _upsample, _narrow, _split = Conv2DExt(), Conv3DExt(), UpsampleNearest3D(), Narrow(), SplitWithSize()


def spatial_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    """2-D convolution of every frame, k 1 or 3, zero padded to the same size."""
    if ON_ASCEND:
        pad = w.shape[2] // 2
        return _over_frames(x, w, b, (1, 1, 1), (0, pad, pad))
    return convolution.spatial_conv(x, w, b)


def halving_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    """3x3 convolution of every frame with stride 2; zeros at right and bottom alone, as the image VAE pads: even h -> h/2."""
    if ON_ASCEND:
        n, c, t, height, width = x.shape
        x = ops.concat((x, ops.zeros((n, c, t, height, 1), x.dtype)), 4)
        x = ops.concat((x, ops.zeros((n, c, t, 1, width + 1), x.dtype)), 3)
        return _over_frames(x, w, b, (1, 2, 2), (0, 0, 0))
    return convolution.halving_conv(x, w, b)


def doubling_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    """`spatial_conv` of every frame of x with its pixels repeated in 2x2 squares, w (out, in, 3, 3): h -> 2h."""
    if ON_ASCEND:
        t, height, width = x.shape[2:]
        return spatial_conv(_upsample(x, (t, 2 * height, 2 * width), None), w, b)
    return convolution.doubling_conv(x, w, b)


def temporal_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor, stride: int = 1) -> ms.Tensor:
    """Per-pixel 1-D convolution over time, k 1 or 3; end frames are repeated."""
    if ON_ASCEND:
        return _over_time(x if w.shape[2] == 1 else _repeat_ends(x), w, b, stride, 0)
    return convolution.temporal_conv(x, w, b, stride)


def temporal_doubling_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor, padding: str = "replicate") -> ms.Tensor:
    """Convolution over time of x with every frame repeated, w (out, in, 3): t -> 2t.

    padding "replicate" repeats the end frames; "zeros" is the seed's.
    """
    if ON_ASCEND:
        t, height, width = x.shape[2:]
        x = _upsample(x, (2 * t, height, width), None)
        return _over_time(x, w, b, 1, 1) if padding == "zeros" else temporal_conv(x, w, b)
    return convolution.temporal_doubling_conv(x, w, b, padding)


def _over_frames(x, w, b, stride, padding):
    return _conv3d(x, ops.expand_dims(w, 2), b, stride, padding, (1, 1, 1), 1)


def _over_time(x, w, b, stride, padding):
    w = ops.reshape(w, (*w.shape, 1, 1))
    return _conv3d(x, w, b, (stride, 1, 1), (padding, 0, 0), (1, 1, 1), 1)


class _RepeatEnds(nn.Cell):
    """x (b c t h w) with its first and last frame once more.

    The gradient that MindSpore composes pads both frames' with zeros to the whole size and adds three of them.
    """

    def construct(self, x):
        return ops.concat((_narrow(x, 2, 0, 1), x, _narrow(x, 2, x.shape[2] - 1, 1)), 2)

    def bprop(self, x, out, dout):
        t = x.shape[2]
        if t == 1:
            before, at, after = _split(dout, (1, 1, 1), 2)
            return (before + at + after,)
        if t == 2:
            before, first, last, after = _split(dout, (1, 1, 1, 1), 2)
            return (ops.concat((before + first, last + after), 2),)
        before, first, inner, last, after = _split(dout, (1, 1, t - 2, 1, 1), 2)
        return (ops.concat((before + first, inner, last + after), 2),)


_repeat_ends = _RepeatEnds()


def picture_conv(x: ms.Tensor, w: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    """3x3 convolution of pictures x (n c h w), zero padded to the same size."""
    if ON_ASCEND:
        return _conv2d(x, w, b, (1, 1), (1, 1), (1, 1), 1)
    return ops.conv2d(x, w, b, 1, "pad", 1)


# -- GroupNorm, pooling and sums

_group_norm, _reduce_max, _sum, _mean = GroupNorm(), ReduceMax(), SumExt(), MeanExt()
_max_pool = ops.MaxPool(kernel_size=2, strides=2, pad_mode="valid")


def group_norm(x: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor, groups: int, eps: float = 1e-6) -> ms.Tensor:
    """GroupNorm of x (b c t h w), statistics over (c / groups, t, h, w), in float32."""
    if ON_ASCEND:
        return _group_norm(ops.cast(x, ms.float32), groups, scale, bias, eps)[0]
    return norms.group_norm(x, scale, bias, groups, eps)


def group_norm_silu(x: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor, groups: int, eps: float = 1e-6) -> ms.Tensor:
    """silu(group_norm(x)), in float32."""
    if ON_ASCEND:
        return ops.silu(group_norm(x, scale, bias, groups, eps))
    return norms.group_norm_silu(x, scale, bias, groups, eps)


def halve(x: ms.Tensor) -> ms.Tensor:
    """The largest of each 2x2 square of pictures x (n c h w); an odd last row or column is left out."""
    if ON_ASCEND:  # Its MaxPool takes no float32 (mindyolo, pull request 346). Equal values share the gradient.
        n, c, h, w = x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2
        x = x if x.shape[2] == 2 * h else _narrow(x, 2, 0, 2 * h)
        x = x if x.shape[3] == 2 * w else _narrow(x, 3, 0, 2 * w)
        return _reduce_max(ops.reshape(x, (n, c, h, 2, w, 2)), (3, 5))
    return _max_pool(x)


def sums(x: ms.Tensor, axis: int) -> ms.Tensor:
    """Sums of x (n c m) over axis 1 or 2, which stays with length 1."""
    if ON_ASCEND:
        return _sum(x, (axis,), True, None)
    # A product with ones: several times as fast on CPU.
    n, c, m = x.shape
    return _bmm(ops.ones((n, 1, c), x.dtype), x) if axis == 1 else _bmm(x, ops.ones((n, m, 1), x.dtype))


def mean(x: ms.Tensor, axis: int | None = None, keepdims: bool = False) -> ms.Tensor:
    """Mean of x over an axis, or of all of it."""
    return _mean(x, None if axis is None else (axis,), keepdims, None) if ON_ASCEND else ops.mean(x, axis, keepdims)


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


# -- Exchanges
def overlaps() -> bool:
    """Whether exchanges run on a stream of their own, beside what computes; on a CPU they take the cores that compute."""
    return ON_ASCEND


# -- Host memory keeps what a card has no room for; copies there and back run on streams of their own, both at once.


def to_host(array: np.ndarray) -> Any:
    """An array as it is kept in host memory: pinned on Ascend, where the card copies it by itself; else as it is."""
    return ms.Tensor(array).pin_memory() if ON_ASCEND else array


def in_host(x: Any) -> bool:
    """Whether `to_host` made it."""
    return isinstance(x, np.ndarray) or x.is_pinned()


def fetch(kept: Sequence[Any]) -> list[ms.Tensor]:
    """Tensors on the device of what is kept in host memory; to be used after the next `meet`."""
    if ON_ASCEND:
        return _beside(0, lambda: [x.to("Ascend", non_blocking=True) for x in kept])
    return [backend.tensor(x) for x in kept]


def store(kept: Sequence[Any], tensors: Sequence[ms.Tensor]) -> None:
    """Takes tensors back to where they are kept; they must live until the next `meet`."""
    if ON_ASCEND:
        _beside(1, lambda: [x.copy_(tensor, non_blocking=True) for x, tensor in zip(kept, tensors, strict=True)])
        return
    for x, tensor in zip(kept, tensors, strict=True):
        x[...] = tensor.asnumpy()


def meet() -> None:
    """What is computed from here on comes after the copies that were begun before."""
    if ON_ASCEND:
        for stream in _copying():
            ms.runtime.current_stream().wait_stream(stream)


def all_stored() -> None:
    """Returns when host memory holds what was taken back to it: the one time that a step waits for copies."""
    if _copying.cache_info().currsize:  # something was copied
        _copying()[1].synchronize()


@functools.cache
def _copying() -> tuple[Any, Any]:
    """Streams of the copies from host memory and of those back."""
    return ms.runtime.Stream(), ms.runtime.Stream()


def _beside(way: int, copy: Callable[[], Any]) -> Any:
    stream = _copying()[way]
    stream.wait_stream(ms.runtime.current_stream())
    with ms.runtime.StreamCtx(stream):
        return copy()
