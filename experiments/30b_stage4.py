"""The 30B generator, stage 4: fine-tuning on few chosen videos at 768 px.

On 8 devices as the seed starts stage 3: ZeRO-3 and the sequence split over all 8, so that the batch is one clip, and no
average of the weights. What --job=average_weights averages are checkpoints.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(tiny: bool = False, compat: str = "paper", buckets: bool = False) -> ConfigDict:
    config = common.stage("30b", 4, compat, buckets)
    config.train.batch_size = 1  # paper: small, no number
    config.ema.decay = 0.0
    return common.shrink(config) if tiny else config
