"""Runs the whole course at toy size: autoencoder, text to image, text to video, samples, report."""

from moviegen.demo import course
from moviegen.runner import Run


def run(run: Run) -> dict[str, float]:
    """Runs all stages, or `--stage` alone, and returns the report's numbers (or that stage's)."""
    return course.run(run)
