"""Temporal autoencoder: an image autoencoder inflated with temporal convolutions and attention, 8x8x8 compression.

Movie Gen section on the TAE; layer placement as in the SD3.5 image VAE. Video is (b 3 t h w) in [-1, 1], latents are
(b c ceil(t/8) h/8 w/8), raw: `normalize` maps them to the about unit-variance space that the transformer works in.
"""

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen import streams
from moviegen.errors import ConfigError
from moviegen.models.tae import blocks
from moviegen.nn import backend, layerwise, tree
from moviegen.streams import Stream

Params = Mapping[str, Any]


# ---- the two networks as lists of (function, prefix)


def plan(cfg: Any, side: str) -> list[tuple[Any, str, dict[str, tuple[int, ...]]]]:
    """(function, prefix, parameter shapes) of every block of "encoder" or "decoder", in order of execution.

    A residual block's function is that of each of its two convolutions: they are compiled and recomputed one by one, since a
    compiled gradient keeps the patches of all its convolutions in memory.
    """
    widths = [cfg.base_channels * m for m in cfg.channel_multipliers]
    groups, levels = cfg.norm_groups, len(cfg.channel_multipliers)
    found = []

    def conv_shapes(name, ci, co, k):
        pre = name + "/" if name else ""
        return {
            pre + "spatial/w": (co, ci, k, k),
            pre + "spatial/b": (co,),
            pre + "temporal/w": (co, co, k),
            pre + "temporal/b": (co,),
        }

    def norm_shapes(name, c):
        return {name + "/scale": (c,), name + "/bias": (c,)}

    def res(prefix, ci, co):
        shapes = norm_shapes("norm1", ci) | conv_shapes("conv1", ci, co, 3)
        shapes |= norm_shapes("norm2", co) | conv_shapes("conv2", co, co, 3)
        if ci != co:
            shapes |= conv_shapes("shortcut", ci, co, 1)
        found.append((blocks.make_norm_conv(groups), prefix, shapes))

    def mid(c):
        res(f"{side}/mid/block/0", c, c)
        for temporal in (False, True) if cfg.temporal_attention else (False,):
            shapes = norm_shapes("norm", c)
            for name in ("q", "k", "v", "out"):
                shapes |= {f"{name}/w": (c, c), f"{name}/b": (c,)}
            prefix = f"{side}/mid/{'temporal' if temporal else 'spatial'}_attention"
            found.append((blocks.make_attention(groups, temporal), prefix, shapes))
        res(f"{side}/mid/block/1", c, c)

    def head(c, out):
        found.append(
            (blocks.make_norm_conv(groups), f"{side}/head", norm_shapes("norm", c) | conv_shapes("conv", c, out, 3))
        )

    if side == "encoder":
        found.append((blocks.make_conv(), "encoder/conv_in", conv_shapes("", 3, widths[0], 3)))
        c = widths[0]
        for level in range(levels):
            for i in range(cfg.num_res_blocks):
                res(f"encoder/down/{level}/block/{i}", c, widths[level])
                c = widths[level]
            if level < levels - 1:
                found.append((blocks.make_downsample(), f"encoder/down/{level}/downsample", conv_shapes("", c, c, 3)))
        mid(c)
        head(c, 2 * cfg.latent_channels)
    else:
        c = widths[-1]
        found.append((blocks.make_conv(), "decoder/conv_in", conv_shapes("", cfg.latent_channels, c, 3)))
        mid(c)
        for level in reversed(range(levels)):
            for i in range(cfg.num_res_blocks + 1):
                res(f"decoder/up/{level}/block/{i}", c, widths[level])
                c = widths[level]
            if level > 0:
                fn = blocks.make_upsample(cfg.temporal_upsample_padding)
                found.append((fn, f"decoder/up/{level}/upsample", conv_shapes("", c, c, 3)))
        head(c, 3)
    return found


def segments(cfg: Any, side: str, recompute: Sequence[int] = ()) -> list[Any]:
    """The "encoder" or "decoder" as segments for `layerwise.chain`; of levels in `recompute` it keeps the input alone."""
    found = []
    for level, entries in itertools.groupby(plan(cfg, side), _level):
        own = [_segment(*entry) for entry in entries]
        found += [layerwise.Recomputed(own)] if level in recompute else own
    return found


def _level(entry):
    names = entry[1].split("/")
    return int(names[2]) if names[1] in ("down", "up") else None


def _segment(fn, prefix, shapes):
    def link(fn, names):
        return fn, {name: f"{prefix}/{at}" for name, at in names.items()}

    if "norm1/scale" not in shapes:
        return link(fn, {name: name for name in shapes})
    halves = [{at.replace(i, "", 1): at for at in shapes if at[4] == i} for i in "12"]
    across = {at.removeprefix("shortcut/"): at for at in shapes if at.startswith("shortcut/")}
    return layerwise.Residual([link(fn, half) for half in halves], [link(blocks.make_conv(), across)] if across else [])


def shapes(cfg) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter."""
    _check(cfg)
    return tree.join({prefix: s for side in ("encoder", "decoder") for _, prefix, s in plan(cfg, side)})


def _check(cfg) -> None:
    for m in cfg.channel_multipliers:
        if cfg.base_channels * m % cfg.norm_groups:
            raise ConfigError(
                f"tae.norm_groups is {cfg.norm_groups}, which does not divide the width "
                f"{cfg.base_channels} x {m} = {cfg.base_channels * m}: choose a divisor of every width"
            )
    if cfg.temporal_upsample_padding not in ("replicate", "zeros"):
        raise ConfigError(
            f"tae.temporal_upsample_padding is {cfg.temporal_upsample_padding!r}, expected 'replicate' or 'zeros'"
        )


def init(cfg, seed: int) -> dict[str, ms.Tensor]:
    """Random weights that start close to a well-conditioned linear autoencoder, so that training from nothing takes hold.

    Temporal kernels are the identity at their centre, as in an inflated image model. Off the residual branches, spatial
    kernels are orthonormal maps (of 2x2 patches where they halve, a bilinear filter of each channel where they double):
    a product of that many random ones would pass only a few directions. Residual branches start at a tenth of their
    size. Every second channel before the last norms starts with a constant: a norm takes a clip's brightness and contrast
    away unless some channels of a group say what was normal. Every array depends on (seed, its path) alone.
    """
    params = {}
    before_heads = {f"{plan(cfg, side)[-2][1]}/conv2/temporal/b" for side in ("encoder", "decoder")}
    for path, shape in shapes(cfg).items():
        rng = streams.rng(Stream.PARAMETER, seed, zlib.crc32(path.encode()))
        value = np.zeros(shape)
        if path.endswith("scale"):
            value[:] = 1.0
        elif path == "encoder/head/conv/temporal/b":
            value[cfg.latent_channels :] = -6.0  # logvar: with unit noise at the start the latents carry nothing
        elif path in before_heads:
            value[1::2] = np.resize((2.0, -2.0), shape[0] // 2)
        elif path.endswith("temporal/w"):
            value[:, :, shape[2] // 2] = np.eye(shape[0])
        elif path.endswith("/w"):
            value = _spatial_init(path, shape, rng)
        params[path] = backend.tensor(value.astype(np.float32))
    return params


def _spatial_init(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    value = np.zeros(shape)
    if "downsample" in path:
        value[:, :, :2, :2] = _orthonormal(shape[0], shape[1] * 4, rng).reshape(*shape[:2], 2, 2)
    elif "upsample" in path:
        value += np.eye(shape[0])[:, :, None, None] * np.outer((1, 2, 1), (1, 2, 1)) / 16
    elif "shortcut" in path:
        value[:, :, 0, 0] = np.eye(*shape[:2])
    elif "conv_in" in path or "head" in path:
        value[:, :, 1, 1] = _orthonormal(*shape[:2], rng)
    else:
        value = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        if "/conv2/" in path or "/out/" in path:
            value *= 0.1
    return value


def _orthonormal(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """A matrix with orthonormal rows, or columns if they are fewer."""
    q, _ = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    return q if rows >= columns else q.T


# ---- use


def check_video(video: Any, cfg: Any) -> None:
    """ConfigError unless the array is (b 3 t h w) of a height and width that the levels can halve."""
    factor = 2 ** (len(cfg.channel_multipliers) - 1)
    if (
        len(video.shape) != 5
        or video.shape[1] != 3
        or video.shape[3] % factor
        or video.shape[4] % factor
        or not video.shape[2]
    ):
        raise ConfigError(
            f"video has shape {tuple(video.shape)}, expected (b 3 t h w) with h and w multiples of {factor} and t >= 1"
        )


def encode(params: Params, cfg, video: Any) -> tuple[ms.Tensor, ms.Tensor]:
    """Posterior (mean, logvar), each (b c ceil(t/8) h/8 w/8), of video (b 3 t h w) in [-1, 1]; an image is t = 1.

    Raises ConfigError if height or width is not a multiple of 8. Source: paper, TAE.
    """
    check_video(video, cfg)
    x = layerwise.run_chain(params, segments(cfg, "encoder"), backend.tensor(video))
    return x[:, : cfg.latent_channels], ops.clip_by_value(x[:, cfg.latent_channels :], -30.0, 20.0)


def decode(params: Params, cfg, latents: Any, num_frames: int | None = None) -> ms.Tensor:
    """Video (b 3 t h w) of raw latents (b c t h w); the first `num_frames` of the 8 per latent frame (default all)."""
    x = layerwise.run_chain(params, segments(cfg, "decoder"), backend.tensor(latents))
    return x if num_frames is None else x[:, :, :num_frames]


def _per_channel(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32).reshape(1, -1, 1, 1, 1)


def normalize(latents: Any, cfg) -> Any:
    """Raw latents to the transformer's space: (latents - latent_shift) * latent_scale, scalars or one per channel."""
    return (latents - backend.tensor(_per_channel(cfg.latent_shift))) * backend.tensor(_per_channel(cfg.latent_scale))


def denormalize(latents: Any, cfg) -> Any:
    """The inverse of `normalize`."""
    return latents / backend.tensor(_per_channel(cfg.latent_scale)) + backend.tensor(_per_channel(cfg.latent_shift))
