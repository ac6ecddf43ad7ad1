"""Converts weights of others into ours, and the autoencoder's into the names of others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.convert import lpips, mindspore_ckpt, sd35, seed, tae_names, torch_bin
from moviegen.errors import ConfigError, DataError
from moviegen.models.tae import weights as tae_weights
from moviegen.runner import Run
from moviegen.storage import safetensors_io

KINDS = ("tae", "lpips")


def run(run: Run) -> dict[str, float]:
    """Read `convert.source`, write `convert.target` (safetensors, float32), and return how many arrays it holds.

    kind "tae": an image autoencoder in diffusers' names, which is inflated; the seed's autoencoder, a MindSpore .ckpt or
    safetensors; or ours, a file or a folder of checkpoints. Whose it is, its names say. Written in `convert.naming`:
    "moviegen", "seed" or "diffusers". kind "lpips": torchvision's VGG16, with the channel weights in `convert.heads`.
    Files of torch (.pth, .pt, .bin) and MindSpore are read without unpickling. Raises ConfigError or DataError.
    """
    config = run.config
    if "convert" not in config:
        raise ConfigError("this experiment has no section `convert`: take one with it, such as experiments/tae.py")
    settings = config.convert
    for key, known in (("kind", KINDS), ("naming", tae_names.NAMINGS)):
        if settings[key] not in known:
            raise ConfigError(f"convert.{key} is {settings[key]!r}, expected one of {', '.join(known)}")
    if not settings.target.endswith(".safetensors"):
        raise ConfigError(
            f"convert.target is {settings.target!r}, expected the name of a file that ends in .safetensors"
        )
    source = _existing("source", settings.source)
    if settings.kind == "lpips":
        arrays = lpips.vgg(read(source), read(_existing("heads", settings.heads)))
        origin = "VGG16 and LPIPS's channel weights"
    else:
        params, origin = _tae(source, config.tae)
        arrays = tae_names.export(params, config.tae, settings.naming)
    safetensors_io.write(arrays, settings.target)
    print(f"convert: {origin} in {source}; {len(arrays)} arrays written to {settings.target}", flush=True)
    return {"arrays": len(arrays)}


def read(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays of a file by name, of whichever format its suffix says. Nothing in it is executed."""
    readers = {".safetensors": safetensors_io.read, ".ckpt": mindspore_ckpt.read}
    readers |= dict.fromkeys((".pth", ".pt", ".bin"), _read_torch)
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a file that ends in {', '.join(readers)}")
    return readers[path.suffix](path)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in torch_bin.lazy(path).items()}


def _tae(source: Path, cfg: Any) -> tuple[dict, str]:
    if source.is_dir():
        return tae_weights.load(source, cfg), "an autoencoder of ours"
    arrays = read(source)
    if any(name.startswith("encoder/") for name in arrays):
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
