"""The 30B generator, stage 1: text to image at 256 px.

560 images at once, 70 for each of 8 cards, do not fit. Taken in 7 parts, 10 images a card at a time, they are 62 of a card's
63 GB by --job=plan: start it with --workers=8 --mesh=zero=8.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(tiny: bool = False, compat: str = "paper", buckets: bool = False) -> ConfigDict:
    config = common.stage("30b", 1, compat, buckets)
    config.optim.accumulate = 7  # seed: 1, for its 5B
    return common.shrink(config) if tiny else config
