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


def tables(arrays, captions, encoders, shift, scale) -> Tables:
    """Rows of the arrays (n c t h w) by split, captions as the toy encoders take them."""
    rows = {
        split: [
            Row(f"{split}/{i}", Latents(x), dict.fromkeys(encoders, captions[split][i]), x.shape[1] == 1)
            for i, x in enumerate(array)
        ]
        for split, array in arrays.items()
    }
    return Tables(rows, (shift, scale))
