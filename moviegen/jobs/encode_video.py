"""Encodes the videos of a csv once, so that training the generator reads latents and never runs the autoencoder."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from moviegen import config as configs
from moviegen import mesh
from moviegen.data import latents, table, video
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import train_tae
from moviegen.models import tae
from moviegen.writers import Writer


def run(config: Any, workdir: str | Path, stage: str | None = None) -> dict[str, float]:
    """Encode every row of `data.csv` into `data.latent_folder` and return how many were encoded, there before, and bad.

    Of each video in `data.video_folder` the first `data.num_frames` frames (0: all; an image is one) at `data.height`
    x `data.width` are encoded with `data.tae_weights`. A file holds `latent_mean` and `latent_std`, float32 (t c h w),
    raw: the seed's cache. Files that exist are kept, so a run that was stopped goes on. With several ranks each takes
    its share of the rows. Bad files are listed; more than `data.max_bad_fraction` of all rows are refused (DataError).
    """
    data = config.data
    if not data.video_folder or not Path(data.video_folder).is_dir():
        raise ConfigError(f"data.video_folder is {data.video_folder!r}, which is not a folder: name the videos' folder")
    if not data.latent_folder:
        raise ConfigError("data.latent_folder is empty: name the folder to write the latents to")
    rows = table.videos(data.csv)
    if not rows:
        raise DataError(f"{data.csv}: no rows, only a header")
    weights, folder = latents.weights_path(config), Path(data.latent_folder)
    manifest = {"weights": latents.digest(weights), "tae": configs.to_plain(config.tae)}
    manifest |= {key: data[key] for key in ("height", "width", "num_frames")}
    latents.claim(folder, manifest, "data.latent_folder")
    params = train_tae.load_weights(weights, config.tae)
    writer = Writer(workdir, "encode_video", rank=mesh.rank())
    encoded, bad = 0, []
    own = rows[mesh.rank() :: mesh.ranks()]
    for done, (line, name) in enumerate(own, 1):
        target = folder / Path(name).with_suffix(".npz")
        if not target.is_file():
            try:
                frames = _read(Path(data.video_folder) / name, data)
            except DataError as error:
                bad.append(f"line {line}: {error}")
                print(bad[-1], flush=True)
                if len(bad) > data.max_bad_fraction * len(rows):
                    raise DataError(
                        f"{data.csv}: {len(bad)} of {len(rows)} rows are bad so far, data.max_bad_fraction is "
                        f"{data.max_bad_fraction}: first bad one, {bad[0]}"
                    ) from error
                continue
            mean, logvar = tae.encode(params, config.tae, video.to_model(frames)[None])
            _write(target, mean.asnumpy()[0], np.exp(0.5 * logvar.asnumpy()[0]))
            encoded += 1
        writer.progress("encode_video", done, len(own), encoded=encoded, bad=len(bad))
    kept = len(own) - encoded - len(bad)
    writer.close()
    print(f"encode_video: {encoded} encoded, {kept} there before, {len(bad)} bad; latents in {folder}", flush=True)
    return {"encoded": encoded, "kept": kept, "bad": len(bad)}


def _read(path: Path, data: Any) -> np.ndarray:
    frames = 1 if path.suffix.lower() in video.IMAGE_SUFFIXES else data.num_frames or None
    return video.read(path, 0, frames, size=(data.height, data.width))[0]


def _write(target: Path, mean: np.ndarray, std: np.ndarray) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.stem}.{os.getpid()}.tmp.npz")
    try:
        # (c t h w) -> (t c h w)
        np.savez(aside, latent_mean=mean.swapaxes(0, 1), latent_std=std.swapaxes(0, 1).astype(np.float32))
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
