"""Cached latents: shards of safetensors with a manifest, or the seed's folder of npz files.

A shard holds `mean/NAME` and `std/NAME` (t c h w), raw, of some videos, and in its metadata of each the kind, the sums for
statistics, checksums, frames, height and width of its pixels, its bucket, the rate at which it is shown, and what its file
was (`fingerprint.of_file`). What is cached is what the shards' headers say, so a kill loses one shard's work, and any number
of ranks may go on. Of several latents of one name the newest count.
"""

import functools
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import einops
import numpy as np
from crc32c import crc32c

from moviegen import config as configs
from moviegen.errors import ConfigError, DataError
from moviegen.models.tae import weights as tae_weights
from moviegen.parallel import buckets
from moviegen.storage import arraystore, files, fingerprint as fingerprints, safetensors_io

MANIFEST = "manifest.json"
SHARD_BYTES = 64 << 20
SECONDS = 120.0  # after which a shard is written however little is in it: what a kill can cost
_SHARD = re.compile(r"latents-(\d+)-(\d+)\.safetensors")  # the rank that wrote it, and a number that grows
_SUMS = ("count", "total", "square")
_SEED = ("latent_mean", "latent_std")  # in the seed's npz files

_SHAPE = ("height", "width", "num_frames", "fps")  # of all latents of a cache; in one of buckets each has its own

Statistics = tuple[list[float], list[float]]  # (shift, scale) by channel


def fingerprint(config: Any, weights: Path | None) -> dict[str, Any]:
    """What the latents of a cache depend on besides names; without the weights if there are none to name."""
    data, shape = config.data, {}
    if not buckets.configured(config):
        shape = {key: data[key] for key in ("height", "width", "num_frames")} | {"fps": float(data.get("fps", 0.0))}
    outside = ("latent_shift", "latent_scale")  # of a space that latents are mapped to once they are read
    found = {
        "tae": {key: value for key, value in configs.to_plain(config.tae).items() if key not in outside},
        **shape,
        "crop": "centre",
        "pixels": 2,  # how files are read (data/view.py): raised where the same file gives other pixels
        "dtype": data.get("latent_dtype", "float32"),
    }
    return found | ({"weights": tae_weights.digest(weights)} if weights else {})


def check_or_write(folder: Path, wanted: dict[str, Any]) -> None:
    """Writes the fingerprint of a new cache, or raises ConfigError, naming what differs, when it has another."""
    stored, own = _manifest(folder).get("tae"), wanted.get("tae", {})
    if stored and "compute_dtype" not in stored and own.get("compute_dtype") == "float32":
        # An older cache, which does not say so.
        wanted = wanted | {"tae": {key: value for key, value in own.items() if key != "compute_dtype"}}
    fingerprints.check(
        folder / MANIFEST, wanted, "latents of something else", "data.latent_folder", beside=("statistics",)
    )


def check(folder: Path, config: Any) -> None:
    """Raises ConfigError, naming what differs, when a cache does not serve `config`.

    Fewer frames than are cached are as good. The dtypes are free. Weights are compared where data.tae_weights names some.
    Where the config or the cache has buckets every entry has a shape of its own, which is none of the cache's.
    """
    found = _manifest(folder)
    if not found:
        print(f"{folder}: no {MANIFEST} (the seed's cache?), so nothing says whether it fits this config", flush=True)
        return
    weights = tae_weights.configured(config) if config.data.tae_weights else None
    wanted = fingerprint(config, weights) | {"dtype": found.get("dtype")}
    for autoencoder in (found.get("tae", {}), wanted["tae"]):
        autoencoder.pop("compute_dtype", None)
    if weights is None:
        found.pop("weights", None)
    if found.get("num_frames") == 0 or found.get("num_frames", -1) >= wanted.get("num_frames", 0):
        wanted["num_frames"] = found["num_frames"]
    found.pop("statistics", None)
    if buckets.configured(config) or not found.keys() & set(_SHAPE):
        found, wanted = ({key: v for key, v in each.items() if key not in _SHAPE} for each in (found, wanted))
    differs = configs.changes(found, json.loads(json.dumps(wanted)))  # tuples are lists there
    if differs:
        raise ConfigError(
            f"data.latent_folder is {str(folder)!r}, whose latents are of something else ({'; '.join(differs)}): encode them "
            "anew into another folder with --job=encode_video, or change the config back"
        )


def _manifest(folder: Path) -> dict[str, Any]:
    """The fingerprint and, once an encoding has ended, the statistics; nothing in the seed's caches. DataError if damaged."""
    path = folder / MANIFEST
    found = fingerprints.noted(path) if path.is_file() else {}
    with files.refused(f"{path}: {fingerprints.DAMAGED}", Exception):
        if type(found.get("num_frames", 0)) is not int:
            raise ValueError(f"num_frames is {found['num_frames']!r}")
        if "statistics" in found:
            shift, scale = (np.asarray(found["statistics"][key], np.float64) for key in ("shift", "scale"))
            channels = found["tae"]["latent_channels"] if "tae" in found else len(shift)
            whole = shift.shape == scale.shape == (channels,) and np.isfinite([shift, scale]).all()
            if not whole or (scale <= 0).any():
                raise ValueError(f"statistics are no shift and scale above 0 of {channels} channels")
    return found


def autoencoder(folder: Path) -> str | None:
    """The checksum of the weights that a cache's latents were made with; None where nothing says."""
    return _manifest(folder).get("weights")


class StoredLatents(NamedTuple):
    """One video's latents: in the shard `path`, or in an npz file of its own, which may be missing.

    Of a shard's: (t c h w), checksums of mean and std (None in old shards), what their file was (None: nobody knows), the
    frames a second at which it is shown (0: none, or nobody knows), and its `Bucket.name` ("" in old shards), which says
    how many frames of which height and width it was.
    """

    name: str
    path: Path
    size: tuple[int, ...] = ()
    checksums: list[int] | None = None
    file: list | None = None
    fps: float = 0.0
    bucket: str = ""

    def __str__(self) -> str:
        return str(self.path) if self.path.suffix == ".npz" else f"{self.name} in {self.path}"

    def is_file(self) -> bool:
        return self.path.suffix != ".npz" or self.path.is_file()

    def shape(self) -> tuple[int, ...]:
        """(t c h w), by the header of the file alone. DataError where that is damaged."""
        return self.size or files.npz_shapes(self.path, _SEED)[_SEED[0]]

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std, float32 (t c h w). DataError where the file is damaged or the latents are of no use."""
        if self.path.suffix == ".npz":
            pair = list(files.read_npz(self.path, _SEED).values())
        else:
            pair = [safetensors_io.read_rows(self.path, f"{kind}/{self.name}") for kind in ("mean", "std")]
        if self.checksums and [_checksum(x) for x in pair] != self.checksums:
            raise DataError(
                f"{self}: not the bytes that were written: delete the file and run --job=encode_video again"
            )
        mean, std = (x.astype(np.float32, copy=False) for x in pair)
        if not self.checksums:  # else they were looked at when they were written
            check_finite(self, mean, std)
        return mean, std


def check_finite(what: Any, mean: np.ndarray, std: np.ndarray) -> None:
    """Raises DataError for latents that teach nothing: all the same, or not finite, as one of them spoils all statistics."""
    if mean.ndim != 4 or mean.shape != std.shape:
        raise DataError(f"{what}: mean and std of the latents are {mean.shape} and {std.shape}, expected one (t c h w)")
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise DataError(f"{what}: latents are not finite: leave it out, or encode it again")
    if mean.min() == mean.max():
        raise DataError(f"{what}: all latents are {mean.flat[0]}: leave it out, or encode it again")


def _checksum(array: np.ndarray) -> int:
    return crc32c(np.ascontiguousarray(array).view(np.uint8))


class Cache(NamedTuple):
    """A folder's latents: those in shards by name, and by kind of video the sums over them."""

    folder: Path
    shards: dict[str, StoredLatents]
    sums: dict[str, dict]

    @property
    def rates(self) -> dict[str, float]:
        """Frames a second at which videos are shown, by name, where that is known."""
        return {name: found.fps for name, found in self.shards.items() if found.fps}

    @property
    def lost(self) -> dict[str, str]:
        """Files that no bucket took when they were to be encoded, by name, and why."""
        found: dict[str, str] = {}
        for path in sorted(self.folder.glob("lost-*.json")):
            found |= files.noted(path) or {}
        return {name: why for name, why in found.items() if name not in self.shards}

    def find(self, name: str) -> StoredLatents:
        """The latents of a video by its name in the table."""
        return self.shards.get(name) or StoredLatents(name, self.folder / _npz(name))

    def check_name(self, name: str, outside: bool) -> None:
        """Raises DataError where `find` leads out of the folder, unless files may lie `outside`."""
        if name not in self.shards:
            files.inside(self.folder, _npz(name), outside)

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
    count, total, square = (np.asarray(found[key], np.float64) for key in _SUMS)
    mean = total / count
    std = np.maximum(np.sqrt(np.maximum(square / count - mean**2, 0)), 1e-3)
    return mean.tolist(), (1 / np.sqrt(std * std.mean())).tolist()


def note_statistics(folder: Path) -> None:
    """Writes the statistics of all shards to the manifest, again if other ranks have added shards meanwhile."""
    listing = None
    while listing != _listing(folder):
        listing = _listing(folder)
        if found := statistics(open_cache(folder).sums):
            manifest = _manifest(folder)
            noted = manifest | {"statistics": {"shift": found[0], "scale": found[1]}}
            if noted != manifest:
                with files.refused(f"{folder / MANIFEST}: cannot be written", OSError):
                    files.write_json(noted, folder / MANIFEST)


def note_lost(folder: Path, rank: int, why: Mapping[str, str]) -> None:
    """Notes which of a rank's files no bucket takes, for `Cache.lost`: their rows are no bad ones where they are trained on."""
    with files.refused(f"{folder}: cannot be written", OSError):
        files.write_json(dict(why), folder / f"lost-{rank:05d}.json")


def open_cache(folder: str | Path) -> Cache:
    """The shards that are in a folder now; none is as good, the folder may hold the seed's files. DataError if damaged."""
    return _open(str(folder), tuple(_listing(Path(folder))))


def _npz(name: str) -> str:
    return os.path.splitext(name)[0] + ".npz"


def _listing(folder: Path) -> list[tuple[int, int, str, int]]:
    """Number, rank, name and size of every shard, the oldest first."""
    found = [(_SHARD.fullmatch(path.name), path) for path in folder.glob("latents-*.safetensors")]
    return sorted((int(match[2]), int(match[1]), path.name, path.stat().st_size) for match, path in found if match)


@functools.lru_cache(maxsize=4)
def _open(folder: str, listing: tuple[tuple[int, int, str, int], ...]) -> Cache:
    cache = Cache(Path(folder), {}, {})
    for _, _, file, _ in reversed(listing):
        path = cache.folder / file
        with files.refused(f"{path}: cannot be used: delete it and run --job=encode_video again", Exception):
            _take(path, cache)
    return cache


def _take(path: Path, cache: Cache) -> None:
    """Adds what a shard's header says to the cache, but for names that are there already, from newer shards."""
    arrays, metadata = safetensors_io.lazy(path)
    entries, sums = metadata.get("entries"), {}
    for name in [key.removeprefix("mean/") for key in arrays if key.startswith("mean/")]:
        if name in cache.shards:
            continue
        shape, own = arrays[f"mean/{name}"].shape, {} if entries is None else entries[name]
        if len(shape) != 4 or arrays[f"std/{name}"].shape != shape:
            raise ValueError(f"mean and std of {name} are not (t c h w)")
        if own:
            sums.setdefault(own["kind"], []).append(own["sums"])
            if len(own["sums"]["total"]) != shape[1] or len(own["file"] or (0, 0, "")) != 3:
                raise ValueError(f"what is noted of {name} does not fit it")
        cache.shards[name] = StoredLatents(
            name, path, shape, own.get("checksums"), own.get("file"), float(own.get("fps", 0)), own.get("bucket", "")
        )
    if entries is None:  # as once written: sums of the shard, before that those of all kinds together
        found = metadata.get("sums", {})
        sums = {kind: [more] for kind, more in ({"video": found} if "count" in found else found).items()}
    for kind, more in sums.items():
        added = [cache.sums[kind], *more] if kind in cache.sums else more
        cache.sums[kind] = {key: np.sum([each[key] for each in added], 0).tolist() for key in _SUMS}
        count, total, square = (np.asarray(cache.sums[kind][key], np.float64) for key in _SUMS)
        if count.ndim or total.shape != square.shape or not (count > 0 and np.isfinite(total + square).all()):
            raise ValueError(f"the sums for statistics of its {kind}s are not finite, or none")


class ShardWriter:
    """Collects latents and writes them as shards, in `dtype`, numbered for this rank."""

    def __init__(self, folder: Path, dtype: str, rank: int):
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"data.latent_dtype is {dtype!r}, expected 'float32' or 'bfloat16'")
        self.folder, self.dtype, self.rank = folder, dtype, rank
        self._waiting: dict[str, np.ndarray] = {}
        self._entries: dict[str, dict] = {}
        self._since = time.monotonic()

    def add(
        self,
        name: str,
        mean: np.ndarray,
        std: np.ndarray,
        kind: str,
        file: list | None = None,
        fps: float = 0.0,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        """Takes a video's posterior, (c t h w) each, that `check_finite` has passed.

        `kind`: the sums that it counts in; `file`: what its file is, by `fingerprint.of_file`; `fps` of its frames, 0: none;
        `shape`: frames, height and width in pixels.
        """
        pair = [arraystore.cast(einops.rearrange(x, "c t h w -> t c h w"), self.dtype) for x in (mean, std)]
        self._waiting |= {f"mean/{name}": pair[0], f"std/{name}": pair[1]}
        noted = {
            "kind": kind,
            "sums": _sums(mean, std),
            "checksums": [_checksum(x) for x in pair],
            "file": file,
            "fps": fps,
        }
        if shape:
            noted |= dict(zip(("frames", "height", "width"), shape, strict=True), bucket=buckets.Bucket(*shape).name)
        self._entries[name] = noted
        size = sum(x.nbytes for x in self._waiting.values())
        if size >= SHARD_BYTES or time.monotonic() - self._since > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one more shard, newer than all that are there."""
        if self._waiting:
            number = max((number for number, *_ in _listing(self.folder)), default=-1) + 1
            path = self.folder / f"latents-{self.rank:05d}-{number:06d}.safetensors"
            safetensors_io.write(self._waiting, path, self.dtype, {"entries": self._entries})
        self._waiting, self._entries, self._since = {}, {}, time.monotonic()


def _sums(mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    """Count, sum and sum of squares by channel of draws mean + std * noise, in expectation."""
    flat, spread = (einops.rearrange(x.astype(np.float64), "c t h w -> c (t h w)") for x in (mean, std))
    return {"count": flat.shape[1], "total": flat.sum(1).tolist(), "square": (flat**2 + spread**2).sum(1).tolist()}
