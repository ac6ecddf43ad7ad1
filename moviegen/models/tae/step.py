"""One training step of the temporal autoencoder and its discriminator: losses, gradients, and their exchange."""

from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.errors import ConfigError
from moviegen.models import lpips
from moviegen.models.tae import discriminator, losses, model as tae
from moviegen.models.tae.shapes import shapes as shapes
from moviegen.nn import backend, layerwise
from moviegen.parallel.comm import LOCAL, Comm

Params = Mapping[str, Any]
Tree = dict[str, ms.Tensor]


def init(cfg: Any, seed: int, adversarial: Any = None) -> Tree:
    """Random parameters of the autoencoder, and of the discriminator of config section `loss.adversarial` if given."""
    return tae.init(cfg, seed) | (discriminator.init(adversarial, seed) if adversarial else {})


def loss_and_grads(
    params: Params,
    cfg: Any,
    video: Any,
    noise: Any,
    weights: Mapping[str, float],
    comm: Comm = LOCAL,
    perceptual: Params | None = None,
    adversarial: Any = None,
    recompute: Sequence[int] = (),
) -> tuple[Tree, Tree]:
    """One training step's losses {"loss", "mse", "kl", ...} and the gradient of every parameter, of the batch of all ranks.

    video (b 3 t h w); noise, standard normal in the latents' shape, draws from the posterior. weights: {"l1", "mse", "kl"}
    and where wanted {"lpips", "outlier", "outlier_radius", "adversarial"}. perceptual: the parameters of LPIPS. adversarial:
    config section `loss.adversarial`, if params have a discriminator: the results then have its losses and gradients too.
    Only the blocks' inputs are kept between forward and backward, of the levels in `recompute` (0: the pixels' own) the
    first block's alone. Params are shards at ZeRO stage 3, gradients at 2 and 3.
    """
    tae.check_video(video, cfg)
    levels = len(cfg.channel_multipliers)
    if not set(recompute) <= set(range(levels)):
        raise ConfigError(
            f"train.recompute_levels is {tuple(recompute)}, expected levels from 0, the pixels', to {levels - 1}"
        )
    dtype = tae.compute_dtype(cfg)
    video, exchange = backend.tensor(video), dict(gather=comm.all_gather, reduce=comm.reducer())
    *body, head = tae.segments(cfg, "decoder", recompute)

    moments, pull_encoder = layerwise.chain(params, tae.segments(cfg, "encoder", recompute), video, False, **exchange)
    sample = losses.make_sample_and_kl(cfg.latent_channels, 1.0 / comm.batches)
    (z, kl), pull_sample = layerwise.vjp(sample, {}, moments, noise, wrt=1)
    before_head, pull_body = layerwise.chain(params, body, z, **exchange)
    decoded, pull_head = layerwise.chain(params, [head], before_head, **exchange)

    (loss, mse), dout = _reconstruction(decoded, video, weights, comm)
    loss = loss + float(weights["kl"]) * kl
    found, verdicts, grads = {"mse": mse, "kl": kl}, {}, {}
    if weights.get("lpips"):
        found["lpips"], slope = _lpips(decoded, video, weights, comm, perceptual)
        dout, loss = dout + slope, loss + float(weights["lpips"]) * found["lpips"]
    if adversarial:
        shown = decoded[:, :, : video.shape[2]]
        verdicts, grads = discriminator.loss_and_grads(params, adversarial, video, shown, comm, dtype)
        found["adversarial"], slope = discriminator.generator_loss(params, adversarial, shown, comm, dtype)
        slope = _with_spurious(slope, decoded)
        factor = _adaptive_weight(params, head, before_head, dout, slope, comm) * float(weights["adversarial"])
        dout, loss = dout + slope * factor, loss + factor * found["adversarial"]
    more, dx = pull_head(dout)
    grads |= more
    more, dz = pull_body(dx)
    grads |= more
    if weights.get("outlier"):
        found["outlier"], slope = _outlier(z, weights, comm)
        dz, loss = dz + slope, loss + float(weights["outlier"]) * found["outlier"]
    _, (dmoments,) = pull_sample(dz, np.float32(weights["kl"]))
    grads |= pull_encoder(dmoments)[0] | exchange["reduce"]({}, last=True)
    found = {name: comm.all_reduce(value) for name, value in ({"loss": loss} | found).items()}
    return found | verdicts, grads


# ---- the losses of a reconstruction or of latents, each with the gradient of its weighted value


def _reconstruction(decoded: ms.Tensor, video: ms.Tensor, weights: Mapping[str, float], comm: Comm) -> tuple:
    """((weighted loss, mean squared error), gradient)."""
    scale = 1.0 / comm.batches
    fn = losses.make_reconstruction(scale * float(weights["l1"]), scale * float(weights["mse"]), scale)
    values, _, (slope,) = layerwise.value_and_grad(fn, {}, decoded, video, wrt=1, aux=True)
    return values, slope


def _lpips(decoded: ms.Tensor, video: ms.Tensor, weights: Mapping[str, float], comm: Comm, perceptual: Any) -> tuple:
    value, slope = lpips.mean_and_pull(perceptual, video, decoded[:, :, : video.shape[2]], 1.0 / comm.batches)
    return value, _with_spurious(slope * float(weights["lpips"]), decoded)


def _outlier(z: ms.Tensor, weights: Mapping[str, float], comm: Comm) -> tuple:
    fn = losses.make_outlier(float(weights["outlier_radius"]), 1.0 / comm.batches)
    value, pull = layerwise.vjp(fn, {}, z)
    return value, pull(np.float32(weights["outlier"]))[1][0]


def _adaptive_weight(
    params: Params, head: Any, before_head: ms.Tensor, dout: ms.Tensor, slope: ms.Tensor, comm: Comm
) -> ms.Tensor:
    """Factor with which `slope` pulls as hard as `dout` on the decoder's last convolution (Esser et al. 2021)."""
    fn, names = head
    own = layerwise.weights(params, names, comm.all_gather)

    def norm(d: ms.Tensor) -> ms.Tensor:
        grads, _ = layerwise.pull(fn, own, (before_head,), (d,), 0)
        return ops.sqrt(ops.sum(ops.square(comm.all_reduce(grads["conv/spatial/w"].astype(ms.float32)))))

    return ops.clamp(norm(dout) / (norm(slope) + 1e-4), None, 1e4)


def _with_spurious(slope: ms.Tensor, decoded: ms.Tensor) -> ms.Tensor:
    """A gradient of the frames that count, with zeros for the others that were decoded."""
    b, c, t, h, w = decoded.shape
    missing = t - slope.shape[2]
    return ops.concat((slope, ops.zeros((b, c, missing, h, w), slope.dtype)), 2) if missing else slope
