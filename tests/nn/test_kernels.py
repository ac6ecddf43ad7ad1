"""Both forms of every operation against each other, values and gradients; stand-ins take what the CPU has no kernel for."""

import contextlib

import mindspore as ms
import numpy as np
import pytest
from mindspore import mint, ops

from moviegen.nn import composed, kernels, layerwise
from tests.numeric import assert_close

# MindSpore compiles what has a name and lines of its own.


def repeated(p, x, y):
    return x * kernels.repeated(y, (2, 1, 1))


def repeated_rows(p, x, y):
    return x * kernels.repeated_rows(y, x.shape[1]) + kernels.repeated_rows(1 + y, x.shape[1])


def add_bias(p, x, b):
    return kernels.add_bias(x, b)


def silu(p, x):
    return kernels.silu(x)


def gelu(p, x):
    return kernels.gelu(x)


def gelu_tanh(p, x):
    return kernels.gelu_tanh(x)


def rms_norm(p, x, scale):
    return kernels.rms_norm(x, scale, 1e-3)


def layer_norm(p, x, scale, bias):
    return kernels.layer_norm(x, scale, bias, 1e-3)


def lookup(p, table):
    return kernels.lookup(table, ops.cast(ms.Tensor([2, 0, 2]), ms.int32))


def attention(p, q, k, v):
    return kernels.attention(q, k, v, None)


def attention_with_a_mask(p, q, k, v):
    return kernels.attention(q, k, v, ms.Tensor([[1, 1, 0], [0, 1, 1]], ms.float32).reshape(2, 1, 1, 3))


HEADS = ((2, 2, 5, 4), (2, 2, 3, 4), (2, 2, 3, 4))
CASES = {
    repeated: ((2, 3, 4), (1, 3, 4)),
    repeated_rows: ((2, 3, 4), (2, 1, 4)),
    add_bias: ((3, 4), (4,)),
    silu: ((3, 4),),
    gelu: ((3, 4),),
    gelu_tanh: ((3, 4),),
    rms_norm: ((2, 3, 4), (4,)),
    layer_norm: ((2, 3, 4), (4,), (4,)),
    lookup: ((3, 4),),
    attention: HEADS,
    attention_with_a_mask: HEADS,
}


def results(function):
    rng = np.random.default_rng(0)
    dtype = np.float16 if function in (attention, attention_with_a_mask) else np.float32
    given = [rng.standard_normal(shape).astype(dtype) for shape in CASES[function]]
    out, pullback = layerwise.vjp(function, {}, *given)
    return [out, *pullback(rng.standard_normal(out.shape).astype(dtype))[1]]


def fused_attention(q, k, v, head_num, attn_mask=None, scalar_value=1.0, input_layout="BSH"):
    """What the kernel computes, where `attn_mask` (b 1 n m) is True for what is left out."""
    assert input_layout == "BNSD" and head_num == q.shape[1] and scalar_value == q.shape[3] ** -0.5
    if attn_mask is None:
        return composed.attention(q, k, v, None)
    assert attn_mask.shape == (q.shape[0], 1, q.shape[2], k.shape[2]) and attn_mask.dtype == ms.bool_
    return composed.attention(q, k, v, 1 - ops.cast(attn_mask[:, :, :1], q.dtype))


def fused_rms_norm(x, scale, eps):
    return composed.rms_norm(x, scale, eps), None


def fused_layer_norm(x, shape, scale, bias, eps):
    assert shape == x.shape[-1:]
    return ops.LayerNorm(-1, -1, eps)(x, scale, bias)[0]


def fused_gelu(x, approximate="none"):
    return ops.gelu(x, approximate=approximate)


def embedding(index, table):
    return ops.gather(table, index, 0)


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_the_forms_agree(function, monkeypatch, request):
    expected = results(function)
    for name, stand_in in (
        ("flash_attention_score", fused_attention),
        ("rms_norm", fused_rms_norm),
        ("layer_norm", fused_layer_norm),
        ("embedding", embedding),
    ):
        monkeypatch.setattr(ops, name, stand_in)
    monkeypatch.setattr(mint.nn.functional, "gelu", fused_gelu)
    request.getfixturevalue("ascend_forms")
    for found, wanted in zip(results(function), expected, strict=True):
        assert found.dtype == wanted.dtype
        assert_close(found, wanted.asnumpy(), tolerance=1e-2 if found.dtype == ms.float16 else 1e-5)


def test_a_form_is_chosen_whenever_a_graph_is_compiled(request):
    """And not once for all when a module is imported, or when MindSpore has parsed a function."""
    x, one = np.ones((2, 4), np.float32), np.ones(4, np.float32)
    before = layerwise.run(layer_norm, {}, x, one, one).asnumpy()
    with request.getfixturevalue("monkeypatch").context() as patch:
        patch.setattr(kernels, "ON_ASCEND", True)
        layerwise._forward.cache_clear()
        with pytest.raises(RuntimeError, match="LayerNormExt"):  # the CPU has none
            layerwise.run(layer_norm, {}, x, one, one)
    layerwise._forward.cache_clear()
    np.testing.assert_array_equal(layerwise.run(layer_norm, {}, x, one, one).asnumpy(), before)
    assert kernels.form("cpu", "ascend") == "cpu"


def test_copies_to_host_memory_and_back_run_on_streams_of_their_own(monkeypatch):
    events, current = [], ["computing"]

    class Stream:
        made = iter(("there", "back"))

        def __init__(self, name=None):
            self.name = name or next(self.made)

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

        def synchronize(self):
            events.append(f"host waits for {self.name}")

    @contextlib.contextmanager
    def stream_ctx(stream):
        current.append(stream.name)
        yield
        current.pop()

    class Tensor:
        def __init__(self, array, pinned=False):
            self.array, self.pinned = array, pinned

        def pin_memory(self):
            return Tensor(self.array, True)

        def is_pinned(self):
            return self.pinned

        def to(self, device, non_blocking):
            assert device == "Ascend" and non_blocking and self.pinned
            events.append(f"fetched on {current[-1]}")
            return Tensor(self.array.copy())

        def copy_(self, other, non_blocking):
            assert non_blocking and self.pinned and not other.pinned
            events.append(f"stored on {current[-1]}")

    monkeypatch.setattr(kernels, "ON_ASCEND", True)
    monkeypatch.setattr(ms, "Tensor", Tensor)
    monkeypatch.setattr(ms.runtime, "Stream", Stream)
    monkeypatch.setattr(ms.runtime, "StreamCtx", stream_ctx)
    monkeypatch.setattr(ms.runtime, "current_stream", lambda: Stream("computing"))
    kernels._copying.cache_clear()
    kept = [kernels.to_host(np.zeros(2, np.float32))]
    found = kernels.fetch(kept)
    kernels.meet()
    kernels.store(kept, found)
    kernels.all_stored()
    kernels._copying.cache_clear()
    assert kernels.in_host(kept[0]) and not kernels.in_host(found[0])
    assert events == [
        *("there waits for computing", "fetched on there"),
        *("computing waits for there", "computing waits for back"),
        *("back waits for computing", "stored on back", "host waits for back"),
    ]
