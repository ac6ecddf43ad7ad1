"""The full-size autoencoder at a quarter of its width, trained on real clips until it beats a linear code.

    python launch.py --config=experiments/small_tae.py --workdir=runs/small_tae

Curve and numbers: docs/tae.md.
"""

from ml_collections import ConfigDict

from experiments import common, tiny_tae


def get_config() -> ConfigDict:
    """As the autoencoder that ships, but for this."""
    config = tiny_tae.get_config()
    config.tae = common.tae("small", latent_shift=0.0, latent_scale=1.0)
    config.data.synthetic_fraction = 0.0  # nothing but what the held-out clip is like
    config.optim.learning_rate = 6e-4  # twice the width of tiny's
    config.ema.decay = 0.998
    config.train.steps = 2400
    return config
