"""The compiled stages of the transformer: start, context, one block for every layer, epilogue.

What sees the text alone is apart from what sees the latents: sampling computes it once for all steps, and neither's lengths
make more graphs of the other. Tokens are float32 between
stages; matrix products run in `dtype`, norms, softmax, modulation and positions in float32.
"""

import functools
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.models.transformer.block import block_parts, make_block, make_keyed_block, make_keys, modulate
from moviegen.models.transformer.shapes import TIME_WIDTH, SequenceShard, encoders
from moviegen.nn import backend, kernels, layers
from moviegen.nn.layerwise import Fn, Part
from moviegen.parallel import collectives
from moviegen.parallel.comm import Comm


class Stages(NamedTuple):
    """The stages that see latents, the epilogue also as a loss; `keyed` is a block that is given the text's keys and values.

    `parts` are those that `block` is composed of.
    """

    start: Fn
    block: Fn
    keyed: Fn
    epilogue: Fn
    loss: Fn
    parts: tuple[Part, ...]


def build(cfg: Any, shape: tuple[int, ...], masked: bool, comm: Comm) -> Stages:
    """The stages for latents of `shape` (b c t h w), with text that is `masked` or not."""
    dtype = backend.check_compute_dtype(cfg.get("compute_dtype", "float32"))
    eps, patch = cfg.norm_eps, tuple(cfg.patch_size)
    shard = SequenceShard(tuple(n // p for n, p in zip(shape[2:], patch, strict=True)), comm.sequence)
    of_block = cfg.num_heads, shard.patches, shard.group, eps, cfg.cross_attention_norm, masked, dtype
    return Stages(
        make_start(patch, shard, dtype),
        make_block(*of_block),
        make_keyed_block(*of_block),
        make_epilogue(patch, shard, eps, dtype),
        make_loss(patch, shard, comm.batches, eps, dtype),
        block_parts(*of_block),
    )


def build_text(cfg: Any, masked: bool) -> tuple[Fn, Fn]:
    """The stages that see the text alone: its context, and a layer's keys and values."""
    dtype = backend.check_compute_dtype(cfg.get("compute_dtype", "float32"))
    context = make_context(encoders(cfg), cfg.text_norm, cfg.norm_eps, masked, dtype)
    return context, make_keys(cfg.num_heads, "cross", dtype)


def patchify(latents, patch, channels_first):
    """latents (b c t h w) -> tokens (b n c*p0*p1*p2), features in order (c p0 p1 p2) or, else, (p0 p1 p2 c)."""
    b, c, t, h, w = latents.shape
    p0, p1, p2 = patch
    x = ops.reshape(latents, (b, c, t // p0, p0, h // p1, p1, w // p2, p2))
    order = (0, 2, 4, 6, 1, 3, 5, 7) if channels_first else (0, 2, 4, 6, 3, 5, 7, 1)
    return ops.reshape(ops.transpose(x, order), (b, -1, c * p0 * p1 * p2))


def unpatchify(tokens, patch, grid):
    """tokens (b n p0*p1*p2*c) on a grid (nt, nh, nw) -> latents (b c t h w)."""
    p0, p1, p2 = patch
    nt, nh, nw = grid
    b, c = tokens.shape[0], tokens.shape[2] // (p0 * p1 * p2)
    x = ops.transpose(ops.reshape(tokens, (b, nt, nh, nw, p0, p1, p2, c)), (0, 7, 1, 4, 2, 5, 3, 6))
    return ops.reshape(x, (b, c, nt * p0, nh * p1, nw * p2))


@functools.lru_cache
def make_take(shard):
    """take(tokens (b n f)): this rank's tokens (b m f) of a whole sequence, padded with zeros."""
    if shard.group.size == 1:
        return lambda tokens: tokens
    start, padding = shard.group.rank * shard.tokens, shard.padding
    stop = start + shard.tokens

    def take(tokens):
        if padding:
            tokens = ops.concat((tokens, ops.zeros((tokens.shape[0], padding, tokens.shape[2]), tokens.dtype)), 1)
        return layers.cut(tokens, start, stop, 1)

    return take


@functools.lru_cache
def make_positions(shard):
    """positions(p): learned position of each of this rank's tokens, (1 m d), the sum of a row of each axis's table."""
    boxes = shard.boxes()
    padding = int((shard.indices() >= shard.patches).sum())

    def positions(p):
        t, h, w = p["position/t"], p["position/h"], p["position/w"]
        found = []
        for (t0, t1), (h0, h1), (w0, w1) in boxes:
            frames = ops.reshape(layers.cut(t, t0, t1, 0), (t1 - t0, 1, 1, -1))
            frame = ops.reshape(layers.cut(h, h0, h1, 0), (h1 - h0, 1, -1)) + layers.cut(w, w0, w1, 0)
            found.append(ops.reshape(frames + frame, (1, (t1 - t0) * (h1 - h0) * (w1 - w0), -1)))
        if padding:
            found.append(ops.zeros((1, padding, t.shape[1]), t.dtype))
        return ops.concat(found, 1) if len(found) > 1 else found[0]

    return positions


@functools.lru_cache
def make_start(patch, shard, dtype):
    """start(p, latents (b c t h w), t (b,)) -> this rank's tokens (b n d), positions (1 n d), time (b d), (b 6d) modulation."""
    take, positions = make_take(shard), make_positions(shard)

    def start(p, latents, t):
        x = layers.linear(take(patchify(latents, patch, True)), p["patch"], None, dtype)
        pos = positions(p)
        wave = layers.timestep_embedding(1000 * (1 - t), TIME_WIDTH)  # the seed's time runs from 1000, noise, to 0
        time = layers.linear(ops.silu(layers.linear(wave, p["time/in"])), p["time/out"])
        modulation = layers.linear(ops.silu(time), p["modulation"])
        return ops.cast(x, ms.float32), pos, time, modulation

    return start


@functools.lru_cache
def make_context(encoders, text_norm, eps, masked, dtype):
    """context(p, *embeddings (b l width)[, mask (b m 1)[, rows (b m)]]) -> context (b m d), the tokens of all encoders.

    It is zero where the mask is: a token nobody may see has no value either. With rows it is those of all encoders' tokens.
    """
    texts = tuple(f"text/{name}" for name in encoders)

    def context(p, *text):
        projected = []
        for i, path in enumerate(texts):
            y = layers.linear(text[i], p[path + "/proj"], None, dtype)
            if text_norm == "layer":
                y = layers.layer_norm(y, p[path + "/norm"], p[path + "/norm_bias"], eps)
            else:
                y = layers.rms_norm(y, p[path + "/norm"], eps)
            projected.append(y)
        found = ops.concat(projected, 1)
        if len(text) > len(encoders) + 1:
            b, _, d = found.shape
            rows = ops.reshape(text[len(encoders) + 1], (-1,))
            found = ops.reshape(kernels.lookup(ops.reshape(found, (-1, d)), rows), (b, -1, d))
        if masked:
            found = found * kernels.repeated(text[len(encoders)], (1, 1, found.shape[2]))
        return found

    return context


def project_out(p, x, time, eps, dtype):
    """tokens (b n d), time (b d) -> velocity of every patch in float32, (b n p0*p1*p2*c)."""
    b, _, d = x.shape
    shift, scale = layers.pieces(ops.reshape(time, (b, 1, d)) + p["modulation"], 2, 1)
    y = modulate(layers.rms_norm(x, p["norm"], eps), shift, scale)
    return ops.cast(layers.linear(y, p["proj"], None, dtype), x.dtype)


@functools.lru_cache
def make_epilogue(patch, shard, eps, dtype):
    """epilogue(p, x (b n d), time (b d)) -> velocity (b c t h w), whole on every rank of a sequence."""
    gather, patches, grid = collectives.all_gather(shard.group, 1), shard.patches, shard.grid

    def epilogue(p, x, time):
        return unpatchify(layers.cut(gather(project_out(p, x, time, eps, dtype)), 0, patches, 1), patch, grid)

    return epilogue


@functools.lru_cache
def make_loss(patch, shard, batches, eps, dtype):
    """loss(p, x (b n d), time (b d), target (b c t h w)) -> this rank's term of the mean squared error, and each sample's (b,).

    The mean over `batches` as large as this one and all ranks of a sequence is the sum of all ranks' terms.
    """
    take, patches, padding = make_take(shard), shard.patches, shard.padding
    real = ms.Tensor((shard.indices() < shard.patches).astype(np.float32).reshape(1, -1, 1))

    def loss(p, x, time, target):
        wanted = take(patchify(target, patch, False))
        error = project_out(p, x, time, eps, dtype) - wanted
        if padding:
            error = error * real
        count = batches * wanted.shape[0] * patches * wanted.shape[2]
        return layers.square_sum(error) / count, layers.square_sums(error) / count

    return loss
