"""Imports safetensors weights as a checkpoint that training and sampling start from."""

from pathlib import Path

from moviegen.data import trained_with
from moviegen.errors import ConfigError
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
    noted, now = trained_with.noted(metadata), trained_with.describe(config, None)
    statistics, told = trained_with.scaled(metadata, config.tae, config.tae.latent_channels, path)
    for line in [*trained_with.check(noted, now, path), *told]:
        print(f"import: {line}", flush=True)
    weights = {name: arraystore.whole(arraystore.cast(array, "float32")) for name, array in arrays.items()}
    folder = workdir / "imported"
    checkpoint.save(folder, 0, {"params": weights}, statistics | known)
    print(f"import: {len(weights)} arrays of {path}; start from {folder}", flush=True)
    return {"arrays": len(weights)}
