"""Trains the generator; a killed run continues from its workdir as if nothing had happened."""

from moviegen.runner import Run
from moviegen.training import generator


def run(run: Run) -> dict[str, float]:
    """Trains to `train.steps` and returns the last losses and the last held-out loss."""
    return generator.train(run)
