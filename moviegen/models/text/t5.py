"""T5's encoder as pure functions: ByT5 (gated gelu) and UL2 (gated silu). Source: arXiv 1910.10683; gates: 2002.05202.

Attention has no scaling but a learned bias for every distance. The residual, norms and softmax are float32; weights may be
stored in bfloat16 and are widened a block at a time where products are taken in float32.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.errors import ConfigError
from moviegen.models.text.shapes import t5 as shapes
from moviegen.nn import backend, kernels, layers, layerwise, tree
from moviegen.parallel import zero
from moviegen.parallel.comm import LOCAL, Comm

MASKED = -1e9


def apply(params: Mapping[str, Any], cfg: Any, input_ids: Any, attention_mask: Any, comm: Comm = LOCAL) -> ms.Tensor:
    """Embeddings float32 (b l width) of token ids (b l); attention_mask (b l), 1 = token. Nothing attends to the rest.

    Where comm.sharded, params are shards, put together a block at a time: the ranks must call this equally often,
    each with texts of its own. Raises ConfigError for parameters or ids that do not fit the config.
    """
    ids, mask = check_tokens(params, shapes(cfg), cfg.vocab_size, input_ids, attention_mask)
    dtype = backend.check_compute_dtype(cfg.get("compute_dtype", "float32"))
    weights = zero.by_layer(params, comm.all_gather, cfg.num_layers)
    buckets = distance_buckets(ids.shape[1], cfg.distance_buckets, cfg.max_distance)
    x, bias = layerwise.run(make_prologue(cfg.num_heads), weights(), ids, mask, buckets)
    block = make_block(cfg.num_heads, cfg.activation, cfg.norm_eps, dtype)
    for _ in range(cfg.num_layers):
        x = layerwise.run(block, weights(), x, bias)
    return layerwise.run(make_epilogue(cfg.norm_eps), weights(), x)


def distance_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket int32 (l l) of the distance from each query (row) to each key (column).

    Half of the buckets are for keys before the query, half for keys after; in each half the first half is one distance
    each, the rest grows logarithmically up to max_distance, beyond which all share the last.
    """
    at = np.arange(length)
    distance = at[None, :] - at[:, None]
    half = buckets // 2
    exact = half // 2
    far = np.maximum(abs(distance), 1).astype(np.float32) / np.float32(exact)
    steps = np.log(far) / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    near = abs(distance) < exact
    found = np.where(near, abs(distance), np.minimum(exact + steps.astype(np.int32), half - 1))
    return (found + half * (distance > 0)).astype(np.int32)


def check_tokens(
    params: Mapping[str, Any], table: Mapping[str, Any], vocab_size: int, input_ids: Any, attention_mask: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 and mask float32, both (b l), as arrays. Raises ConfigError where something does not fit."""
    tree.check_paths(params, table)
    ids, mask = (np.asarray(x.asnumpy() if isinstance(x, ms.Tensor) else x) for x in (input_ids, attention_mask))
    if ids.ndim != 2 or mask.shape != ids.shape:
        raise ConfigError(f"input_ids have shape {ids.shape}, the mask {mask.shape}: expected the same (b l) for both")
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ConfigError(
            f"input_ids go from {ids.min()} to {ids.max()}, the model's vocabulary from 0 to {vocab_size - 1}: "
            "the tokenizer is of another model"
        )
    return ids.astype(np.int32), mask.astype(np.float32)


def linear(x: ms.Tensor, w: ms.Tensor, dtype: str, b: ms.Tensor | None = None) -> ms.Tensor:
    """x (..., in) times a weight (out, in), stored in whatever precision, plus b (out,), in float32."""
    w = ops.cast(w, ms.float32) if dtype == "float32" else w
    return ops.cast(layers.linear(x, w, b, dtype), ms.float32)


def attend(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: ms.Tensor, num_heads: int, dtype: str) -> ms.Tensor:
    """softmax(q k' + bias) v of q, k and v (b l heads*width), bias (b heads l l) -> (b l heads*width), float32."""
    b, n, inner = q.shape

    def heads(y):
        return ops.transpose(ops.reshape(layers.to_compute(y, dtype), (b, n, num_heads, -1)), (0, 2, 1, 3))

    scores = ops.cast(ops.BatchMatMul(transpose_b=True)(heads(q), heads(k)), ms.float32) + bias
    p = layers.to_compute(ops.Softmax(-1)(scores), dtype)
    y = ops.cast(ops.BatchMatMul()(p, heads(v)), ms.float32)
    return ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (b, n, inner))


@functools.lru_cache
def make_prologue(num_heads):
    """prologue(p, ids (b l), mask (b l), buckets (l l)) -> x (b l d), bias of the scores (b heads l l)."""

    def prologue(p, ids, mask, buckets):
        b, n = ids.shape
        x = ops.reshape(kernels.lookup(p["embedding"], ops.reshape(ids, (-1,))), (b, n, -1))
        distance = ops.reshape(kernels.lookup(p["distance"], ops.reshape(buckets, (-1,))), (n, n, num_heads))
        distance = ops.expand_dims(ops.transpose(distance, (2, 0, 1)), 0)
        unseen = ops.reshape((1 - mask) * MASKED, (b, 1, 1, n))
        return x, kernels.repeated(distance, (b, 1, 1, 1)) + kernels.repeated(unseen, (1, num_heads, n, 1))

    return prologue


@functools.lru_cache
def make_block(num_heads, activation, eps, dtype):
    """block(p, x (b l d), bias (b heads l l)) -> x (b l d)."""

    def block(p, x, bias):
        y = layers.rms_norm(x, ops.cast(p["attn/norm"], ms.float32), eps)
        q, k, v = linear(y, p["attn/q"], dtype), linear(y, p["attn/k"], dtype), linear(y, p["attn/v"], dtype)
        x = x + linear(attend(q, k, v, bias, num_heads, dtype), p["attn/o"], dtype)
        y = layers.rms_norm(x, ops.cast(p["mlp/norm"], ms.float32), eps)
        gate = linear(y, p["mlp/gate"], dtype)
        gate = kernels.gelu_tanh(gate) if activation == "gelu" else kernels.silu(gate)
        return x + linear(gate * linear(y, p["mlp/up"], dtype), p["mlp/down"], dtype)

    return block


@functools.lru_cache
def make_epilogue(eps):
    """epilogue(p, x (b l d)) -> embeddings (b l d)."""

    def epilogue(p, x):
        return layers.rms_norm(x, ops.cast(p["norm"], ms.float32), eps)

    return epilogue
