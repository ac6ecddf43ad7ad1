"""Cached latents of a csv's videos: shards of safetensors with a manifest, or the seed's folder of npz files.

A shard holds the posterior's `mean/NAME` and `std/NAME` (t c h w), raw, of some videos, and notes the sums that their
statistics are made of. Shards appear whole, by a rename; what is cached is what the shards' headers say, so a kill loses one
shard's work, ranks need not agree on anything, and any number of them may go on.
"""

import functools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import config as configs
from moviegen.errors import ConfigError
from moviegen.models.tae import weights as tae_weights
from moviegen.storage import files, safetensors_io
from moviegen.storage.arraystore import Lazy

SHARD_BYTES = 64 << 20
SECONDS = 120.0  # after which a shard is written however little is in it: what a kill can cost
KEYS = ("latent_mean", "latent_std")  # of the seed's npz files
CROP = "centre"


def manifest(config: Any, weights: Path | None) -> dict[str, Any]:
    """What the latents of a cache depend on; without the weights if there are none to name."""
    data = config.data
    found = {
        "tae": _model(config),
        "height": data.height,
        "width": data.width,
        "num_frames": data.num_frames,
        "fps": float(data.get("fps", 0.0)),
        "crop": CROP,
        "dtype": data.get("latent_dtype", "float32"),
    }
    return found | ({"weights": tae_weights.digest(weights)} if weights else {})


def _model(config: Any) -> dict[str, Any]:
    """The autoencoder's settings but for those of the space that latents are mapped to after they are read."""
    return {k: v for k, v in configs.to_plain(config.tae).items() if k not in ("latent_shift", "latent_scale")}


def check(folder: Path, config: Any) -> None:
    """Raises ConfigError, naming what differs, when a cache was made otherwise than `config` would.

    Fewer frames than are cached are as good. The dtype is free. Weights are compared where data.tae_weights names some.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        print(
            f"{folder}: no manifest.json (the seed's cache?), so nothing says whether it fits this config", flush=True
        )
        return
    found = json.loads(path.read_text())
    weights = tae_weights.configured(config) if config.data.tae_weights else None
    wanted = manifest(config, weights)
    if weights is None:
        found.pop("weights", None)
    wanted["dtype"] = found.get("dtype")
    if found.get("num_frames") == 0 or found.get("num_frames", -1) >= wanted["num_frames"]:
        wanted["num_frames"] = found["num_frames"]
    differs = configs.changes(found, json.loads(json.dumps(wanted)))
    if differs:
        raise ConfigError(
            f"data.latent_folder is {str(folder)!r}, whose latents are of something else ({'; '.join(differs)}): encode them "
            "anew into another folder with --job=encode_video, or change the config back"
        )


class Entry(NamedTuple):
    """One video's latents: in a shard, or an npz file of its own."""

    name: str
    path: Path
    arrays: tuple[Lazy, Lazy] | None

    def __str__(self) -> str:
        return str(self.path)

    def is_file(self) -> bool:
        """Whether there are any."""
        return self.arrays is not None or self.path.is_file()

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std, float32 (t c h w). DataError where the file is damaged."""
        if self.arrays is not None:
            mean, std = (np.asarray(array).astype(np.float32) for array in self.arrays)
            return mean, std
        return tuple(files.read_npz(self.path, KEYS).values())


class Cache(NamedTuple):
    """What the shards of a folder hold: the arrays of every video, and the sums of all."""

    folder: Path
    arrays: dict[str, tuple[Lazy, Lazy]]
    sums: dict[str, Any]

    def entry(self, name: str) -> Entry:
        """The latents of a video by its name in the table."""
        found = self.arrays.get(name)
        return Entry(name, self.folder / Path(name).with_suffix(".npz"), found)

    def statistics(self) -> tuple[list[float], list[float]] | None:
        """(shift, scale) by channel that give draws of the posteriors zero mean and unit variance; None without shards."""
        if not self.sums:
            return None
        count, total, square = (np.asarray(self.sums[key], np.float64) for key in ("count", "total", "square"))
        mean = total / count
        std = np.sqrt(np.maximum(square / count - mean**2, 1e-12))
        return mean.tolist(), (1 / std).tolist()


def open_cache(folder: str | Path) -> Cache:
    """The shards that are in a folder now; none is as good, the folder may hold the seed's files. DataError if damaged."""
    return _open(str(folder), tuple(_listing(Path(folder))))


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_size) for path in folder.glob("latents-*.safetensors"))


@functools.lru_cache(maxsize=4)
def _open(folder: str, listing: tuple[tuple[str, int], ...]) -> Cache:
    arrays: dict[str, tuple[Lazy, Lazy]] = {}
    sums: dict[str, Any] = {}
    for file, _ in listing:
        found, metadata = safetensors_io.lazy(Path(folder) / file)
        for name in found:
            if name.startswith("mean/"):
                arrays[name[5:]] = (found[name], found["std/" + name[5:]])
        sums = _added(sums, metadata.get("sums", {}))
    return Cache(Path(folder), arrays, sums)


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {key: (np.asarray(a[key]) + np.asarray(b[key])).tolist() for key in b} if a and b else a or b


class Writer:
    """Collects latents and writes them as shards, in `dtype`, numbered for this rank."""

    def __init__(self, folder: Path, dtype: str, rank: int):
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"data.latent_dtype is {dtype!r}, expected 'float32' or 'bfloat16'")
        self.folder, self.dtype, self.rank = folder, dtype, rank
        self._waiting: dict[str, np.ndarray] = {}
        self._sums: dict[str, Any] = {}
        self._since = time.monotonic()

    def add(self, name: str, mean: np.ndarray, std: np.ndarray) -> None:
        """One video's posterior, (c t h w) each."""
        self._sums = _added(self._sums, _sums(mean, std))
        self._waiting |= {f"{kind}/{name}": x.swapaxes(0, 1) for kind, x in (("mean", mean), ("std", std))}
        size = sum(x.size for x in self._waiting.values()) * (4 if self.dtype == "float32" else 2)
        if size >= SHARD_BYTES or time.monotonic() - self._since > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one more shard."""
        if self._waiting:
            taken = [
                int(path.stem.rsplit("-", 1)[1]) for path in self.folder.glob(f"latents-{self.rank:05d}-*.safetensors")
            ]
            path = self.folder / f"latents-{self.rank:05d}-{max(taken, default=-1) + 1:06d}.safetensors"
            safetensors_io.write(self._waiting, path, self.dtype, {"sums": self._sums})
        self._waiting, self._sums, self._since = {}, {}, time.monotonic()


def _sums(mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    """Count, sum and sum of squares by channel of draws mean + std * noise, in expectation."""
    flat, spread = (x.astype(np.float64).reshape(len(x), -1) for x in (mean, std))
    square = (flat**2 + spread**2).sum(1)
    return {"count": flat.shape[1], "total": flat.sum(1).tolist(), "square": square.tolist()}
