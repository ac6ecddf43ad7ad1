"""Temporal autoencoder: an image autoencoder inflated with temporal convolutions and attention, 8x8x8 compression.

Movie Gen section on the TAE; layer placement as in the SD3.5 image VAE. Video is (b 3 t h w) in [-1, 1], latents are
(b c ceil(t/8) h/8 w/8), raw: `normalize` maps them to the about unit-variance space that the transformer works in.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen import streams
from moviegen.errors import ConfigError
from moviegen.models.tae import blocks
from moviegen.models.tae.shapes import Block, parameters, plan, shapes
from moviegen.nn import backend, layerwise
from moviegen.streams import Stream

Params = Mapping[str, Any]
# Kind of block -> its compiled function, from the config and the compute dtype; a residual block has two of "head".
FUNCTIONS = {
    "conv": lambda cfg, dtype: blocks.make_conv(dtype),
    "spatial_attention": lambda cfg, dtype: blocks.make_attention(cfg.norm_groups, False, dtype),
    "temporal_attention": lambda cfg, dtype: blocks.make_attention(cfg.norm_groups, True, dtype),
    "downsample": lambda cfg, dtype: blocks.make_downsample(dtype),
    "upsample": lambda cfg, dtype: blocks.make_upsample(cfg.temporal_upsample_padding, dtype),
    "head": lambda cfg, dtype: blocks.make_norm_conv(cfg.norm_groups, dtype),
}
# Names that a function has for its parameters -> where they are in a residual block, {} being 1 or 2.
_CONV = ("spatial/w", "spatial/b", "temporal/w", "temporal/b")
_SHORTCUT = {name: f"shortcut/{name}" for name in _CONV}
_NORM_CONV = {f"norm/{name}": f"norm{{}}/{name}" for name in ("scale", "bias")}
_NORM_CONV |= {f"conv/{name}": f"conv{{}}/{name}" for name in _CONV}


def compute_dtype(cfg: Any) -> str:
    """The dtype of products; ConfigError where this device cannot compute in it."""
    return backend.check_compute_dtype(cfg.get("compute_dtype", "float32"), "tae.compute_dtype")


def segments(cfg: Any, side: str, recompute: Sequence[int] = ()) -> list[Any]:
    """The "encoder" or "decoder" as segments for `layerwise.chain`; of levels in `recompute` it keeps the input alone."""
    found, dtype = [], compute_dtype(cfg)
    for level, group in itertools.groupby(plan(cfg, side), lambda block: block.level):
        own = [_segment(cfg, block, dtype) for block in group]
        found += [layerwise.Recomputed(own)] if level in recompute else own
    return found


def _segment(cfg: Any, block: Block, dtype: str) -> Any:
    # The convolutions of a residual block are segments of their own: a compiled gradient keeps the patches of all it has.
    def link(kind: str, paths: dict[str, str]) -> tuple[Any, dict[str, str]]:
        return FUNCTIONS[kind](cfg, dtype), {name: f"{block.prefix}/{path}" for name, path in paths.items()}

    if block.kind != "residual":
        return link(block.kind, {name: name for name in parameters(block)})
    branch = [link("head", {name: path.format(i) for name, path in _NORM_CONV.items()}) for i in (1, 2)]
    return layerwise.Residual(branch, [link("conv", _SHORTCUT)] if block.inputs != block.outputs else [])


def init(cfg, seed: int) -> dict[str, ms.Tensor]:
    """Random weights that start close to a well-conditioned linear autoencoder, so that training from nothing takes hold.

    Temporal kernels are the identity. Off the residual branches, spatial kernels are orthonormal maps: a product of that
    many random ones would pass only a few directions. Residual branches start at a tenth of their size. Every second
    channel before the last norms starts with a constant: a norm takes a clip's brightness and contrast away unless some
    channels of a group say what was normal. Every array depends on (seed, its path) alone.
    """
    params = {}
    before_heads = {f"{plan(cfg, side)[-2].prefix}/conv2/temporal/b" for side in ("encoder", "decoder")}
    for path, shape in shapes(cfg).items():
        rng = streams.rng(Stream.PARAMETER, seed, path)
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


def check_video(video: Any, cfg: Any) -> None:
    """ConfigError unless the array is (b 3 t h w) of a height and width that the levels can halve."""
    factor = 2 ** (len(cfg.channel_multipliers) - 1)
    shape = tuple(video.shape)
    if len(shape) != 5 or shape[1] != 3 or not shape[2] or any(n % factor for n in shape[3:]):
        raise ConfigError(
            f"video has shape {shape}, expected (b 3 t h w) with h and w multiples of {factor} and t >= 1"
        )


def encode(params: Params, cfg, video: Any) -> tuple[ms.Tensor, ms.Tensor]:
    """Posterior (mean, logvar), each (b c ceil(t/8) h/8 w/8), of video (b 3 t h w) in [-1, 1]; an image is t = 1."""
    check_video(video, cfg)
    x = layerwise.run_chain(params, segments(cfg, "encoder"), backend.tensor(video))
    return x[:, : cfg.latent_channels], ops.clip_by_value(x[:, cfg.latent_channels :], -30.0, 20.0)


def decode(params: Params, cfg, latents: Any, num_frames: int | None = None) -> ms.Tensor:
    """Video (b 3 t h w) of raw latents (b c t h w); the first `num_frames` of the 8 per latent frame (default all)."""
    x = layerwise.run_chain(params, segments(cfg, "decoder"), backend.tensor(latents))
    return x if num_frames is None else x[:, :, :num_frames]


def _per_channel(value: Any) -> ms.Tensor:
    return backend.tensor(np.asarray(value, np.float32).reshape(1, -1, 1, 1, 1))


def normalize(latents: Any, cfg) -> Any:
    """Raw latents to the transformer's space: (latents - latent_shift) * latent_scale, scalars or one per channel."""
    return (latents - _per_channel(cfg.latent_shift)) * _per_channel(cfg.latent_scale)


def denormalize(latents: Any, cfg) -> Any:
    """The inverse of `normalize`."""
    return latents / _per_channel(cfg.latent_scale) + _per_channel(cfg.latent_shift)
