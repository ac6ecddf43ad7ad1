"""`python -m benchmarks.seed_rows`: the planner's seconds a step beside those that the seed published (docs/numbers.md).

The seed: MindSpore 2.3.1 and 2.7, graph mode, bfloat16, jit level O1, 8 x Ascend 910B (800T A2), as its README tells. Its 1B
and 5B are at ZeRO stage 2, its 30B at stage 3, with the sequence of a video over all 8 cards; no average of the weights.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from moviegen import config as configs
from moviegen.models.costs import cards, plan as plans

ZERO, SEQUENCE = {"data": 1, "zero": 8, "sp": 1}, {"data": 1, "zero": 1, "sp": 8}
# Experiment, mesh, samples of all cards in a step, published seconds, and whether ATTENTION or CONVOLUTIONS of
# models/costs/times.py was chosen by this row.
ROWS = [
    ("1b_stage1.py", ZERO, 80, 0.32, False),
    ("1b_stage2.py", ZERO, 8, 2.12, False),
    ("1b_stage3.py", ZERO, 8, 23.2, False),
    ("5b_stage1.py", ZERO, 80, 0.82, False),
    ("5b_stage2.py", ZERO, 8, 4.12, False),
    ("5b_stage3.py", ZERO, 8, 83.2, False),
    ("30b_stage1.py", ZERO, 80, 5.14, False),
    ("30b_stage2.py", SEQUENCE, 1, 4.04, False),
    ("30b_stage3.py", SEQUENCE, 1, 37.7, False),
    ("30b_stage2.py", SEQUENCE, 1, 2.57, True),
    ("30b_stage3.py", SEQUENCE, 1, 29.7, True),
    ("tae.py:frames=32", {"data": 1, "zero": 1, "sp": 1}, 1, 2.18, True),
]


def main() -> None:
    print("| seed's row | cards, mesh | batch | published, s a step | predicted | off | fitted on |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for file, axes, batch, published, fitted in ROWS:
        plan = planned(file, axes, batch)
        found = plan.times.get("a video", plan.mean).seconds
        told = ", ".join(f"{axis}={size}" for axis, size in axes.items() if size > 1) or "one card"
        off = f"{found / published - 1:+.0%}"
        name = file.partition(".")[0].replace("_", ", ") + (" (newer table)" if fitted and "30b" in file else "")
        print(f"| {name} | {told} | {batch} | {published} | {found:.2f} | {off} | {'yes' if fitted else ''} |")


def planned(file: str, axes: dict[str, int], batch: int) -> plans.Plan:
    """The plan of one of our experiments with the seed's settings."""
    job, compat = ("train_tae", ",compat=seed") if file.startswith("tae") else ("train", ":compat=seed")
    values = {"train.batch_size": batch, "optim.accumulate": 1, "ema.decay": 0.0}
    if job == "train":
        values |= {"train.zero_stage": 3 if file.startswith("30b") else 2, "train.offload_optimizer": False}
    config = configs.apply_overrides(configs.load(f"experiments/{file}{compat}"), values).unlock()
    config.tae.compute_dtype = "bfloat16"
    return plans.of(config, job, axes, cards.CARDS["910B2"])


if __name__ == "__main__":
    main()
