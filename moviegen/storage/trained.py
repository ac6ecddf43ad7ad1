"""Trained weights to go on from, wherever they lie: of a run, one of its checkpoints, or exported files."""

from pathlib import Path
from typing import Any, NamedTuple

from moviegen.errors import DataError
from moviegen.storage import checkpoint, safetensors_io
from moviegen.storage.arraystore import Lazy


class Trained(NamedTuple):
    """Weights by name, each read when it is needed, what is noted of them, and what they are called in messages."""

    arrays: dict[str, Lazy]
    meta: dict[str, Any]
    source: str


def find(path: str | Path) -> Trained:
    """The weights in a run's workdir, its folder of checkpoints or one of these, a safetensors file or a folder of such.

    Of a checkpoint they are the average, where there is one. DataError where there are none, or damaged ones.
    """
    path = Path(path)
    if safetensors_io.is_export(path):
        return Trained(*safetensors_io.lazy(path), str(path))
    if checkpoint.latest(path) is None:
        raise DataError(
            f"{path}: {'holds no trained weights' if path.exists() else 'is not there'}, expected the workdir of a run, "
            "a folder of its checkpoints or one of them, or safetensors files as --job=export writes them"
        )
    trees, meta = checkpoint.lazy(path)
    tree = "ema" if "ema" in trees else "params"
    return Trained(trees[tree], meta, f"{path} ({tree} of step {meta['step']})")
