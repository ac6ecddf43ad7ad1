"""The autoencoder's weights on disk: where they are, what they are, reading them."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from moviegen import config as configs
from moviegen.errors import ConfigError, DataError
from moviegen.models.tae import model, shapes
from moviegen.nn import backend
from moviegen.storage import checkpoint, fingerprint, safetensors_io, schema


def load(path: str | Path, cfg: Any) -> dict[str, Any]:
    """Returns weights from a safetensors file or the averaged weights of a checkpoint folder, checked against cfg.

    Other settings than those that they were trained with, which shapes do not show, are said: training may go on so.
    """
    path = Path(path)
    if path.is_dir():
        tree = checkpoint.averaged(path)
        trees, noted = checkpoint.load(path, select=f"^{tree}/")
        arrays = trees[tree]
    else:
        arrays, noted = safetensors_io.read(path), safetensors_io.lazy(path)[1]
    arrays = {name: array for name, array in arrays.items() if not name.startswith(shapes.DISCRIMINATOR)}
    want = shapes.shapes(cfg)
    wrong = [name for name in want | arrays if name not in arrays or want.get(name) != arrays[name].shape]
    if wrong:
        raise DataError(
            f"{path}: these weights are not of this tae config: {', '.join(sorted(wrong)[:5])} ({len(wrong)} differ)"
        )
    own, trained = settings(cfg), noted.get("tae", {})
    differs = configs.changes(*({key: each[key] for key in own.keys() & trained.keys()} for each in (trained, own)))
    if differs:
        print(
            f"{path} was trained with other settings of `tae` ({'; '.join(differs)}): what it makes differs", flush=True
        )
    return backend.to_tensors({name: array.astype(np.float32) for name, array in arrays.items()})


def load_to_compute(path: str | Path, cfg: Any) -> dict[str, Any]:
    """Returns what `load` does, each in the dtype that it is computed with. ConfigError where this device has none such."""
    model.compute_dtype(cfg)
    params, kinds = load(path, cfg), shapes.parameter_dtypes(cfg)
    for name in params:  # one by one, so that they are not in memory twice
        if kinds[name] != "float32":
            params[name] = params[name].astype(getattr(ms, kinds[name]))
    return params


def settings(cfg: Any) -> dict[str, Any]:
    """What weights are trained with and used with ever after, as JSON holds it.

    Neither tiles nor the scale of latents, nor the precision of products.
    """
    free = ("latent_shift", "latent_scale", "spatial_tile", "compute_dtype")
    return {key: value for key, value in configs.to_plain(cfg).items() if key not in free}


def latent_statistics(meta: Mapping[str, Any], channels: int, place: Path) -> dict[str, tuple[float, ...]]:
    """Returns the latents' shift and scale by channel that the file or folder `place` notes. DataError for a wrong one."""
    found = {}
    for key, fits in (("latent_shift", schema.number), ("latent_scale", lambda n: schema.number(n) and n > 0)):
        values = meta.get(key)
        if not isinstance(values, list) or len(values) != channels or not all(map(fits, values)):
            kind = "finite" if key == "latent_shift" else "positive"
            raise DataError(f"{place}: {key} is {reprlib.repr(values)}, expected {channels} {kind} numbers")
        found[key] = tuple(values)
    return found


def configured(config: Any) -> Path:
    """Returns the file or folder that `data.tae_weights` names; "package:NAME" is a file that ships with the package."""
    return find(config.data.tae_weights, "data.tae_weights")


def find(name: str, key: str) -> Path:
    """Returns the file or folder of the name that the config's `key` has. ConfigError where there is none."""
    shipped = Path(__file__).parent / "trained"
    path = shipped / f"{name[8:]}.safetensors" if name.startswith("package:") else Path(name)
    if not name or not path.exists():
        raise ConfigError(f"{key} is {name!r}: expected a safetensors file or a checkpoint folder that exists")
    return path


def digest(path: Path) -> str:
    """Returns a short checksum of a file, or of all files of a folder."""
    return fingerprint.digest(sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])
