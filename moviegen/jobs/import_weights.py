"""Imports safetensors weights as a checkpoint that training and sampling start from."""

from pathlib import Path

import numpy as np

from moviegen import config as configs
from moviegen.errors import ConfigError
from moviegen.models.transformer import model as transformer
from moviegen.nn.tree import match
from moviegen.runner import Run
from moviegen.storage import arraystore, checkpoint, safetensors_io

BESIDE_THE_WEIGHTS = ("compute_dtype", "weight_std", "position_std")  # free to differ from what they were trained with


def run(run: Run) -> dict[str, float]:
    """Writes the weights of `import_weights.path` as step 0 in `WORKDIR/imported`, in float32, a few arrays at a time.

    That folder is for `train.init_from` and `sample.checkpoint`; it is not the run's own `checkpoints`, which step 0
    would replace. Raises ConfigError naming every missing, extra or wrongly shaped array, and settings of the model that
    an export of ours was made with and that differ.
    """
    config, workdir = run.config, run.workdir
    configs.require(config, "import_weights", "model")
    path = Path(config.import_weights.path)
    if not config.import_weights.path or not path.exists():
        raise ConfigError(
            f"import_weights.path is {config.import_weights.path!r}: expected a safetensors file or a folder of them"
        )
    arrays, metadata = safetensors_io.lazy(path)
    match(arrays, [], transformer.shapes(config.model), f"; the weights are those in {path}")
    made_with = metadata.get("model")
    differs = configs.changes(made_with, configs.to_plain(config.model)) if made_with else []
    differs = [line for line in differs if line.split(":")[0] not in BESIDE_THE_WEIGHTS]
    if differs:
        raise ConfigError(f"{path} was exported with another model: {'; '.join(differs)}; change the config's model")
    keys = ("latent_shift", "latent_scale")
    statistics = {key: metadata[key] for key in keys if key in metadata}
    if len(statistics) < len(keys):
        print("import: the file does not say how its latents were scaled; taken as config.tae says", flush=True)
        statistics = {key: np.broadcast_to(config.tae[key], config.tae.latent_channels).tolist() for key in keys}
    weights = {name: arraystore.whole(arraystore.cast(array, "float32")) for name, array in arrays.items()}
    folder = workdir / "imported"
    checkpoint.save(folder, 0, {"params": weights, "ema": weights}, statistics)
    print(f"import: {len(weights)} arrays of {path}; start from {folder}", flush=True)
    return {"arrays": len(weights)}
