"""Stages 1 to 4 at toy size on two CPU cores, each from the weights of the one before; the mean of two checkpoints; samples.

    python launch.py --config=experiments/tiny_stages.py:buckets --workdir=runs/stages   # clips of several shapes
    python launch.py --config=experiments/tiny_stages.py --workdir=runs/stages   # of one

A run at full size is the same with other stages: docs/training.md.
"""

from ml_collections import ConfigDict

from experiments import common

STEPS = {1: 60, 2: 60, 3: 60, 4: 60}
SIZES = {1: (32, 48), 2: (32, 48), 3: (48, 80), 4: (48, 80)}
FRAMES = 16


def get_config(buckets: bool = False, quick: bool = False) -> ConfigDict:
    """buckets: clips of two ratios and two lengths in each stage, and not of one shape. quick: three steps of each stage."""
    stages = {f"stage{number}": _stage(number, buckets, quick) for number in STEPS}
    for name in ("average_weights", "sample"):
        stages[name.partition("_")[0]] = last = stages["stage4"].copy_and_resolve_references()
        last.job = name
    return common.chain(**stages)


def _stage(number: int, buckets: bool, quick: bool) -> ConfigDict:
    config = common.shrink(common.stage("1b", number, in_buckets=buckets))
    steps, (height, width) = 3 if quick else STEPS[number], SIZES[number]
    config.data.update(num_samples=32, text_drop_prob=0.1, height=height, width=width)
    config.data.num_frames = min(config.data.num_frames, FRAMES)
    config.sample.update(height=height, width=width, num_frames=FRAMES)
    if buckets:
        lengths = dict(frames=(FRAMES, FRAMES // 2), max_fps=(24.0, 32.0)) if number < 4 else dict(frames=(FRAMES,))
        config.data.buckets.update(resolution=40 if number < 3 else 64, aspect_ratios=("16:9", "9:16"), **lengths)
    # The rates and the average of a run that is a thousand times shorter.
    config.optim.update(learning_rate=2e-3, warmup_steps=min(5, steps), betas=(0.9, 0.99))
    config.ema.decay = 0.9
    batch_size = 8 if buckets else 16  # no more than a bucket has samples
    config.train.update(
        steps=steps, batch_size=batch_size, checkpoint_every=-(-steps // 2), validate_every=-(-steps // 4)
    )
    return config
