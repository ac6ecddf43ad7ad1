"""One training step of the temporal autoencoder: reconstruction, KL and what else pulls on it, on any mesh."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.errors import ConfigError
from moviegen.models import lpips
from moviegen.models.tae import losses as tae_losses
from moviegen.models.tae import model as tae
from moviegen.nn import backend, layerwise
from moviegen.parallel.comm import LOCAL, Comm

Params = Mapping[str, Any]


def loss_and_grads(
    params: Params,
    cfg,
    video: Any,
    noise: Any,
    weights: Mapping[str, float],
    comm: Comm = LOCAL,
    perceptual: Params | None = None,
    adversary: Callable[[Any], tuple[Any, Any]] | None = None,
    recompute: Sequence[int] = (),
) -> tuple[dict[str, ms.Tensor], dict[str, ms.Tensor]]:
    """One training step's losses and the gradient of every parameter.

    video (b 3 t h w); noise, standard normal in the latents' shape, draws from the posterior. weights: {"l1", "mse", "kl"}
    and where wanted {"lpips", "outlier", "outlier_radius", "adversarial"}, each loss a mean so that it does not depend on
    resolution. perceptual: the parameters of LPIPS. adversary: reconstruction -> (loss, its gradient); weighted besides so
    that both pull equally on the decoder's last convolution (Esser et al. 2021, adaptive weight).

    Only the blocks' inputs are kept between forward and backward, of the levels in `recompute` (0: the pixels' own) the first
    block's alone. Returns ({"loss", "mse", "kl", ...}, grads), both of the batch of all ranks; params are shards at ZeRO
    stage 3, gradients at 2 and 3.
    """
    tae.check_video(video, cfg)
    _check_levels(recompute, cfg)
    video, share = backend.tensor(video), 1.0 / comm.batches
    reduce, total = comm.reducer(), comm.all_reduce
    exchange = dict(fetch=comm.all_gather, reduce=reduce)
    kl_weight = float(weights["kl"])
    reconstruction = tae_losses.make_reconstruction(*(share * float(weights[name]) for name in ("l1", "mse")), share)
    sample = tae_losses.make_sample_and_kl(cfg.latent_channels, share)
    *body, head = tae.segments(cfg, "decoder", recompute)

    moments, pull_encoder = layerwise.chain(params, tae.segments(cfg, "encoder", recompute), video, False, **exchange)
    (z, kl), pull_sample = layerwise.vjp(sample, {}, moments, noise, wrt=1)
    before_head, pull_body = layerwise.chain(params, body, z, **exchange)
    decoded, pull_head = layerwise.chain(params, [head], before_head, **exchange)
    (loss, mse), _, (dout,) = layerwise.value_and_grad(reconstruction, {}, decoded, video, wrt=1, aux=True)
    loss = loss + kl_weight * kl
    losses = {"mse": mse, "kl": kl}
    frames = video.shape[2]
    shown = decoded[:, :, :frames]
    if weights.get("lpips"):
        value, slope = lpips.mean_and_pull(perceptual, video, shown, share)
        dout = dout + _with_spurious(slope * float(weights["lpips"]), decoded)
        loss, losses["lpips"] = loss + float(weights["lpips"]) * value, value
    if adversary:
        value, slope = adversary(shown)
        slope = _with_spurious(slope, decoded)
        pulls = [_pull_on_head(params, head, comm.all_gather, before_head, d, total) for d in (dout, slope)]
        factor = float(weights["adversarial"]) * min(pulls[0] / (pulls[1] + 1e-4), 1e4)
        dout = dout + slope * factor
        loss, losses["adversarial"] = loss + factor * value, value
    grads, dx = pull_head(dout)
    more, dz = pull_body(dx)
    if weights.get("outlier"):
        outlier = tae_losses.make_outlier(float(weights["outlier_radius"]), share)
        value, pull_outlier = layerwise.vjp(outlier, {}, z)
        dz = dz + pull_outlier(np.float32(weights["outlier"]))[1][0]
        loss, losses["outlier"] = loss + float(weights["outlier"]) * value, value
    _, (dmoments,) = pull_sample(dz, np.float32(kl_weight))
    grads = grads | more | pull_encoder(dmoments)[0] | reduce({}, last=True)
    return {name: total(value) for name, value in ({"loss": loss} | losses).items()}, grads


def _check_levels(recompute: Sequence[int], cfg: Any) -> None:
    levels = len(cfg.channel_multipliers)
    if not set(recompute) <= set(range(levels)):
        raise ConfigError(
            f"train.recompute_levels is {tuple(recompute)}, expected levels from 0, the pixels', to {levels - 1}"
        )


def _with_spurious(slope: ms.Tensor, decoded: ms.Tensor) -> ms.Tensor:
    """A gradient of the frames that count, with zeros for the others that were decoded."""
    b, c, t, h, w = decoded.shape
    missing = t - slope.shape[2]
    return ops.concat((slope, ops.zeros((b, c, missing, h, w), slope.dtype)), 2) if missing else slope


def _pull_on_head(params: Params, head: Any, fetch: Callable, x: ms.Tensor, dout: ms.Tensor, total: Callable) -> float:
    """Norm of the gradient of the last 2-D convolution, over the whole batch."""
    fn, names = head
    found = fetch({path: params[path] for path in names.values()})
    grads, _ = layerwise.pull(fn, {name: found[path] for name, path in names.items()}, (x,), (dout,), 0)
    return float(np.linalg.norm(total(grads["conv/spatial/w"]).asnumpy()))
