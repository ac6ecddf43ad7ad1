"""CLIP's text tower (arXiv 2103.00020; MetaCLIP: 2309.16671): causal, pre-norm, projected to the shared space."""

import functools
from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.errors import ConfigError
from moviegen.models.text.shapes import clip as shapes
from moviegen.models.text.t5 import MASKED, attend, check_tokens, linear
from moviegen.nn import backend, kernels, layers, layerwise
from moviegen.parallel import zero
from moviegen.parallel.comm import LOCAL, Comm

KEPT_POSITIONS = 20  # the first rows of a position table, which training on short captions has shaped most


def stretch_positions(table: np.ndarray, length: int) -> np.ndarray:
    """A position table (old, d) as (length, d), length >= old, float32: how a 77-token checkpoint takes longer prompts.

    The first 20 rows stay, so that prompts up to there embed as before; the others are interpolated linearly, the last
    one staying last (Long-CLIP, arXiv 2403.15378).
    """
    table = np.asarray(table, np.float32)
    if len(table) >= length:
        return table
    kept = min(KEPT_POSITIONS, len(table) - 1)
    return np.concatenate([table[:kept], layers.resize_table(table[kept:], length - kept)])


def apply(
    params: Mapping[str, Any], cfg: Any, input_ids: Any, attention_mask: Any, comm: Comm = LOCAL
) -> tuple[ms.Tensor, ms.Tensor]:
    """(last_hidden_state (b l width), the end token's projected (b projection_width)), float32, of token ids (b l).

    Masks, shards and errors as in `t5.apply`; ConfigError also for more tokens than there are positions.
    """
    ids, mask = check_tokens(params, shapes(cfg), cfg.vocab_size, input_ids, attention_mask)
    if ids.shape[1] > cfg.positions:
        raise ConfigError(f"input_ids have {ids.shape[1]} tokens, the model {cfg.positions} positions: cut the text")
    dtype = backend.check_compute_dtype(cfg.get("compute_dtype", "float32"))
    weights = zero.by_layer(params, comm.all_gather, cfg.num_layers)
    x, bias = layerwise.run(make_prologue(cfg.num_heads), weights(), ids, mask)
    block = make_block(cfg.num_heads, cfg.activation, cfg.norm_eps, dtype)
    for _ in range(cfg.num_layers):
        x = layerwise.run(block, weights(), x, bias)
    return layerwise.run(make_epilogue(cfg.norm_eps, dtype), weights(), x, _end_tokens(ids, cfg.end_token))


def _end_tokens(ids: np.ndarray, end: int) -> np.ndarray:
    """Where each text's first end token is, as rows of (b*l); configs of old say 2 and mean the largest id."""
    at = ids.argmax(1) if end == 2 else (ids == end).argmax(1)
    return (at + np.arange(len(ids)) * ids.shape[1]).astype(np.int32)


@functools.lru_cache
def make_prologue(num_heads):
    """prologue(p, ids (b l), mask (b l)) -> x (b l d), bias of the scores (b heads l l): causal, and no padding."""

    def prologue(p, ids, mask):
        b, n = ids.shape
        position = ops.expand_dims(layers.cut(ops.cast(p["position/token"], ms.float32), 0, n, 0), 0)
        x = ops.reshape(kernels.lookup(p["embedding"], ops.reshape(ids, (-1,))), (b, n, -1))
        x = x + kernels.repeated(position, (b, 1, 1))
        later = ms.Tensor(np.triu(np.full((1, 1, n, n), MASKED, np.float32), 1))
        unseen = ops.reshape((1 - mask) * MASKED, (b, 1, 1, n))
        return x, kernels.repeated(later, (b, num_heads, 1, 1)) + kernels.repeated(unseen, (1, num_heads, n, 1))

    return prologue


@functools.lru_cache
def make_block(num_heads, activation, eps, dtype):
    """block(p, x (b l d), bias (b heads l l)) -> x (b l d)."""

    def affine(x, p, name):
        return linear(x, p[name + "/w"], dtype, ops.cast(p[name + "/b"], ms.float32))

    def block(p, x, bias):
        y = norm(x, p["attn/norm/scale"], p["attn/norm/bias"], eps)
        q = affine(y, p, "attn/q") * (x.shape[2] // num_heads) ** -0.5
        y = attend(q, affine(y, p, "attn/k"), affine(y, p, "attn/v"), bias, num_heads, dtype)
        x = x + affine(y, p, "attn/o")
        y = affine(norm(x, p["mlp/norm/scale"], p["mlp/norm/bias"], eps), p, "mlp/up")
        y = y * ops.sigmoid(1.702 * y) if activation == "quick_gelu" else kernels.gelu(y)
        return x + affine(y, p, "mlp/down")

    return block


def norm(x, scale, bias, eps):
    return layers.layer_norm(x, ops.cast(scale, ms.float32), ops.cast(bias, ms.float32), eps)


@functools.lru_cache
def make_epilogue(eps, dtype):
    """epilogue(p, x (b l d), rows of the end tokens (b,)) -> last_hidden_state (b l d), text_embeds (b e)."""

    def epilogue(p, x, ends):
        x = norm(x, p["norm/scale"], p["norm/bias"], eps)
        pooled = kernels.lookup(ops.reshape(x, (-1, x.shape[2])), ends)
        return x, linear(pooled, p["projection"], dtype)

    return epilogue
