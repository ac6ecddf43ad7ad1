"""Measures how well the autoencoder, and beside it the linear code, reconstructs every clip of an evaluation."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import einops
import numpy as np

from moviegen import config as configs, streams
from moviegen.data import captions, clips, crops, files, video
from moviegen.errors import ConfigError
from moviegen.evaluation import baselines, metrics, reconstruction
from moviegen.models import lpips
from moviegen.models.tae import weights as tae_weights
from moviegen.storage.writers import Progress
from moviegen.streams import Stream

NOT_MEASURED = ("clip", "frames", "fps", "file")  # what else there is in the row of a clip
RECONSTRUCTIONS = Path("samples") / "recons"
LINEAR_CLIPS = 64  # training clips that the linear baseline is fitted to, where they come from files
SYNTHETIC_FPS = 8.0  # at which the demo shows its clips
Row = dict[str, Any]


class Clip(NamedTuple):
    """What is measured: uint8 frames (t h w c), and their rate (0: a picture)."""

    name: str
    frames: np.ndarray
    fps: float


def compare(config: Any, workdir: Path) -> dict[str, Any]:
    """Returns what `evaluation.json` holds: "of" what, the "mean", the row of each of the "clips", the "bad" files.

    Clips are taken one at a time and numbers are means over frames, then over clips, in float64, so that no batch size
    is in them. With `evaluate.features` there is "frechet" too. Shows each clip in `samples/recons`.
    """
    settings, perceptual = config.evaluate, None
    if settings.lpips_weights:
        perceptual = lpips.load(settings.lpips_weights, "evaluate.lpips_weights", "--config.evaluate.lpips_weights=''")
    extract = extractor(config, perceptual)
    codecs = _codecs(config, workdir)
    found, bad = measured(config)
    progress = Progress("evaluate", bad.total)
    rows: list[Row] = []
    originals, reconstructed = [], []  # features (n d) of each clip
    for clip in found:
        if extract:  # first: a wrong extractor is told before anything is compiled
            originals.append(extract(clip.frames))
        made = {prefix: codec(clip.frames) for prefix, codec in codecs.items()}
        row: Row = {"clip": clip.name, "frames": len(clip.frames), "fps": round(clip.fps, 2)}
        for prefix, frames in made.items():
            row |= {prefix + k: v for k, v in reconstruction.measure(clip.frames, frames, perceptual).items()}
        rows.append(row | {"file": _show(workdir / RECONSTRUCTIONS, clip, list(made.values()))})
        if extract:
            reconstructed.append(extract(made[""]))
        progress.update(len(rows) + len(bad.reasons), psnr=row["psnr"], ssim=row["ssim"])
    of = {"clips": len(rows), "height": config.data.height, "width": config.data.width}
    for key in ("frames", "fps"):
        values = sorted({row[key] for row in rows})
        of[key] = values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
    means = {key: float(np.mean([row[key] for row in rows])) for key in measures(rows)}
    mean = {"clips": len(rows), "bad": len(bad.reasons)} | means
    summary = {"of": of, "mean": mean, "clips": rows, "bad": list(bad.reasons.values())}
    if extract:
        summary["frechet"] = _frechet(np.concatenate(originals), np.concatenate(reconstructed), settings.features, of)
        mean["frechet"] = summary["frechet"]["value"]
    return summary


def measures(rows: list[Row]) -> list[str]:
    """Returns the keys of the numbers that are measured of each clip."""
    return [key for key in rows[0] if key not in NOT_MEASURED]


def measured(config: Any) -> tuple[Iterator[Clip], files.Bad]:
    """Returns the clips that `evaluate` names, one at a time, and those of the files that are of no use, so far."""
    settings, size = config.evaluate, (config.data.height, config.data.width)
    if not settings.video_folder:
        kept = reconstruction.heldout(size, settings.num_frames or 120, settings.num_frames or 16)
        rates = {"real": clips.heldout_fps()}
        found = (Clip(name, make(), rates.get(name, SYNTHETIC_FPS)) for name, make in kept.items())
        return found, files.Bad(len(kept), 0.0, "the held-out clips")
    listed = files.listed(settings.csv, settings.video_folder, "evaluate", captions.allow_outside(config.data))
    listed = listed[: settings.max_clips or None]
    bad = files.Bad(len(listed), config.data.max_bad_fraction, settings.csv or settings.video_folder)

    def read(file: files.File) -> tuple[np.ndarray, float]:
        frames = 1 if file.image else settings.num_frames or None
        return video.read(file.path, 0, frames, size=size, piece=file.piece)

    return (Clip(file.name, *content) for file, content in files.each(listed, bad, read)), bad


def trained_on(config: Any) -> Iterable[np.ndarray]:
    """Returns clips that `data` trains on, uint8 (t h w c): all of the real ones, or as many draws as a fit needs."""
    data = config.data
    if data.source == "clips":
        return clips.training_videos(data.height)
    source, frames = crops.source(data), max(data.num_frames, baselines.BLOCK)
    rngs = (streams.rng(Stream.LINEAR_CODE, config.seed, i) for i in range(LINEAR_CLIPS))
    return [source(rng, frames, data.height, data.width) for rng in rngs]


def extractor(config: Any, perceptual: Any) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns what `evaluate.features` names: nothing, "vgg" (LPIPS's network, `perceptual`) or "FILE.py:FUNCTION".

    From frames uint8 (t h w c) to features float64 (n d). ConfigError for another name or, when called, another shape.
    """
    name = config.evaluate.features
    if not name:
        return None
    if name == "vgg":
        if perceptual is None:
            raise ConfigError("evaluate.features is 'vgg', whose network is LPIPS's: give evaluate.lpips_weights")
        return lambda frames: lpips.pooled(perceptual, video.to_model(frames).swapaxes(0, 1))
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise ConfigError(
            f"evaluate.features is {name!r}, expected 'vgg' or FILE.py:FUNCTION, a function that takes this config and returns "
            "one from frames uint8 (t h w c) to features (n d)"
        )
    extract = configs.call_in_file(Path(path), function, lambda make: make(config))

    def features(frames: np.ndarray) -> np.ndarray:
        found = np.asarray(extract(frames), np.float64)
        if found.ndim != 2:
            raise ConfigError(
                f"evaluate.features is {name!r}: its function gave an array of shape {found.shape}, expected (n d)"
            )
        return found

    return features


def _codecs(config: Any, workdir: Path) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Functions of a clip by what stands before the names of their numbers.

    The autoencoder's weights are `evaluate.weights`, or what a training in the same folder left.
    """
    own, given = workdir / "tae.safetensors", config.evaluate.weights
    left = own.is_file() and not given
    path = own if left else tae_weights.find(given, f"{own} does not exist, and evaluate.weights")
    params = tae_weights.load_to_compute(path, config.tae)
    found: dict[str, Callable] = {"": functools.partial(reconstruction.roundtrip, params, config.tae)}
    if config.evaluate.linear_baseline:
        code = baselines.fit_linear(trained_on(config), config.tae.latent_channels)
        found["linear_"] = functools.partial(baselines.linear, code)
    return found


def _show(folder: Path, clip: Clip, made: list[np.ndarray]) -> str:
    """Writes original and reconstructions side by side, as a video or a picture; returns the file's name."""
    frames = einops.rearrange([clip.frames, *made], "n t h w c -> t h (n w) c")
    kind = ".png" if len(frames) == 1 else ".mp4"
    path = folder / (clip.name.replace("/", "_").removesuffix(kind) + kind)
    if kind == ".png":
        video.write_png(path, frames[0])
    else:
        video.write_mp4(path, frames, clip.fps or SYNTHETIC_FPS)
    return path.name


def _frechet(original: np.ndarray, made: np.ndarray, name: str, of: dict[str, Any]) -> dict[str, Any]:
    """The distance and all that it depends on, without which no such number means anything."""
    count, width = original.shape
    text = (
        f"features {name} ({width}), {count} rows of {of['clips']} clips, {of['frames']} frames of "
        f"{of['height']}x{of['width']} at {of['fps']} fps"
    )
    if count <= width:
        text += f"; {count} rows cannot span {width} dimensions: too small a set for a number to compare with others"
    about = {"features": name, "dimensions": width, "rows": count} | of
    return {"value": metrics.frechet(original, made), "of": text} | about
