"""The 1B generator, stage 4: fine-tuning on few chosen videos at 768 px."""

from ml_collections import ConfigDict

from experiments import common


def get_config(tiny: bool = False, compat: str = "paper", buckets: bool = False) -> ConfigDict:
    config = common.stage("1b", 4, compat, buckets)
    return common.shrink(config) if tiny else config
