"""Movie Gen's generator: a transformer that maps noisy latents, a time and text to the velocity of a flow.

A LLaMa-3 block (RMSNorm, SwiGLU, no biases) with full attention, cross-attention to three text encoders, and time
entering through one modulation shared by all layers plus a table per layer (paper, section 3). Learned positions,
factorised over time, height and width, are added at the start of every layer. `cross_attention_norm` and `text_norm`
choose between the paper's arithmetic (True, "layer") and that of the seed's checkpoints (False, "rms").
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen import flow, streams
from moviegen.errors import ConfigError
from moviegen.models.transformer import stages
from moviegen.nn import backend, layerwise, tree
from moviegen.nn.positions import resize_table
from moviegen.parallel import zero
from moviegen.parallel.comm import LOCAL, Comm
from moviegen.streams import Stream

Params = dict[str, ms.Tensor]
Text = Mapping[str, tuple[Any, Any]]
ENCODERS = ("ul2", "metaclip", "byt5")  # order of their tokens in the context
AXES = ("t", "h", "w")
CONTEXT_STEP = 64  # tokens that the packed context grows by: every length is a graph of its own


def shapes(cfg: Any) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter. Raises ConfigError for a config of which no model can be built."""
    _check_config(cfg)
    d, patch = cfg.hidden_size, cfg.latent_channels * int(np.prod(cfg.patch_size))
    table = {
        "patch": (d, patch),
        **{f"position/{axis}": (length, d) for axis, length in zip(AXES, cfg.position_lengths, strict=True)},
        "time/in": (d, stages.TIME_WIDTH),
        "time/out": (d, d),
        "modulation": (6 * d, d),
    }
    for name in _encoders(cfg):
        table |= {f"text/{name}/proj": (d, cfg.text_dims[name]), f"text/{name}/norm": (d,)}
        if cfg.text_norm == "layer":
            table[f"text/{name}/norm_bias"] = (d,)
    for i in range(cfg.num_layers):
        block = {"modulation": (6, d), "attn/norm": (d,), "mlp/norm": (d,)}
        block |= {f"{part}/{name}": (d, d) for part in ("attn", "cross") for name in "qkvo"}
        if cfg.cross_attention_norm:
            block["cross/norm"] = (d,)
        block |= {"mlp/gate": (cfg.ffn_size, d), "mlp/up": (cfg.ffn_size, d), "mlp/down": (d, cfg.ffn_size)}
        table |= tree.join({f"blocks/{i}": block})
    return table | {"final/modulation": (2, d), "final/norm": (d,), "final/proj": (patch, d)}


def init(cfg: Any, seed: int, place: Callable[[str, np.ndarray], ms.Tensor] | None = None) -> Params:
    """Random parameters: matrices N(0, weight_std), positions N(0, position_std), tables of modulation N(0, 1/d).

    Both deviations are 0.02 unless the config has others. The output projection is zero, so the velocity is 0.

    Each is drawn from (seed, its path) alone: adding a parameter changes no other. `place(path, array)` makes a tensor of
    each before the next is drawn, so that a rank can keep its shard and never hold the whole model.
    """
    params = {}
    for path, shape in shapes(cfg).items():
        rng = streams.rng(Stream.PARAMETER, seed, zlib.crc32(path.encode()))
        if path.endswith("/norm"):
            value = np.ones(shape, np.float32)
        elif path.endswith("/norm_bias") or path in ("modulation", "final/proj"):
            value = np.zeros(shape, np.float32)
        else:
            if path.endswith("/modulation"):
                std = cfg.hidden_size**-0.5
            else:
                std = cfg.get("position_std" if path.startswith("position/") else "weight_std", 0.02)
            value = np.float32(std) * rng.standard_normal(shape, dtype=np.float32)
        params[path] = place(path, value) if place else backend.tensor(value)
    return params


def interpolate_positions(params: Mapping[str, Any], cfg: Any) -> Params:
    """The same parameters with position tables of cfg.position_lengths, for a next stage of larger clips."""
    grown = backend.to_tensors(params)
    for axis, length in zip(AXES, cfg.position_lengths, strict=True):
        path = f"position/{axis}"
        if grown[path].shape[0] != length:
            grown[path] = backend.tensor(resize_table(grown[path].asnumpy(), length))
    return grown


def apply(params: Mapping[str, Any], cfg: Any, latents: Any, t: Any, text: Text, comm: Comm = LOCAL) -> ms.Tensor:
    """Velocity (b c t h w) of latents (b c t h w) at flow times t (b,), 0 = noise.

    text: {encoder: (embeddings (b l width), mask (b l) with 1 = token, or None = all are)}; the tokens of all encoders
    are packed, and nothing attends to padding. The ranks of comm.sequence are given the same inputs and share the work;
    where comm.sharded, params are shards. Raises ConfigError for inputs that do not fit the config.
    """
    params, latents, t, text, mask = _check(params, cfg, latents, t, text, comm.sharded)
    model = _stages(cfg, latents.shape, bool(mask), comm)
    blocks = [f"blocks/{i}" for i in range(cfg.num_layers)]
    weights = zero.in_turn(params, comm.all_gather, ["", *blocks, "final"])
    x, pos, time, modulation, context = layerwise.run(model.prologue, weights(), latents, t, *text, *mask)
    for _ in blocks:
        x = layerwise.run(model.block, weights(), x, pos, modulation, context, *mask[:1])
    return layerwise.run(model.epilogue, weights(), x, time)


def loss_and_grads(
    params: Mapping[str, Any],
    cfg: Any,
    latents: Any,
    noise: Any,
    t: Any,
    text: Text,
    comm: Comm = LOCAL,
) -> tuple[ms.Tensor, Params]:
    """Flow-matching loss, the mean squared error of the velocity, and its gradient for every parameter.

    latents and noise (b c t h w), t (b,), text as in `apply`: this rank's part of the batch. Only the blocks' inputs are
    kept for the way back. Both results are those of the batch of all ranks; the gradients are whole at ZeRO stage 0 and 1,
    shards at 2 and 3.
    """
    params, latents, t, text, mask = _check(params, cfg, latents, t, text, comm.sharded)
    noise = backend.tensor(noise)
    if noise.shape != latents.shape:
        raise ConfigError(f"noise has shape {noise.shape}, latents {latents.shape}: expected the same")
    model = _stages(cfg, latents.shape, bool(mask), comm)
    reduce = comm.reducer()
    noisy, target = flow.interpolate(latents, noise, t), flow.target(latents, noise)

    blocks = [f"blocks/{i}" for i in range(cfg.num_layers)]
    weights = zero.in_turn(params, comm.all_gather, ["", *blocks, "final", *reversed(blocks), ""])
    given = (noisy, t, *text, *mask)
    x, pos, time, modulation, context = layerwise.run(model.prologue, weights(), *given)
    inputs = []
    for _ in blocks:
        inputs.append((x, pos, modulation, context, *mask[:1]))
        x = layerwise.run(model.block, weights(), *inputs[-1])
    loss, dfinal, (dx, dtime) = layerwise.value_and_grad(model.loss, weights(), x, time, target, wrt=2)

    grads = reduce(tree.join({"final": dfinal}))
    shared = [ops.zeros_like(pos), ops.zeros_like(modulation), ops.zeros_like(context)]
    for block in reversed(blocks):
        dblock, (dx, *dshared) = layerwise.pull(model.block, weights(), inputs.pop(), (dx,), wrt=4)
        grads |= reduce(tree.join({block: dblock}))
        shared = [total + part for total, part in zip(shared, dshared, strict=True)]
    dpos, dmodulation, dcontext = shared
    douter, _ = layerwise.pull(model.prologue, weights(), given, (dx, dpos, dtime, dmodulation, dcontext), wrt=0)
    return comm.all_reduce(loss), grads | reduce(douter, last=True)


def _encoders(cfg: Any) -> tuple[str, ...]:
    return tuple(name for name in ENCODERS if name in cfg.text_dims)


class _Stages(NamedTuple):
    prologue: Any
    block: Any
    epilogue: Any
    loss: Any


def _stages(cfg: Any, shape: tuple[int, ...], masked: bool, comm: Comm) -> _Stages:
    """The stages for latents of `shape`."""
    dtype = backend.check_compute_dtype(cfg.get("compute_dtype", "float32"))
    eps, patch = cfg.norm_eps, tuple(cfg.patch_size)
    part = stages.Part(tuple(n // p for n, p in zip(shape[2:], patch, strict=True)), comm.sequence)
    return _Stages(
        stages.make_prologue(
            patch, part, tuple(cfg.position_lengths), _encoders(cfg), cfg.text_norm, eps, masked, dtype
        ),
        stages.make_block(cfg.num_heads, part, eps, cfg.cross_attention_norm, masked, dtype),
        stages.make_epilogue(patch, part, eps, dtype),
        stages.make_loss(patch, part, comm.batches, eps, dtype),
    )


def _check_config(cfg: Any) -> None:
    if cfg.hidden_size % cfg.num_heads:
        raise ConfigError(f"num_heads is {cfg.num_heads}, which does not divide hidden_size {cfg.hidden_size}")
    if cfg.text_norm not in ("layer", "rms"):
        raise ConfigError(f"text_norm is {cfg.text_norm!r}: expected 'layer' (the paper's) or 'rms' (the seed's)")
    for key in ("patch_size", "position_lengths"):
        if len(cfg[key]) != 3:
            raise ConfigError(f"{key} is {tuple(cfg[key])}: expected three numbers, for time, height and width")
    if not _encoders(cfg) or set(cfg.text_dims) - set(ENCODERS):
        raise ConfigError(f"text_dims names {', '.join(cfg.text_dims) or 'nothing'}: expected {', '.join(ENCODERS)}")


def _check(params: Mapping[str, Any], cfg: Any, latents: Any, t: Any, text: Text, sharded: bool) -> tuple:
    """Parameters, latents, times, embeddings by encoder and what `_check_text` says of masks, as tensors that fit."""
    wanted = shapes(cfg)
    if params.keys() != wanted.keys():
        raise ConfigError(
            f"the parameters are not of this config: missing {sorted(wanted.keys() - params.keys())}, "
            f"unknown {sorted(params.keys() - wanted.keys())}"
        )
    latents, t = backend.tensor(latents), backend.tensor(t)
    if len(latents.shape) != 5 or latents.shape[1] != cfg.latent_channels:
        raise ConfigError(f"latents have shape {latents.shape}, expected (b {cfg.latent_channels} t h w)")
    batch = latents.shape[0]
    if t.shape != (batch,):
        raise ConfigError(f"times have shape {t.shape}, expected ({batch},): one for each sample")
    for i, axis in enumerate(AXES):
        size, patch, length = latents.shape[2 + i], cfg.patch_size[i], cfg.position_lengths[i]
        rows = params[f"position/{axis}"].shape[0]
        if size % patch or not size:
            raise ConfigError(f"latents have {size} along {axis}, not a multiple of patch_size[{i}] = {patch}")
        if size // patch > length:
            raise ConfigError(
                f"latents have {size // patch} patches along {axis}, position_lengths[{i}] is {length}: raise it "
                "(interpolate_positions grows the tables of trained parameters)"
            )
        if rows != length and not sharded:
            raise ConfigError(
                f"position/{axis} has {rows} rows, position_lengths[{i}] is {length}: pass the parameters through "
                "interpolate_positions"
            )
    embeddings, mask = _check_text(cfg, text, batch)
    return backend.to_tensors(params), latents, t, embeddings, mask


def _check_text(cfg: Any, text: Text, batch: int) -> tuple[list, list]:
    """Embeddings by encoder, and: [] without padding, [mask (b m 1)], or [mask (b k 1), rows (b k)] to pack them.

    Rows are those of the true tokens among the (b*m) of all encoders, one behind the other; k < m is the longest text's
    number of tokens rounded up to CONTEXT_STEP.
    """
    embeddings, masks = [], []
    if set(text) != set(cfg.text_dims):
        raise ConfigError(f"text has {sorted(text)}, expected the encoders of text_dims, {sorted(cfg.text_dims)}")
    for name in _encoders(cfg):
        values, mask = text[name]
        width = cfg.text_dims[name]
        if len(values.shape) != 3 or values.shape[0] != batch or values.shape[2] != width:
            raise ConfigError(f"text {name!r} has shape {tuple(values.shape)}, expected ({batch} l {width})")
        if mask is not None and tuple(mask.shape) != tuple(values.shape[:2]):
            raise ConfigError(f"text {name!r} has a mask of shape {tuple(mask.shape)}, expected {values.shape[:2]}")
        embeddings.append(backend.tensor(values))
        mask = mask.asnumpy() if isinstance(mask, ms.Tensor) else mask
        masks.append(np.ones(values.shape[:2], bool) if mask is None else np.asarray(mask) > 0)
    if all(text[name][1] is None for name in text):
        return embeddings, []
    mask = np.concatenate(masks, 1)
    most, packed = mask.shape[1], -(-int(mask.sum(1).max()) // CONTEXT_STEP) * CONTEXT_STEP
    if packed >= most:
        return embeddings, [backend.tensor(mask[..., None].astype(np.float32))]
    tokens_first = np.argsort(~mask, 1, kind="stable")[:, :packed]
    kept = np.take_along_axis(mask, tokens_first, 1)[..., None].astype(np.float32)
    rows = (tokens_first + np.arange(batch)[:, None] * most).astype(np.int32)
    return embeddings, [backend.tensor(kept), backend.tensor(rows)]
