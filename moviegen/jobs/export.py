"""Exports the weights of a checkpoint as safetensors files, which other tools read."""

from pathlib import Path

from moviegen import config as configs
from moviegen.errors import ConfigError
from moviegen.models.transformer import model as transformer
from moviegen.models.transformer.shapes import FLOAT32
from moviegen.nn import dtypes
from moviegen.nn.tree import match
from moviegen.runner import Run
from moviegen.storage import arraystore, checkpoint, safetensors_io

CHOICES = {"weights": ("ema", "params"), "dtype": ("float32", "bfloat16", "float16")}


def run(run: Run) -> dict[str, float]:
    """Writes `WORKDIR/export/model*.safetensors`, cut at `export.shard_bytes`, one array in memory at a time.

    `export.dtype` is that of what the model computes in its compute dtype; the rest stays float32.

    The checkpoint is the newest of `export.checkpoint`, by default the run's own `checkpoints`, or the one whose folder
    that names. Raises ConfigError for a wrong setting, or when the weights are not those of `config.model`.
    """
    config, workdir = run.config, run.workdir
    settings = config.export
    for key, known in CHOICES.items():
        if settings[key] not in known:
            raise ConfigError(f"export.{key} is {settings[key]!r}, expected one of {', '.join(known)}")
    if settings.shard_bytes < 1:
        raise ConfigError(f"export.shard_bytes is {settings.shard_bytes}, expected at least 1")
    folder = Path(settings.checkpoint or workdir / "checkpoints")
    tree = checkpoint.averaged(folder) if settings.weights == "ema" else settings.weights
    trees, meta = checkpoint.lazy(folder, select=f"^{tree}/")
    arrays = trees[tree]
    match(arrays, [], transformer.shapes(config.model), f"; the weights are those in {folder}")
    metadata = {key: meta[key] for key in ("step", "latent_shift", "latent_scale", "trained_with") if key in meta}
    metadata |= {"weights": tree, "model": configs.to_plain(config.model)}
    kinds = dtypes.by_path(arrays, settings.dtype, FLOAT32)
    arrays = {path: arraystore.cast(array, kinds[path]) for path, array in arrays.items()}
    files = safetensors_io.write_shards(arrays, workdir / "export", None, settings.shard_bytes, metadata)
    print(f"export: {tree} of step {meta['step']} of {folder} in {len(files)} file(s) in {files[0].parent}", flush=True)
    return {"step": meta["step"], "files": len(files)}
