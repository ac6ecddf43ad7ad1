"""A patch discriminator: tells originals from reconstructions, one verdict for each patch of 8x8 pixels' surroundings.

Of every frame by itself (`dims` 2), or of 8 frames together (3). GroupNorm, since a batch may be one clip and must not
matter. Isola et al. 2017; hinge loss.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen import streams
from moviegen.models.tae.blocks import convolve
from moviegen.models.tae.shapes import (
    DISCRIMINATOR_LEVELS,
    discriminator as shapes,
    discriminator_parameters,
    discriminator_plan,
)
from moviegen.nn import backend, kernels, layerwise
from moviegen.parallel.comm import LOCAL, Comm
from moviegen.streams import Stream


@functools.lru_cache
def _make_block(groups: int, halve: bool, temporal: bool, dtype: str):
    """GroupNorm and SiLU (none at 0 groups), then a convolution in `dtype`; float32."""
    spatial_conv = kernels.halving_conv if halve else kernels.spatial_conv

    def block(p, x):
        if groups:
            x = kernels.group_norm_silu(x, p["norm/scale"], p["norm/bias"], groups)
        x = convolve(spatial_conv, p, "spatial", x, dtype)
        if temporal:
            x = convolve(kernels.temporal_conv, p, "temporal", x, dtype, 2 if halve else 1)
        return ops.cast(x, ms.float32)

    return block


def init(cfg: Any, seed: int) -> dict[str, ms.Tensor]:
    """Random weights; every array depends on (seed, its path) alone. Temporal kernels are the identity."""
    params = {}
    for path, shape in shapes(cfg).items():
        rng = streams.rng(Stream.PARAMETER, seed, path)
        value = np.ones(shape) if path.endswith("scale") else np.zeros(shape)
        if path.endswith("spatial/w"):
            value = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        elif path.endswith("temporal/w"):
            value[:, :, 1] = np.eye(shape[0])
        params[path] = backend.tensor(value.astype(np.float32))
    return params


def _segments(cfg: Any, dtype: str) -> list[Any]:
    found = []
    for block in discriminator_plan(cfg):
        # Of two channels or more: alone, a channel's bias would be normed away.
        groups = math.gcd(32, block.inputs // 2) or 1
        fn = _make_block(groups if block.level else 0, block.level < DISCRIMINATOR_LEVELS, cfg.dims == 3, dtype)
        found.append((fn, {name: f"{block.prefix}/{name}" for name in discriminator_parameters(cfg, block)}))
    return found


def _pieces(video: Any, cfg: Any) -> ms.Tensor:
    """Video (b 3 t h w) as a batch of what is judged by itself: the clips, or every frame as a clip of one."""
    video = backend.tensor(video)
    if cfg.dims == 3:
        return video
    b, c, t, h, w = video.shape
    return ops.reshape(ops.transpose(video, (0, 2, 1, 3, 4)), (b * t, c, 1, h, w))


def judge(params: Mapping[str, Any], cfg: Any, video: Any, dtype: str = "float32") -> ms.Tensor:
    """Verdicts (n 1 t' h/8 w/8) of video (b 3 t h w) in [-1, 1]; above 0 where it is taken for an original."""
    return layerwise.run_chain(params, _segments(cfg, dtype), _pieces(video, cfg))


@functools.lru_cache
def _make_hinge(scale: float):
    def hinge(p, real, fake):
        loss = 0.5 * (kernels.mean(ops.relu(1.0 - real)) + kernels.mean(ops.relu(1.0 + fake)))
        return scale * loss, scale * kernels.mean(real), scale * kernels.mean(fake)

    return hinge


def loss_and_grads(
    params: Mapping[str, Any], cfg: Any, real: Any, fake: Any, comm: Comm = LOCAL, dtype: str = "float32"
) -> tuple[dict[str, ms.Tensor], dict[str, ms.Tensor]]:
    """Hinge loss of telling real from fake (b 3 t h w), mean verdicts, and every parameter's gradient, of all ranks' batch.

    Convolutions are in `dtype`, what the rest is in is float32.
    """
    segments = _segments(cfg, dtype)
    verdict_real, pull_real = layerwise.chain(params, segments, _pieces(real, cfg), False, comm.all_gather)
    verdict_fake, pull_fake = layerwise.chain(params, segments, _pieces(fake, cfg), False, comm.all_gather)
    hinge = _make_hinge(1.0 / comm.batches)
    (loss, up, down), _, (dreal, dfake) = layerwise.value_and_grad(
        hinge, {}, verdict_real, verdict_fake, wrt=2, aux=True
    )
    grads, more = pull_real(dreal)[0], pull_fake(dfake)[0]
    grads = {path: g.astype(ms.float32) + more[path].astype(ms.float32) for path, g in grads.items()}
    grads = comm.reducer()(grads, last=True)
    losses = {"discriminator": loss, "verdict_real": up, "verdict_fake": down}
    return {name: comm.all_reduce(value) for name, value in losses.items()}, grads


def generator_loss(
    params: Mapping[str, Any], cfg: Any, fake: Any, comm: Comm = LOCAL, dtype: str = "float32"
) -> tuple[ms.Tensor, ms.Tensor]:
    """This rank's term of the generator's loss, minus the mean verdict on fake (b 3 t h w), and its gradient there."""
    verdict, pull = layerwise.chain(params, _segments(cfg, dtype), _pieces(fake, cfg), True, comm.all_gather)
    scale = -1.0 / (comm.batches * math.prod(verdict.shape))
    slope = pull(ops.full(verdict.shape, scale, dtype=ms.float32))[1]
    if cfg.dims == 2:
        b, c, t, h, w = fake.shape
        slope = ops.transpose(ops.reshape(slope, (b, t, c, h, w)), (0, 2, 1, 3, 4))
    return ops.sum(verdict) * scale, slope
