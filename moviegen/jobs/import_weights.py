"""Imports safetensors weights as a checkpoint that training and sampling start from."""

from pathlib import Path

import numpy as np

from moviegen.data import trained_with
from moviegen.errors import ConfigError
from moviegen.models.tae import weights as tae_weights
from moviegen.models.transformer import model as transformer
from moviegen.nn.tree import match
from moviegen.runner import Run
from moviegen.storage import arraystore, checkpoint, safetensors_io


def run(run: Run) -> dict[str, float]:
    """Writes the weights of `import_weights.path` as step 0 in `WORKDIR/imported`, in float32, a few arrays at a time.

    That folder is for `train.init_from` and `sample.checkpoint`; it is not the run's own `checkpoints`, which step 0
    would replace. Raises ConfigError naming every missing, extra or wrongly shaped array, and settings of the model that
    an export of ours was made with and that differ.
    """
    config, workdir = run.config, run.workdir
    path = Path(config.import_weights.path)
    if not config.import_weights.path or not path.exists():
        raise ConfigError(
            f"import_weights.path is {config.import_weights.path!r}: expected a safetensors file or a folder of them"
        )
    arrays, metadata = safetensors_io.lazy(path)
    match(arrays, [], transformer.shapes(config.model), f"; the weights are those in {path}")
    known = {"trained_with": metadata["trained_with"]} if "trained_with" in metadata else {}
    noted = {"model": metadata.get("model")} | known.get("trained_with", {})  # the model is all that exports once told
    for line in trained_with.check(noted, trained_with.describe(config, None), path):
        print(f"import: {line}", flush=True)
    keys, channels = ("latent_shift", "latent_scale"), config.tae.latent_channels
    if all(key in metadata for key in keys):
        statistics = tae_weights.latent_statistics(metadata, channels, path)
    else:
        print("import: the file does not say how its latents were scaled; taken as config.tae says", flush=True)
        statistics = {key: np.broadcast_to(config.tae[key], channels).tolist() for key in keys}
    weights = {name: arraystore.whole(arraystore.cast(array, "float32")) for name, array in arrays.items()}
    folder = workdir / "imported"
    checkpoint.save(folder, 0, {"params": weights}, statistics | known)
    print(f"import: {len(weights)} arrays of {path}; start from {folder}", flush=True)
    return {"arrays": len(weights)}
