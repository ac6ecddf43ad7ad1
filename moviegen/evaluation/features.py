"""Features of frames, by an extractor that the config names, for the Fréchet distance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moviegen import config as configs
from moviegen.data import video
from moviegen.errors import ConfigError
from moviegen.models import lpips

Extractor = Callable[[np.ndarray], np.ndarray]  # frames uint8 (t h w c) -> features float64 (n d)


def extractor(config: Any, perceptual: Any) -> Extractor | None:
    """Returns what `evaluate.features` names: nothing, "vgg" (LPIPS's network, `perceptual`) or "FILE.py:FUNCTION".

    Raises ConfigError for any other name and, when called, for features of another shape.
    """
    name = config.evaluate.features
    if not name:
        return None
    extract = _vgg(perceptual) if name == "vgg" else _from_file(name, config)

    def features(frames: np.ndarray) -> np.ndarray:
        found = np.asarray(extract(frames), np.float64)
        if found.ndim != 2:
            raise ConfigError(
                f"evaluate.features is {name!r}: its function gave an array of shape {found.shape}, expected (n d)"
            )
        return found

    return features


def _vgg(perceptual: Any) -> Callable:
    if perceptual is None:
        raise ConfigError("evaluate.features is 'vgg', whose network is LPIPS's: give evaluate.lpips_weights")
    return lambda frames: lpips.pooled(perceptual, video.to_model(frames).swapaxes(0, 1))


def _from_file(name: str, config: Any) -> Callable:
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise ConfigError(
            f"evaluate.features is {name!r}, expected 'vgg' or FILE.py:FUNCTION, a function that takes this config and returns "
            "one from frames uint8 (t h w c) to features (n d)"
        )
    return configs.call_in_file(Path(path), function, lambda make: make(config))
