"""Encodes videos once, so that training the generator reads latents and never runs the autoencoder."""

from pathlib import Path
from typing import Any

import numpy as np

from moviegen.data import files, latent_cache, latents, video
from moviegen.errors import ConfigError
from moviegen.models.tae import tiles as tae_tiles
from moviegen.models.tae import weights as tae_weights
from moviegen.runner import Run
from moviegen.storage import fingerprint
from moviegen.storage.progress import Progress


def run(run: Run) -> dict[str, float]:
    """Encode the videos of `data.csv`, or all of a bare `data.video_folder`, into the cache `data.latent_folder`.

    Of each the first `data.num_frames` frames (0: all; an image is one) at `data.fps`, scaled to cover `data.height` x
    `data.width` and cut at the centre, with the weights `data.tae_weights`, 32 frames at a time. What is in the cache stays,
    so a run that was stopped goes on; several ranks take a share each. Bad files are listed; more than
    `data.max_bad_fraction` of a rank's are refused (DataError). Returns how many were encoded, there before, and bad.
    """
    config, world = run.config, run.mesh.world
    data = config.data
    if "latent_folder" not in data:
        raise ConfigError(
            "this experiment has no data.latent_folder: take a generator's, such as experiments/1b_stage1.py"
        )
    if not data.latent_folder:
        raise ConfigError("data.latent_folder is empty: name the folder to write the latents to")
    listed = files.listed(data.csv, data.video_folder)
    weights, folder = tae_weights.configured(config), Path(data.latent_folder)
    store = latent_cache.Writer(folder, data.latent_dtype, world.rank)
    manifest = latent_cache.manifest(config, weights)
    fingerprint.check(folder / "manifest.json", manifest, latents.OTHERS, "data.latent_folder")
    params = tae_weights.load(weights, config.tae)
    own = listed[world.rank :: world.size]
    bad = files.Bad(len(own), data.max_bad_fraction, data.csv or data.video_folder)
    cached = latent_cache.open_cache(folder)
    missing = [file for file in own if not cached.entry(file.name).is_file()]
    progress = Progress("encode_video", len(own), world.rank)
    encoded = 0
    try:
        for file, frames in files.each(missing, bad, lambda file: _read(file, data)):
            mean, logvar = tae_tiles.encode(params, config.tae, video.to_model(frames)[None])
            store.add(file.name, mean[0], np.exp(0.5 * logvar[0]))
            encoded += 1
            done = len(own) - len(missing) + encoded + len(bad.reasons)
            progress.update(done, encoded=encoded, bad=len(bad.reasons))
    finally:
        store.flush()  # also of a run that too many bad files end
    kept = len(own) - len(missing)
    print(
        f"encode_video: {encoded} encoded, {kept} there before, {len(bad.reasons)} bad; latents in {folder}", flush=True
    )
    return {"encoded": encoded, "kept": kept, "bad": len(bad.reasons)}


def _read(file: files.File, data: Any) -> np.ndarray:
    frames = 1 if file.image else data.num_frames or None
    return video.read(file.path, 0, frames, size=(data.height, data.width), fps=0.0 if file.image else data.fps)[0]
