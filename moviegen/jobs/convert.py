"""Converts weights of others into ours, and the autoencoder's into the names of others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moviegen import config as configs
from moviegen.convert import lpips, mindspore_ckpt, sd35, seed, tae_names, torch_bin
from moviegen.errors import ConfigError, DataError
from moviegen.models.tae import weights as tae_weights
from moviegen.runner import Run
from moviegen.storage import safetensors_io
from moviegen.storage.arraystore import Lazy


def run(run: Run) -> dict[str, float]:
    """Read `convert.source`, write `convert.target` (safetensors, float32), and return how many arrays it holds.

    kind "transformer", of a generator's experiment: the seed's generator, a MindSpore .ckpt or safetensors, an array in
    memory at a time. Of the autoencoder's experiments, kind "tae": an image autoencoder in diffusers' names, which is
    inflated; the seed's autoencoder; or ours, a file or a folder of checkpoints. Whose it is, its names say. Written in
    `convert.naming`: "moviegen", "seed" or "diffusers". kind "lpips": torchvision's VGG16, with the channel weights in
    `convert.heads`. Nothing in a file is executed. Raises ConfigError or DataError.
    """
    config = run.config
    settings, metadata = _settings(config), {}
    source = _existing("source", settings.source)
    if settings.kind == "transformer":
        arrays, origin = seed.lazy_transformer(lazy(source), config.model), "the seed's generator"
        metadata["model"] = configs.to_plain(config.model)  # what --job=import_weights compares with
    elif settings.kind == "lpips":
        arrays = lpips.vgg(lazy(source), lazy(_existing("heads", settings.heads)))
        origin = "VGG16 and LPIPS's channel weights"
    else:
        params, origin = _tae(source, config.tae)
        arrays = tae_names.export(params, config.tae, settings.naming)
    safetensors_io.write(arrays, settings.target, metadata=metadata)
    print(f"convert: {origin} in {source}; {len(arrays)} arrays written to {settings.target}", flush=True)
    return {"arrays": len(arrays)}


def lazy(path: Path) -> Mapping[str, Lazy]:
    """The arrays of a file by name, of whichever format its suffix says, each read when it is needed."""
    readers = {".safetensors": lambda path: safetensors_io.lazy(path)[0], ".ckpt": mindspore_ckpt.lazy}
    readers |= dict.fromkeys((".pth", ".pt", ".bin"), torch_bin.lazy)
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a file that ends in {', '.join(readers)}")
    return readers[path.suffix](path)


def _settings(config: Any) -> Any:
    where = "tae and lpips are in experiments/tae.py, the generator in a stage such as experiments/1b_stage1.py"
    settings = config.convert
    kinds = ("transformer",) if "model" in config else ("tae", "lpips")
    if settings.kind not in kinds:
        expected = f"expected one of {', '.join(kinds)} in this experiment"
        raise ConfigError(f"convert.kind is {settings.kind!r}, {expected}: {where}")
    if not settings.target.endswith(".safetensors"):
        raise ConfigError(f"convert.target is {settings.target!r}, expected a file name that ends in .safetensors")
    return settings


def _tae(source: Path, cfg: Any) -> tuple[dict, str]:
    arrays = {} if source.is_dir() else lazy(source)
    if source.is_dir() or any(name.startswith("encoder/") for name in arrays):
        return tae_weights.load(source, cfg), "an autoencoder of ours"
    if any("down_blocks." in name for name in arrays):
        return sd35.tae(arrays, cfg), "an image autoencoder in diffusers' names, inflated,"
    if any(".conv_spat." in name for name in arrays):
        if cfg.temporal_upsample_padding != "zeros":
            print(
                "convert: the seed's autoencoder pads with zeros where it doubles frames: use its weights with "
                "--config=experiments/tae.py:compat=seed, or train on with replicated frames as the paper has it",
                flush=True,
            )
        return seed.tae(arrays, cfg), "the seed's autoencoder"
    raise DataError(
        f"{source}: neither diffusers' names (encoder.down_blocks...), the seed's (...conv_spat...) nor ours (encoder/...), "
        f"but {', '.join(sorted(arrays)[:3])}"
    )


def _existing(key: str, path: str) -> Path:
    if not path or not Path(path).exists():
        raise ConfigError(f"convert.{key} is {path!r}, which does not exist: name the file to read")
    return Path(path)
