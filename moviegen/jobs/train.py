"""Trains the generator; a killed run continues from its workdir as if nothing had happened."""

from moviegen.runner import Run
from moviegen.sampling import previews
from moviegen.training import generator


def run(run: Run) -> dict[str, float]:
    """Trains to `train.steps` and samples `valid.prompts` as it goes."""
    return generator.train(run, previews.show(run))
