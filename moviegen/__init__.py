"""moviegen: Movie Gen's video models on MindSpore. `moviegen.run(config)` is what launch.py calls."""

from moviegen.runner import run

__all__ = ["run"]
