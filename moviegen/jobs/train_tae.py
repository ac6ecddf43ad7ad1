"""Trains the temporal autoencoder; a killed run continues from its workdir as if nothing had happened."""

from moviegen.runner import Run
from moviegen.training import autoencoder


def run(run: Run) -> dict[str, float]:
    """Trains to `train.steps` and returns the validation metrics of the EMA weights."""
    return autoencoder.train(run)
