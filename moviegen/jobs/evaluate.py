"""Measures how well the autoencoder reconstructs: every clip and the mean, as json, csv, videos and a page of the worst."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import config as configs
from moviegen import streams
from moviegen.data import clips, crops, files, video
from moviegen.errors import ConfigError
from moviegen.evaluation import baselines, metrics, page, reconstruction
from moviegen.models import lpips
from moviegen.models.tae import weights as tae_weights
from moviegen.runner import Run
from moviegen.storage.files import write_json, write_text
from moviegen.storage.progress import Progress
from moviegen.streams import Stream

LINEAR_CLIPS = 64  # training clips that the linear baseline is fitted to, where they come from files
SYNTHETIC_FPS = 8.0  # at which the demo shows its clips
Row = dict[str, Any]


class Clip(NamedTuple):
    """What is measured: uint8 frames (t h w c), and their rate."""

    name: str
    frames: np.ndarray
    fps: float


def run(run: Run) -> dict[str, float]:
    """Reconstruct the clips that `evaluate` names and return the means of their numbers.

    Clips: the files of `evaluate.csv` and `evaluate.video_folder`, their first `evaluate.num_frames` frames (0: all), or
    without a folder the held-out clips that come with the demo; all at `data.height` x `data.width`. Leaves
    `evaluation.json`, `evaluation.csv`, `worst.html` and `samples/recons/NAME.mp4`, originals at the left. Clips are taken
    one at a time and numbers are means over frames, then over clips, in float64, so that no batch size is in them.
    """
    config, workdir = run.config, run.workdir
    if "evaluate" not in config:
        raise ConfigError("this experiment has no section `evaluate`: take one with it, such as experiments/tae.py")
    settings = config.evaluate
    perceptual = None
    if settings.lpips_weights:
        perceptual = lpips.load(settings.lpips_weights, "evaluate.lpips_weights", "--config.evaluate.lpips_weights=''")
    extract = _extractor(config, perceptual)
    params = tae_weights.load(_weights(config, workdir), config.tae)
    given, bad = _clips(config)
    codecs: dict[str, Callable] = {"": lambda clip: reconstruction.roundtrip(params, config.tae, clip)}
    if settings.linear_baseline:
        code = _linear_code(config)
        codecs["linear_"] = lambda clip: baselines.linear_roundtrip(code, clip)
    progress = Progress("evaluate", bad.total)
    rows: list[Row] = []
    features: list[tuple[np.ndarray, np.ndarray]] = []
    for clip in given:
        made = {prefix: codec(clip.frames) for prefix, codec in codecs.items()}
        row: Row = {"clip": clip.name, "frames": len(clip.frames), "fps": round(clip.fps, 2)}
        for prefix, frames in made.items():
            row |= {prefix + k: v for k, v in reconstruction.measure(clip.frames, frames, perceptual).items()}
        row["file"] = _show(workdir / "samples" / "recons", clip, list(made.values()))
        rows.append(row)
        if extract:
            features.append((_rows(extract, clip.frames, settings), _rows(extract, made[""], settings)))
        progress.update(len(rows) + len(bad.reasons), psnr=row["psnr"], ssim=row["ssim"])
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if _is_number(key)}
    found = {"clips": len(rows), "bad": len(bad.reasons)} | means
    summary = {"of": _about(config, rows), "mean": found, "clips": rows, "bad": list(bad.reasons.values())}
    if extract:
        summary["frechet"] = _frechet(features, settings, config, rows)
        found["frechet"] = summary["frechet"]["value"]
    _save(workdir, summary)
    print(f"evaluate: {len(rows)} clips, " + ", ".join(f"{k} {v:.4g}" for k, v in means.items()), flush=True)
    if extract:
        print(f"evaluate: Fréchet distance {found['frechet']:.4g}, {summary['frechet']['of']}", flush=True)
    if perceptual is None:
        print("evaluate: no LPIPS, evaluate.lpips_weights is empty (docs/tae.md says where they are)", flush=True)
    print(
        f"evaluate: numbers in {workdir}/evaluation.json and .csv, the worst clips in {workdir}/worst.html", flush=True
    )
    return found


def _weights(config: Any, workdir: Path) -> Path:
    """`evaluate.weights`, or what a training in the same folder left."""
    own = workdir / "tae.safetensors"
    if not config.evaluate.weights and own.is_file():
        return own
    return tae_weights.find(config.evaluate.weights, f"{own} does not exist, and evaluate.weights")


def _clips(config: Any) -> tuple[Iterator[Clip], files.Bad]:
    """The clips, and the files among them that cannot be used, as far as they have been read."""
    settings, size = config.evaluate, (config.data.height, config.data.width)
    count = settings.num_frames or None
    if not settings.video_folder:
        kept = reconstruction.heldout(size, settings.num_frames or 120, settings.num_frames or 16)
        rates = {"real": clips.heldout_fps()}
        found = (Clip(name, make(), rates.get(name, SYNTHETIC_FPS)) for name, make in kept.items())
        return found, files.Bad(len(kept), 0.0, "the held-out clips")
    listed = files.listed(settings.csv, settings.video_folder, "evaluate")[: settings.max_clips or None]
    bad = files.Bad(len(listed), config.data.max_bad_fraction, settings.csv or settings.video_folder)

    def read(file):
        return video.read(file.path, 0, 1 if file.image else count, size=size)

    return (Clip(file.name, *content) for file, content in files.each(listed, bad, read)), bad


def _linear_code(config: Any) -> baselines.LinearCode:
    """The best linear code of as many numbers, fitted to the clips that `data` trains on."""
    data = config.data
    if data.source == "clips":
        return baselines.fit_linear(clips.training_videos(data.height), config.tae.latent_channels)
    source = crops.source(data)
    frames = max(data.num_frames, baselines.BLOCK)
    drawn = [
        source(streams.rng(Stream.LINEAR_CODE, config.seed, i), frames, data.height, data.width)
        for i in range(LINEAR_CLIPS)
    ]
    return baselines.fit_linear(drawn, config.tae.latent_channels)


# ---- Fréchet distance


def _extractor(config: Any, perceptual: Any) -> Callable[[np.ndarray], np.ndarray] | None:
    """frames uint8 (t h w c) -> features (n d), as `evaluate.features` names it: "", "vgg" or "FILE.py:FUNCTION"."""
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
    return configs.call_in_file(Path(path), function, lambda make: make(config))


def _rows(extract: Callable, frames: np.ndarray, settings: Any) -> np.ndarray:
    found = np.asarray(extract(frames), np.float64)
    if found.ndim != 2:
        raise ConfigError(
            f"evaluate.features is {settings.features!r}: its function gave an array of shape {found.shape}, expected (n d)"
        )
    return found


def _frechet(features: list, settings: Any, config: Any, rows: list[Row]) -> dict[str, Any]:
    """The distance and all that it depends on, which no such number means anything without."""
    original, made = (np.concatenate(side) for side in zip(*features, strict=True))
    count, width = original.shape
    about = {"features": settings.features, "dimensions": width, "rows": count} | _about(config, rows)
    text = (
        f"features {settings.features} ({width}), {count} rows of {about['clips']} clips, {about['frames']} frames of "
    )
    text += f"{about['height']}x{about['width']} at {about['fps']} fps"
    if count <= width:
        text += f"; {count} rows cannot span {width} dimensions: too small a set for a number to compare with others"
    return {"value": metrics.frechet(original, made), "of": text} | about


# ---- what is left


def _about(config: Any, rows: list[Row]) -> dict[str, Any]:
    """Frames, size, rate and count of what was measured."""
    found: dict[str, Any] = {"clips": len(rows), "height": config.data.height, "width": config.data.width}
    for key in ("frames", "fps"):
        values = sorted({row[key] for row in rows})
        found[key] = values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
    return found


def _is_number(key: str) -> bool:
    return key.endswith(("psnr", "ssim", "lpips"))


def _show(folder: Path, clip: Clip, made: list[np.ndarray]) -> str:
    """Original and reconstructions side by side, as a video or a picture; returns the file's name."""
    frames = np.concatenate([clip.frames, *made], 2)
    kind = ".png" if len(frames) == 1 else ".mp4"
    path = folder / (clip.name.replace("/", "_").removesuffix(kind) + kind)
    if kind == ".png":
        video.write_png(path, frames[0])
    else:
        video.write_mp4(path, frames, clip.fps or SYNTHETIC_FPS)
    return path.name


def _save(workdir: Path, summary: dict[str, Any]) -> None:
    write_json(summary, workdir / "evaluation.json")
    rows, columns = summary["clips"], list(summary["clips"][0])
    last = {"clip": "mean", "frames": summary["of"]["frames"], "fps": summary["of"]["fps"]} | summary["mean"]
    if "frechet" in summary:
        columns += ["frechet", "frechet_of"]
        last |= {"frechet": summary["frechet"]["value"], "frechet_of": summary["frechet"]["of"]}
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, extrasaction="ignore")
    table.writeheader()
    table.writerows([*rows, last])
    write_text(text.getvalue(), workdir / "evaluation.csv")
    write_text(_page(workdir, summary), workdir / "worst.html")


def _page(workdir: Path, summary: dict[str, Any], count: int = 12) -> str:
    """The clips that are reconstructed worst, by PSNR, worst first."""
    keys = [key for key in summary["clips"][0] if _is_number(key)]
    means = page.table(
        ["mean of", *keys], [[f"{summary['mean']['clips']} clips", *(f"{summary['mean'][k]:.3f}" for k in keys)]]
    )
    if "frechet" in summary:
        means += f"<p>Fréchet distance {summary['frechet']['value']:.4g}: {page.escape(summary['frechet']['of'])}</p>"
    cards = []
    for row in sorted(summary["clips"], key=lambda row: row["psnr"])[:count]:
        path = workdir / "samples" / "recons" / row["file"]
        shown = page.picture(path) if path.suffix == ".png" else page.video(path, "wide")
        numbers = ", ".join(f"{key} {row[key]:.3f}" for key in keys)
        cards.append(page.card(shown, f"<b>{page.escape(row['clip'])}</b><br>{numbers}"))
    order = "original, reconstruction" + (", linear code" if "linear_psnr" in keys else "")
    return page.document(
        "Reconstructions, the worst first", [means, page.section(f"{order}, side by side", page.grid(cards, "wide"))]
    )
