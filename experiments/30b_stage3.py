"""The 30B generator, stage 3: text to video joint with images at 768 px.

The seed starts this one on 8 devices with ZeRO-3 and the sequence split over all 8, so that the batch is one clip. It
reads cached latents, and turns the average of the weights off to save memory.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(tiny: bool = False, compat: str = "paper", buckets: bool = False) -> ConfigDict:
    config = common.stage("30b", 3, compat, buckets)
    config.train.batch_size = 1  # paper: 1536 falling to 512
    config.ema.decay = 0.0
    return common.shrink(config) if tiny else config
