"""Averages the weights of several runs or checkpoints into one: the paper's last step, after fine-tuning."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moviegen.data import trained_with
from moviegen.errors import ConfigError, DataError
from moviegen.models.transformer import model as transformer
from moviegen.nn.tree import match
from moviegen.runner import Run
from moviegen.storage import arraystore, checkpoint, trained
from moviegen.storage.arraystore import Lazy
from moviegen.storage.trained import Trained


def run(run: Run) -> dict[str, float]:
    """Writes the mean of the weights in `average_weights.checkpoints` as step 0 in `WORKDIR/checkpoints`, in float32.

    Each is what `train.init_from` takes; of a checkpoint the EMA, where there is one. `average_weights.weights` weighs them,
    empty: all alike. Sums are float64; a few arrays are in memory at a time. Raises ConfigError where they are not of one
    model, autoencoder, text or scale of latents, or where the workdir holds the checkpoints of a training.
    """
    config, folder = run.config, run.workdir / "checkpoints"
    settings = config.average_weights
    if len(settings.checkpoints) < 2:
        raise ConfigError(
            f"average_weights.checkpoints is {settings.checkpoints!r}, expected two or more workdirs, checkpoints or exports"
        )
    weights = tuple(settings.weights) or (1.0,) * len(settings.checkpoints)
    if len(weights) != len(settings.checkpoints):
        raise ConfigError(
            f"average_weights.weights has {len(weights)} numbers for {len(settings.checkpoints)} average_weights.checkpoints"
        )
    there = checkpoint.latest(folder)
    if there is not None and "average_of" not in checkpoint.lazy(folder, there)[1]:
        raise ConfigError(
            f"{folder} holds step {there} of a training, which step 0 would replace: take another --workdir"
        )
    found = [trained.find(path) for path in settings.checkpoints]
    shapes = transformer.shapes(config.model)
    for each in found:
        match(each.arrays, [], shapes, f"; the weights are those in {each.source}")
    meta = _agreed(found, config)
    shares = [weight / sum(weights) for weight in weights]
    meta["average_of"] = [
        {"source": each.source, "step": each.meta.get("step"), "weight": share}
        for each, share in zip(found, shares, strict=True)
    ]
    mean = {path: arraystore.whole(_mean(path, found, shares)) for path in shapes}
    checkpoint.save(folder, 0, {"params": mean}, meta)
    for each, share in zip(found, shares, strict=True):
        print(f"average_weights: {share:.4g} of {each.source}", flush=True)
    print(f"average_weights: {len(mean)} arrays in {folder}", flush=True)
    return {"checkpoints": len(found), "arrays": len(mean)}


def _agreed(found: Sequence[Trained], config: Any) -> dict[str, Any]:
    """What all of them note of latents and settings. ConfigError, naming two of them, where they do not agree."""
    first, *others = found
    keys = ("latent_shift", "latent_scale", "trained_with")
    meta = {key: first.meta[key] for key in keys if key in first.meta}
    now = trained_with.describe(config, None)
    trained_with.check(trained_with.noted(first.meta), {"model": now["model"]}, first.source)
    for each in others:
        trained_with.check(
            trained_with.noted(first.meta), trained_with.noted(each.meta), first.source, trained_with.STAGE
        )
        if [key for key in keys[:2] if key in first.meta] != [key for key in keys[:2] if key in each.meta]:
            raise ConfigError(f"only one of {first.source} and {each.source} says how its latents were scaled")
        if keys[1] in meta:
            scales = ([one.meta[key] for key in keys[:2]] for one in (first, each))
            if other := trained_with.statistics(*scales):
                raise ConfigError(f"{each.source} and {first.source} know latents of other scales: {other[0]}")
    return meta


def _mean(path: str, found: Sequence[Trained], shares: Sequence[float]) -> Lazy:
    """The mean of one array, which is summed when it is written."""
    shape = found[0].arrays[path].shape

    def read() -> np.ndarray:
        total = np.zeros(shape)
        for each, share in zip(found, shares, strict=True):
            array = np.asarray(each.arrays[path]).astype(np.float64)
            if not np.isfinite(array.sum()):
                raise DataError(f"{each.source}: {path} has numbers that are not finite")
            total += share * array
        return total.astype(np.float32)

    return Lazy(shape, np.dtype(np.float32), read)
