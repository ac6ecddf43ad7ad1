"""An autoencoder small enough to test: its config, weights of which each has an effect, clips, and shapes of none."""

import numpy as np

from experiments import common
from moviegen.models.tae import model as tae

WRONG_VIDEOS = [(1, 3, 8, 16, 20), (1, 3, 8, 12, 16), (1, 4, 8, 16, 16), (3, 8, 16, 16), (1, 3, 0, 16, 16)]


def tiny(**overrides):
    return common.tae("tiny", base_channels=8, channel_multipliers=(1, 1, 2, 2), norm_groups=4, **overrides)


def random_params(cfg, seed=0):
    """Every parameter random and of effect, so that no gradient is small for the start's sake."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in tae.shapes(cfg).items():
        value = rng.standard_normal(shape)
        if path.endswith("scale"):
            value = 1 + 0.2 * value
        elif len(shape) == 1:
            value = 0.2 * value
        else:
            value = value * np.prod(shape[1:]) ** -0.5
        params[path] = value.astype(np.float32)
    return params


def video(frames, batch=2, size=16, seed=0):
    return np.tanh(np.random.default_rng([seed, frames]).standard_normal((batch, 3, frames, size, size))).astype("f")
