"""`python -m benchmarks.plan_table [CARD]`: for every size, stage and number of cards the planner's mesh, memory and time."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from moviegen import config as configs
from moviegen.models.costs import cards, search

COUNTS = (8, 16, 64, 512)


def main(card: str = cards.DEFAULT) -> None:
    heads = "experiment, cards, --mesh, other settings, batch, GB a card, in the host, s a step, card-s a sample".split(
        ", "
    )
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for size in ("1b", "5b", "30b"):
        for stage in (1, 2, 3):
            for count in COUNTS:
                print("| " + " | ".join(row(f"{size}_stage{stage}", count, cards.named(card))) + " |", flush=True)


def row(name: str, count: int, card: cards.Card) -> list[str]:
    """The cells of the cheapest plan."""
    config = configs.load(f"experiments/{name}.py")
    plan = search.best_of(config, "train", count, card)
    if plan is None:
        return [f"`{name}`", str(count), "nothing fits", *[""] * 6]
    device, host = (f"{size / 1e9:.1f}" if size else "" for size in plan.memory.total)
    others = [flag.removeprefix("--config.") for flag in search.flags(config, plan) if "batch_size" not in flag]
    times = [f"{plan.mean.seconds:.3g}", f"{search.price(plan):.3g}"]
    told = [f"`{search.mesh(plan.axes)}`", ", ".join(f"`{flag}`" for flag in others)]
    return [f"`{name}`", str(plan.ranks), *told, str(plan.config.train.batch_size), device, host, *times]


if __name__ == "__main__":
    main(*sys.argv[1:])
