"""How well the autoencoder reconstructs: PSNR and SSIM of clips that were not trained on, beside two baselines."""

from collections.abc import Callable
from typing import Any

import numpy as np

from moviegen.data import clips, synthetic, video
from moviegen.evaluation import metrics
from moviegen.models import lpips
from moviegen.models.tae import tiles as tae_tiles
from moviegen.nn import backend
from moviegen.parallel import collectives
from moviegen.parallel.mesh import ALONE, Group


def roundtrip(params: Any, cfg: Any, clip: np.ndarray) -> np.ndarray:
    """A uint8 clip (t h w c) through encoder (posterior mean) and decoder, in tiles as `tae_tiles` takes them."""
    mean, _ = tae_tiles.encode(params, cfg, video.to_model(clip)[None])
    return np.concatenate([video.to_uint8(piece[0]) for piece in tae_tiles.stream(params, cfg, mean, len(clip))])


def validation_clips(config: Any) -> dict[str, np.ndarray]:
    """Clips by name, uint8 (t h w c): held-out synthetic ones, and the held-out real clip where training is on real ones."""
    found = heldout((64, 64), 32, 16)
    return {name: clip() for name, clip in found.items() if name != "real" or config.data.source == "clips"}


def heldout(size: tuple[int, int], real_frames: int, synthetic_frames: int) -> dict[str, Callable[[], np.ndarray]]:
    """Clips that no training of ours sees, by name, each made when called; the real one needs a package (data/clips.py)."""
    made = {
        f"synthetic{i}": lambda i=i: synthetic.sample_clip(7, i, "heldout", synthetic_frames, size)[0] for i in range(4)
    }
    return {"real": lambda: clips.heldout_clip(real_frames, size)} | made


def evaluate(
    params: Any, cfg: Any, validation: dict[str, np.ndarray], perceptual: Any = None, world: Group = ALONE
) -> dict[str, float]:
    """Mean PSNR and SSIM, and LPIPS given its parameters, of the real clip and of the synthetic ones.

    The ranks of `world`, which all call it, share the clips.
    """
    kinds = [name.rstrip("0123456789") for name in validation]
    keys = ["psnr", "ssim"] + (["lpips"] if perceptual is not None else [])
    sums = {f"{kind}_{key}": 0.0 for kind in kinds for key in keys}
    for number, (kind, clip) in enumerate(zip(kinds, validation.values(), strict=True)):
        if number % world.size == world.rank:
            for key, value in measure(clip, roundtrip(params, cfg, clip), perceptual).items():
                sums[f"{kind}_{key}"] += value
    if world.size > 1:
        totals = collectives.all_reduce(world)(backend.tensor(np.float32([*sums.values()]))).asnumpy()
        sums = dict(zip(sums, totals.tolist(), strict=True))
    return {key: total / kinds.count(key.rpartition("_")[0]) for key, total in sums.items()}


def measure(clip: np.ndarray, made: np.ndarray, perceptual: Any = None) -> dict[str, float]:
    """Means over the frames of two uint8 clips (t h w c): {"psnr", "ssim"}, and "lpips" given its parameters."""
    found = {"psnr": metrics.mean_psnr(clip, made), "ssim": float(metrics.ssim(clip, made).mean())}
    if perceptual is not None:
        a, b = (video.to_model(x)[None] for x in (clip, made))
        found["lpips"] = float(lpips.of_clips(perceptual, a, b).mean(dtype=np.float64))
    return found
