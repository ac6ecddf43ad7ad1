"""The weights with which the training of the autoencoder begins, where they are not random."""

import functools
from typing import Any

from moviegen import streams
from moviegen.data import crops
from moviegen.models.tae import linear_start, shapes, weights as tae_weights
from moviegen.parallel import sync
from moviegen.parallel.mesh import Group
from moviegen.streams import Stream


def weights(config: Any, source: crops.Source, world: Group) -> dict[str, Any]:
    """Whole parameters on every rank, as the config asks for them; none where it asks for neither of these two.

    `train.init_from` is a safetensors file or a checkpoint folder. `train.linear_start` is the number of clips to which a
    linear autoencoder is fitted in closed form; they are four times as large as the training crops.
    """
    if config.train.init_from:
        read = functools.partial(tae_weights.load, config.train.init_from, config.tae)
        return sync.from_first(world, read, shapes.shapes(config.tae))
    if not config.train.get("linear_start"):
        return {}
    data = config.data
    drawn = [
        source(streams.rng(Stream.LINEAR_START, config.seed, i), data.num_frames, 2 * data.height, 2 * data.width)
        for i in range(config.train.linear_start)
    ]
    return linear_start.init(config.tae, drawn, config.seed)
