"""The SD3.5 image autoencoder (diffusers names) inflated into a temporal one that reproduces it on one frame."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moviegen.convert import tae_names
from moviegen.convert.names import swap
from moviegen.models.tae import model
from moviegen.nn import backend
from moviegen.nn.tree import match


def tae(arrays: Mapping[str, np.ndarray], cfg: Any) -> dict:
    """Returns parameters of a temporal autoencoder from an image autoencoder's arrays by name, in float32.

    Temporal kernels, which the image model lacks, start as the identity and the temporal attention's output as zero, so
    that the result on one frame is the image model's. Raises ConfigError naming every missing, extra or wrongly shaped
    parameter. Source: paper, TAE initialisation.
    """
    levels = len(cfg.channel_multipliers)
    found = {}
    for name, value in arrays.items():
        path = _path(name, levels)
        value = np.asarray(value).astype(np.float32)
        found[path] = value.reshape(value.shape[:2]) if "attention/" in path and value.ndim == 4 else value
    match(found, [], {path: shape for path, shape in model.shapes(cfg).items() if "/temporal" not in path}, "")
    for path, start in model.init(cfg, 0).items():
        if "/temporal" in path:
            nothing = "attention/out/" in path or path.endswith("/b")
            found[path] = np.zeros(start.shape, np.float32) if nothing else start
    return backend.to_tensors(found)


def _path(name: str, levels: int) -> str:
    module, _, leaf = name.rpartition(".")
    module = swap(tae_names.turned(module, levels), tae_names.DIFFUSERS, back=True).replace(".", "/")
    if module.rpartition("/")[2].startswith("norm"):
        return f"{module}/{'scale' if leaf == 'weight' else leaf}"
    leaf = {"weight": "w", "bias": "b"}.get(leaf, leaf)
    return f"{module}/{leaf}" if "attention/" in module else f"{module}/spatial/{leaf}"
