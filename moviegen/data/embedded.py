"""The embedded captioned sets as tables: rendered shapes ("synthetic") and a few real clips ("clips")."""

import functools
from typing import Any

import numpy as np

from moviegen.data import clips, synthetic
from moviegen.data.encode import Item
from moviegen.errors import ConfigError

HELDOUT_SAMPLES = 32


def tables(config: Any) -> dict[str, list[Item]]:
    """The samples of every split of `data.source`: "video" and "image", of rendered ones "heldout" and "heldout_image".

    Raises ConfigError for an unknown source, or one without samples.
    """
    data = config.data
    if data.source == "synthetic":
        if data.num_samples < 1:
            raise ConfigError(f"data.num_samples is {data.num_samples}, expected at least 1 synthetic sample")
        return {
            name: [
                _rendered(config, name, i) for i in range(HELDOUT_SAMPLES if "heldout" in name else data.num_samples)
            ]
            for name in ("image", "video", "heldout_image", "heldout")
        }
    if data.source == "clips":
        return {
            name: [_shot(name, clip, frames, (data.height, data.width)) for clip in clips.captioned_clips()]
            for name, frames in (("image", 1), ("video", data.num_frames))
        }
    raise ConfigError(f"data.source is {data.source!r}, expected 'synthetic', 'clips' or 'csv'")


def _rendered(config: Any, name: str, index: int) -> Item:
    split, image = "heldout" if "heldout" in name else "train", "image" in name
    combination = synthetic.sample_combination(config.seed, index, split)
    caption = synthetic.caption((*combination[:2], None) if image else combination)
    return Item(f"{name}/{index:05d}", name, functools.partial(_render, config, index, split, image), caption)


def _render(config: Any, index: int, split: str, image: bool) -> np.ndarray:
    data, seed = config.data, config.seed
    size = (data.height, data.width)
    if image:
        return synthetic.sample_image(seed, index, split, size)[0]
    return synthetic.sample_clip(seed, index, split, max(2, data.num_frames), size)[0]


def _shot(name: str, clip: clips.Clip, frames: int, size: tuple[int, int]) -> Item:
    return Item(f"{name}/{clip.name}", name, functools.partial(clips.read_clip, clip, frames, size), clip.caption)
