"""moviegen: Movie Gen's video models on MindSpore. `moviegen.run(config)` is what launch.py calls."""

import os

from moviegen.runner import run

__all__ = ["run"]

# MindSpore warns about every graph that it compiles; its errors are still shown. Set GLOG_v=2 to see the warnings.
os.environ.setdefault("GLOG_v", "3")
