"""Cached latents of the embedded captioned sets: encoded once by the autoencoder, read by every training stage."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import config as configs
from moviegen.data import clips, synthetic, video
from moviegen.errors import ConfigError
from moviegen.models.tae import weights as tae_weights
from moviegen.parallel import sync
from moviegen.parallel.mesh import ALONE, Group
from moviegen.storage import files, fingerprint
from moviegen.storage.progress import Progress

HELDOUT_SAMPLES = 32
OTHERS = "latents of something else"
_BATCH = 8


class LatentSet(NamedTuple):
    """Raw latents (n c t h w) by split ("video", "image", "heldout", "heldout_image"), their captions, statistics."""

    latents: dict[str, np.ndarray]
    captions: dict[str, list[str]]
    shift: list[float]
    scale: list[float]


def prepare(config: Any, workdir: str | Path, world: Group = ALONE) -> LatentSet:
    """The cached latents of `data.source`, made now if they are not there yet; of several ranks, by the first.

    Raises ConfigError, naming what differs, when the folder holds latents of other data or other weights.
    """
    folder = Path(config.data.latent_cache or Path(workdir) / "latents")
    weights, splits = tae_weights.configured(config), _splits(config)

    def build():
        found = {
            "weights": tae_weights.digest(weights),
            "tae": configs.to_plain(config.tae),
            **{key: config.data[key] for key in ("source", "height", "width", "num_frames", "num_samples")},
            "seed": config.seed,
        }
        fingerprint.check(folder / "manifest.json", found, OTHERS, "data.latent_cache")
        _build(folder, splits, weights, config)

    sync.first_rank_alone(world, build, Path(workdir) / "ranks" / "latents.done")
    latents = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in splits}
    captions = {name: [caption for _, caption in samples()] for name, (samples, _) in splits.items()}
    return LatentSet(latents, captions, *_statistics(latents["video"]))


def _splits(config: Any) -> dict[str, tuple]:
    """Split -> (captions and frames on demand, number of samples)."""
    data = config.data
    size = (data.height, data.width)

    if data.source == "synthetic":
        if data.num_samples < 1:
            raise ConfigError(f"data.num_samples is {data.num_samples}, expected at least 1 synthetic sample")

        def drawn(split, count, frames):
            def samples(start=0) -> Iterator:
                for i in range(start, count):
                    combination = synthetic.sample_combination(config.seed, i, split)
                    if frames > 1:
                        yield (
                            _Lazy(synthetic.sample_clip, config.seed, i, split, frames, size),
                            synthetic.caption(combination),
                        )
                    else:
                        text = synthetic.caption((*combination[:2], None))
                        yield _Lazy(synthetic.sample_image, config.seed, i, split, size), text

            return samples, count

        frames = max(2, data.num_frames)
        return {
            "image": drawn("train", data.num_samples, 1),
            "video": drawn("train", data.num_samples, frames),
            "heldout_image": drawn("heldout", HELDOUT_SAMPLES, 1),
            "heldout": drawn("heldout", HELDOUT_SAMPLES, frames),
        }
    if data.source == "clips":
        real = clips.captioned_clips()

        def shots(frames):
            def samples(start=0) -> Iterator:
                for clip in real[start:]:
                    yield _Lazy(clips.read_clip, clip, frames, size), clip.caption

            return samples, len(real)

        return {"image": shots(1), "video": shots(data.num_frames)}
    raise ConfigError(f"data.source is {data.source!r}, expected 'synthetic', 'clips' or 'csv'")


class _Lazy:
    """Frames made only when asked for: captions alone are wanted when the latents are there already."""

    def __init__(self, make, *args):
        self.make, self.args = make, args

    def __call__(self) -> np.ndarray:
        made = self.make(*self.args)
        return made[0] if isinstance(made, tuple) else made


def _build(folder: Path, splits: dict[str, tuple], weights: Path, config: Any) -> None:
    missing = [name for name in splits if not (folder / f"{name}.npy").is_file()]
    if not missing:
        return
    from moviegen.models.tae import model as tae

    params = tae_weights.load(weights, config.tae)
    for name in missing:
        samples, count = splits[name]
        made, waiting, progress = [], [], Progress(f"latents, {name}", count)
        for frames, _ in samples():
            waiting.append(video.to_model(frames()))
            if len(waiting) == _BATCH or len(made) + len(waiting) == count:
                made.extend(tae.encode(params, config.tae, np.stack(waiting))[0].asnumpy())
                waiting = []
                progress.update(len(made))
        with files.aside(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.stack(made))


def _statistics(latents: np.ndarray) -> tuple[list[float], list[float]]:
    """Shift and scale per channel that give the latents of (n c t h w) zero mean and, over all channels, unit variance.

    Half way between one scale for all channels and unit variance in each: the square root of a channel's deviation stays.
    With one scale the faint channels drown in the noise, with unit variance they weigh as much as what they refine.
    """
    flat = np.moveaxis(np.asarray(latents), 1, 0).reshape(latents.shape[1], -1).astype(np.float64)
    std = np.maximum(flat.std(1), 1e-3)
    return flat.mean(1).tolist(), (1 / np.sqrt(std * std.mean())).tolist()
