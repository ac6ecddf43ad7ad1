"""Cached latents: shards of safetensors with a manifest, or the seed's folder of npz files.

A shard holds `mean/NAME` and `std/NAME` (t c h w), raw, of some videos, and in its metadata the sums of statistics and
the rates at which the videos are shown. What is cached is what the shards' headers say, so a kill loses one shard's
work, and any number of ranks may go on.
"""

import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import einops
import numpy as np

from moviegen import config as configs
from moviegen.errors import ConfigError
from moviegen.models.tae import weights as tae_weights
from moviegen.storage import files, fingerprint as fingerprints, safetensors_io

MANIFEST = "manifest.json"
SHARD_BYTES = 64 << 20
SECONDS = 120.0  # after which a shard is written however little is in it: what a kill can cost

Statistics = tuple[list[float], list[float]]  # (shift, scale) by channel


def fingerprint(config: Any, weights: Path | None) -> dict[str, Any]:
    """What the latents of a cache depend on besides names; without the weights if there are none to name."""
    data = config.data
    outside = ("latent_shift", "latent_scale")  # of a space that latents are mapped to once they are read
    found = {
        "tae": {key: value for key, value in configs.to_plain(config.tae).items() if key not in outside},
        **{key: data[key] for key in ("height", "width", "num_frames")},
        "fps": float(data.get("fps", 0.0)),
        "crop": "centre",
        "pixels": 2,  # how files are read (data/view.py): raised where the same file gives other pixels
        "dtype": data.get("latent_dtype", "float32"),
    }
    return found | ({"weights": tae_weights.digest(weights)} if weights else {})


def check_or_write(folder: Path, wanted: dict[str, Any]) -> None:
    """Writes the fingerprint of a new cache, or raises ConfigError, naming what differs, when it has another."""
    noted = {key: value for key, value in _manifest(folder).items() if key == "statistics"}
    fingerprints.check(folder / MANIFEST, wanted | noted, "latents of something else", "data.latent_folder")


def check(folder: Path, config: Any) -> None:
    """Raises ConfigError, naming what differs, when a cache does not serve `config`.

    Fewer frames than are cached are as good. The dtype is free. Weights are compared where data.tae_weights names some.
    """
    found = _manifest(folder)
    if not found:
        print(f"{folder}: no {MANIFEST} (the seed's cache?), so nothing says whether it fits this config", flush=True)
        return
    weights = tae_weights.configured(config) if config.data.tae_weights else None
    wanted = fingerprint(config, weights) | {"dtype": found.get("dtype")}
    if weights is None:
        found.pop("weights", None)
    if found.get("num_frames") == 0 or found.get("num_frames", -1) >= wanted["num_frames"]:
        wanted["num_frames"] = found["num_frames"]
    found.pop("statistics", None)
    differs = configs.changes(found, json.loads(json.dumps(wanted)))  # tuples are lists there
    if differs:
        raise ConfigError(
            f"data.latent_folder is {str(folder)!r}, whose latents are of something else ({'; '.join(differs)}): encode them "
            "anew into another folder with --job=encode_video, or change the config back"
        )


def _manifest(folder: Path) -> dict[str, Any]:
    """The fingerprint and, once an encoding has ended, the statistics; nothing in the seed's caches."""
    path = folder / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else {}


def autoencoder(folder: Path) -> str | None:
    """The checksum of the weights that a cache's latents were made with; None where nothing says."""
    return _manifest(folder).get("weights")


class StoredLatents(NamedTuple):
    """One video's latents: in the shard `path`, or in an npz file of its own, which may be missing."""

    name: str
    path: Path

    def __str__(self) -> str:
        return str(self.path) if self.path.suffix == ".npz" else f"{self.name} in {self.path}"

    def is_file(self) -> bool:
        return self.path.suffix != ".npz" or self.path.is_file()

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std, float32 (t c h w). DataError where the file is damaged."""
        if self.path.suffix == ".npz":
            return tuple(files.read_npz(self.path, ("latent_mean", "latent_std")).values())  # the seed's
        mean, std = (safetensors_io.read_rows(self.path, f"{kind}/{self.name}") for kind in ("mean", "std"))
        return mean.astype(np.float32), std.astype(np.float32)


class Cache(NamedTuple):
    """A folder's latents: the shard of every name, by kind of video the sums over all shards, by name frames a second."""

    folder: Path
    shards: dict[str, Path]
    sums: dict[str, dict]
    rates: dict[str, float]

    def find(self, name: str) -> StoredLatents:
        """The latents of a video by its name in the table."""
        return StoredLatents(name, self.shards.get(name) or self.folder / Path(name).with_suffix(".npz"))

    def statistics(self) -> Statistics | None:
        """(shift, scale) that draws of the latents are normalized by; None in the seed's caches."""
        noted = _manifest(self.folder).get("statistics")  # once an encoding has ended: runs that read one cache agree
        return (noted["shift"], noted["scale"]) if noted else statistics(self.sums)


def statistics(sums: Mapping[str, dict]) -> Statistics | None:
    """(shift, scale) by channel that give draws of the videos, or else images, zero mean and overall unit variance.

    Half way between one scale for all channels and unit variance in each: the square root of a channel's deviation stays.
    With one scale the faint channels drown in the noise, with unit variance they weigh as much as what they refine.
    """
    found = sums.get("video") or sums.get("image")
    if not found:
        return None
    count, total, square = (np.asarray(found[key], np.float64) for key in ("count", "total", "square"))
    mean = total / count
    std = np.maximum(np.sqrt(np.maximum(square / count - mean**2, 0)), 1e-3)
    return mean.tolist(), (1 / np.sqrt(std * std.mean())).tolist()


def note_statistics(folder: Path) -> None:
    """Writes the statistics of all shards to the manifest, again if other ranks have added shards meanwhile."""
    listing = None
    while listing != _listing(folder):
        listing = _listing(folder)
        if found := statistics(open_cache(folder).sums):
            noted = {"statistics": {"shift": found[0], "scale": found[1]}}
            files.write_json(_manifest(folder) | noted, folder / MANIFEST)


def open_cache(folder: str | Path) -> Cache:
    """The shards that are in a folder now; none is as good, the folder may hold the seed's files. DataError if damaged."""
    return _open(str(folder), tuple(_listing(Path(folder))))


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_size) for path in folder.glob("latents-*.safetensors"))


@functools.lru_cache(maxsize=4)
def _open(folder: str, listing: tuple[tuple[str, int], ...]) -> Cache:
    shards: dict[str, Path] = {}
    sums: dict[str, dict] = {}
    rates: dict[str, float] = {}
    for file, _ in listing:
        path = Path(folder) / file
        arrays, metadata = safetensors_io.lazy(path)
        shards |= {name.removeprefix("mean/"): path for name in arrays if name.startswith("mean/")}
        rates |= metadata.get("fps", {})
        found = metadata.get("sums", {})
        for kind, more in ({"video": found} if "count" in found else found).items():  # of all kinds, as once written
            sums[kind] = _added(sums.get(kind), more)
    return Cache(Path(folder), shards, sums, rates)


def _added(a: dict | None, b: dict) -> dict:
    return {key: (np.asarray(a[key]) + np.asarray(b[key])).tolist() for key in b} if a else b


class ShardWriter:
    """Collects latents and writes them as shards, in `dtype`, numbered for this rank."""

    def __init__(self, folder: Path, dtype: str, rank: int):
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"data.latent_dtype is {dtype!r}, expected 'float32' or 'bfloat16'")
        self.folder, self.dtype, self.rank = folder, dtype, rank
        self._waiting: dict[str, np.ndarray] = {}
        self._sums: dict[str, dict] = {}
        self._rates: dict[str, float] = {}
        self._since = time.monotonic()

    def add(self, name: str, mean: np.ndarray, std: np.ndarray, kind: str, fps: float = 0.0) -> None:
        """Takes a video's posterior, (c t h w) each; `kind`: the sums that it counts in; fps of its frames, 0: none."""
        self._rates |= {name: fps} if fps else {}
        self._sums[kind] = _added(self._sums.get(kind), _sums(mean, std))
        pair = {f"mean/{name}": mean, f"std/{name}": std}
        self._waiting |= {key: einops.rearrange(x, "c t h w -> t c h w") for key, x in pair.items()}
        size = sum(x.size for x in self._waiting.values()) * (4 if self.dtype == "float32" else 2)
        if size >= SHARD_BYTES or time.monotonic() - self._since > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one more shard."""
        if self._waiting:
            start = f"latents-{self.rank:05d}-"
            taken = [int(path.stem.removeprefix(start)) for path in self.folder.glob(f"{start}*.safetensors")]
            path = self.folder / f"{start}{max(taken, default=-1) + 1:06d}.safetensors"
            safetensors_io.write(self._waiting, path, self.dtype, {"sums": self._sums, "fps": self._rates})
        self._waiting, self._sums, self._rates, self._since = {}, {}, {}, time.monotonic()


def _sums(mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    """Count, sum and sum of squares by channel of draws mean + std * noise, in expectation."""
    flat, spread = (einops.rearrange(x.astype(np.float64), "c t h w -> c (t h w)") for x in (mean, std))
    return {"count": flat.shape[1], "total": flat.sum(1).tolist(), "square": (flat**2 + spread**2).sum(1).tolist()}
