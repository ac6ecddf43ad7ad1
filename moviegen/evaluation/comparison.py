"""Measures how well the autoencoder, and beside it the linear code, reconstructs every clip of an evaluation."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import einops
import numpy as np

from moviegen.data import video
from moviegen.evaluation import features, inputs, linear_code, metrics, reconstruction
from moviegen.models import lpips
from moviegen.models.tae import weights as tae_weights
from moviegen.storage.progress import Progress

NOT_MEASURED = ("clip", "frames", "fps", "file")  # what else there is in the row of a clip
RECONSTRUCTIONS = Path("samples") / "recons"
Row = dict[str, Any]


def compare(config: Any, workdir: Path) -> dict[str, Any]:
    """Returns what `evaluation.json` holds: "of" what, the "mean", the row of each of the "clips", the "bad" files.

    Clips are taken one at a time and numbers are means over frames, then over clips, in float64, so that no batch size
    is in them. With `evaluate.features` there is "frechet" too. Shows each clip in `samples/recons`.
    """
    settings, perceptual = config.evaluate, None
    if settings.lpips_weights:
        perceptual = lpips.load(settings.lpips_weights, "evaluate.lpips_weights", "--config.evaluate.lpips_weights=''")
    extract = features.extractor(config, perceptual)
    codecs = _codecs(config, workdir)
    clips, bad = inputs.measured(config)
    progress = Progress("evaluate", bad.total)
    rows: list[Row] = []
    originals, reconstructed = [], []  # features (n d) of each clip
    for clip in clips:
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
    of, means = _about(config, rows), {key: float(np.mean([row[key] for row in rows])) for key in measures(rows)}
    found = {"clips": len(rows), "bad": len(bad.reasons)} | means
    summary = {"of": of, "mean": found, "clips": rows, "bad": list(bad.reasons.values())}
    if extract:
        summary["frechet"] = _frechet(np.concatenate(originals), np.concatenate(reconstructed), settings.features, of)
        found["frechet"] = summary["frechet"]["value"]
    return summary


def measures(rows: list[Row]) -> list[str]:
    """Returns the keys of the numbers that are measured of each clip."""
    return [key for key in rows[0] if key not in NOT_MEASURED]


def _codecs(config: Any, workdir: Path) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Functions of a clip by what stands before the names of their numbers.

    The autoencoder's weights are `evaluate.weights`, or what a training in the same folder left.
    """
    own, given = workdir / "tae.safetensors", config.evaluate.weights
    left = own.is_file() and not given
    path = own if left else tae_weights.find(given, f"{own} does not exist, and evaluate.weights")
    params = tae_weights.load(path, config.tae)
    found: dict[str, Callable] = {"": functools.partial(reconstruction.roundtrip, params, config.tae)}
    if config.evaluate.linear_baseline:
        code = linear_code.fit(inputs.trained_on(config), config.tae.latent_channels)
        found["linear_"] = functools.partial(linear_code.roundtrip, code)
    return found


def _show(folder: Path, clip: inputs.Clip, made: list[np.ndarray]) -> str:
    """Writes original and reconstructions side by side, as a video or a picture; returns the file's name."""
    frames = einops.rearrange([clip.frames, *made], "n t h w c -> t h (n w) c")
    kind = ".png" if len(frames) == 1 else ".mp4"
    path = folder / (clip.name.replace("/", "_").removesuffix(kind) + kind)
    if kind == ".png":
        video.write_png(path, frames[0])
    else:
        video.write_mp4(path, frames, clip.fps or inputs.SYNTHETIC_FPS)
    return path.name


def _about(config: Any, rows: list[Row]) -> dict[str, Any]:
    """Frames, size, rate and count of what was measured."""
    found: dict[str, Any] = {"clips": len(rows), "height": config.data.height, "width": config.data.width}
    for key in ("frames", "fps"):
        values = sorted({row[key] for row in rows})
        found[key] = values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
    return found


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
