"""The 1B generator, stage 2: text to video joint with images at 256 px."""

from ml_collections import ConfigDict

from experiments import common


def get_config(tiny: bool = False, compat: str = "paper", buckets: bool = False) -> ConfigDict:
    config = common.stage("1b", 2, compat, buckets)
    return common.shrink(config) if tiny else config
