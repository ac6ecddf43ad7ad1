"""Tables of made-up latents, so that nothing has to be encoded."""

from typing import NamedTuple

import numpy as np

from moviegen.data.sources import Tables
from moviegen.data.table import Row


class Latents(NamedTuple):
    """Latents (c t h w) of which every draw is the same."""

    mean: np.ndarray

    def read(self):
        mean = self.mean.swapaxes(0, 1)
        return mean, np.zeros_like(mean)


def of_shapes(config, shapes) -> Tables:
    """Random latents of these shapes (n c t h w) by split, with captions that count them."""
    arrays = {name: np.random.default_rng(0).standard_normal(shape, np.float32) for name, shape in shapes.items()}
    captions = {name: [f"number {i}" for i in range(len(array))] for name, array in arrays.items()}
    channels = next(iter(arrays.values())).shape[1]
    return tables(arrays, captions, config.model.text_dims, [0.0] * channels, [1.0] * channels)


def tables(arrays, captions, encoders, shift, scale) -> Tables:
    """Rows of the arrays (n c t h w) by split, captions as the toy encoders take them.

    A split is "video", "image" or "heldout", of several shapes "video/1", "video/2".
    """
    found = {"rows": {}, "heldout": {}}
    for split, array in arrays.items():
        frames, height, width = array.shape[2:]
        name = f"{1 if split.startswith('image') else 8 * frames}x{8 * height}x{8 * width}"
        found["heldout" if split.startswith("heldout") else "rows"][name] = [
            Row(f"{split}/{i}", Latents(x), dict.fromkeys(encoders, captions[split][i]), name)
            for i, x in enumerate(array)
        ]
    return Tables(**found, statistics=(shift, scale))
