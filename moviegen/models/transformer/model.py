"""Movie Gen's generator: a transformer that maps noisy latents, a time and text to the velocity of a flow.

A LLaMa-3 block (RMSNorm, SwiGLU, no biases) with full attention, cross-attention to three text encoders, and time
entering through one modulation shared by all layers plus a table per layer (paper, section 3). `cross_attention_norm` and
`text_norm` choose between the paper's arithmetic (True, "layer") and that of the seed's checkpoints (False, "rms").
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np

from moviegen import streams
from moviegen.errors import ConfigError
from moviegen.models.transformer import stages
from moviegen.models.transformer.shapes import AXES, TEXT, encoders, shapes
from moviegen.nn import backend, layers, layerwise, tree
from moviegen.parallel import zero
from moviegen.parallel.comm import LOCAL, Comm
from moviegen.streams import Stream

Params = dict[str, ms.Tensor]
Text = Mapping[str, tuple[Any, Any]]


def init(
    cfg: Any,
    seed: int,
    place: Callable[[str, np.ndarray], ms.Tensor] | None = None,
    paths: Collection[str] | None = None,
) -> Params:
    """Random parameters: matrices N(0, weight_std), positions N(0, position_std), tables of modulation N(0, 1/d).

    The output projection is zero, so the velocity is 0. Each is drawn from (seed, its path) alone, those of `paths` where it
    is given. `place(path, array)` makes a tensor of each before the next is drawn, so that a rank can keep its shard and never
    hold the whole model.
    """
    params = {}
    for path, shape in shapes(cfg).items():
        if paths is not None and path not in paths:
            continue
        rng = streams.rng(Stream.PARAMETER, seed, path)
        if path.endswith("/norm"):
            value = np.ones(shape, np.float32)
        elif path.endswith("/norm_bias") or path in ("modulation", "final/proj"):
            value = np.zeros(shape, np.float32)
        else:
            std = cfg.get("position_std" if path.startswith("position/") else "weight_std", 0.02)
            std = cfg.hidden_size**-0.5 if path.endswith("/modulation") else std
            value = np.float32(std) * rng.standard_normal(shape, dtype=np.float32)
        params[path] = place(path, value) if place else backend.tensor(value)
    return params


def interpolate_positions(params: Mapping[str, Any], cfg: Any) -> dict[str, ms.Tensor]:
    """The same parameters with position tables of cfg.position_lengths, for a next stage of larger clips."""
    grown = backend.to_tensors(params)
    for axis, length in zip(AXES, cfg.position_lengths, strict=True):
        path = f"position/{axis}"
        if grown[path].shape[0] != length:
            grown[path] = backend.tensor(layers.resize_table(grown[path].asnumpy(), length))
    return grown


class Context(NamedTuple):
    """What every block attends to of a batch's texts: [mask (b m 1)] or [], and keys and values (b h m d/h) by layer."""

    mask: list[ms.Tensor]
    keys: list[tuple[ms.Tensor, ms.Tensor]]


def apply(params: Mapping[str, Any], cfg: Any, latents: Any, t: Any, text: Text, comm: Comm = LOCAL) -> ms.Tensor:
    """Velocity (b c t h w) of latents (b c t h w) at flow times t (b,), 0 = noise.

    text: {encoder: (embeddings (b l width), mask (b l) with 1 = token, or None = all are)}; the tokens of all encoders
    are packed, and nothing attends to padding. The ranks of comm.sequence are given the same inputs and share the work;
    where comm.sharded, params are shards. Raises ConfigError for inputs that do not fit the config.
    """
    params, latents, t, text, mask = check(params, cfg, latents, t, text, comm)
    stage, (context_of, _) = stages.build(cfg, latents.shape, bool(mask), comm), stages.build_text(cfg, bool(mask))
    weights = zero.by_layer(params, comm.all_gather, cfg.num_layers)
    of_latents, of_text = split(weights())
    x, pos, time, modulation = layerwise.run(stage.start, of_latents, latents, t)
    context = layerwise.run(context_of, of_text, *text, *mask)
    del of_latents, of_text
    for _ in range(cfg.num_layers):
        x = layerwise.run(stage.block, weights(), x, pos, modulation, context, *mask[:1])
    return layerwise.run(stage.epilogue, weights(), x, time)


def attended(params: Mapping[str, Any], cfg: Any, text: Text, batch: int, comm: Comm = LOCAL) -> Context:
    """What sampling needs once for all of its steps: the half of `apply` that neither latents nor time are in.

    On every rank of a sequence for all tokens of the text. It holds 2 * num_layers * b * m * hidden_size numbers.
    """
    tree.check_paths(params, shapes(cfg))
    embeddings, mask = _check_text(cfg, text, batch)
    context_of, keys_of = stages.build_text(cfg, bool(mask))
    weights = zero.by_layer(split(params)[1], comm.all_gather, cfg.num_layers)
    context = layerwise.run(context_of, weights(), *embeddings, *mask)
    return Context(mask[:1], [layerwise.run(keys_of, weights(), context) for _ in range(cfg.num_layers)])


def velocity(
    params: Mapping[str, Any], cfg: Any, latents: Any, t: Any, context: Context, comm: Comm = LOCAL
) -> ms.Tensor:
    """The other half: the velocity, given what `attended` made of the texts."""
    params, latents, t = _check_latents(params, cfg, latents, t, comm)
    stage = stages.build(cfg, latents.shape, bool(context.mask), comm)
    weights = zero.by_layer(split(params)[0], comm.all_gather, cfg.num_layers)
    x, pos, time, modulation = layerwise.run(stage.start, weights(), latents, t)
    for keys in context.keys:
        x = layerwise.run(stage.keyed, weights(), x, pos, modulation, *keys, *context.mask)
    return layerwise.run(stage.epilogue, weights(), x, time)


def split(params: Mapping[str, Any]) -> tuple[Params, Params]:
    """The parameters that see latents or time, and those that see the text alone."""
    found: tuple[Params, Params] = {}, {}
    for path, x in params.items():
        found[re.search(TEXT, path) is not None][path] = backend.tensor(x)
    return found


def check(params: Mapping[str, Any], cfg: Any, latents: Any, t: Any, text: Text, comm: Comm = LOCAL) -> tuple:
    """Parameters, latents, times, embeddings and masks (`_check_text`) as tensors. ConfigError for what does not fit cfg."""
    params, latents, t = _check_latents(params, cfg, latents, t, comm)
    return params, latents, t, *_check_text(cfg, text, latents.shape[0])


def _check_latents(params: Mapping[str, Any], cfg: Any, latents: Any, t: Any, comm: Comm) -> tuple:
    tree.check_paths(params, shapes(cfg))
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
        if rows != length and not comm.sharded:
            raise ConfigError(
                f"position/{axis} has {rows} rows, position_lengths[{i}] is {length}: pass the parameters through "
                "interpolate_positions"
            )
    return backend.to_tensors(params), latents, t


def context_lengths(places: int) -> tuple[int, int]:
    """Tokens of the context of texts with so many places: packed into half of them, or all. Each is a graph of its own."""
    return -(-places // 2), places


def _check_text(cfg: Any, text: Text, batch: int) -> tuple[list, list]:
    """Embeddings by encoder, and: [] without padding, [mask (b m 1)], or [mask (b k 1), rows (b k)] to pack them.

    Rows are those of the true tokens among the (b*m) of all encoders, one behind the other; k is `context_lengths`' first.
    """
    embeddings, masks = [], []
    if set(text) != set(encoders(cfg)):
        raise ConfigError(f"text has {sorted(text)}, expected the encoders of text_dims, {sorted(encoders(cfg))}")
    for name in encoders(cfg):
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
    packed, most = context_lengths(mask.shape[1])
    if mask.sum(1).max() > packed:
        return embeddings, [backend.tensor(mask[..., None].astype(np.float32))]
    tokens_first = np.argsort(~mask, 1, kind="stable")[:, :packed]
    kept = np.take_along_axis(mask, tokens_first, 1)[..., None].astype(np.float32)
    rows = (tokens_first + np.arange(batch)[:, None] * most).astype(np.int32)
    return embeddings, [backend.tensor(kept), backend.tensor(rows)]
