"""Other meshes and settings for a run: those with which it fits, and what they cost."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from moviegen.models.costs import memory, plan as plans
from moviegen.models.costs.cards import Card
from moviegen.models.costs.plan import Plan
from moviegen.parallel import buckets, rules

MOST_CARDS = 4096
EQUAL = 0.02  # of the price: less is nothing that a prediction can tell apart
Axes = dict[str, int]


class Change(NamedTuple):
    """What to change of a run, as it is told to the launcher, and the plan of it then."""

    what: str
    flags: tuple[str, ...]
    plan: Plan


def price(plan: Plan) -> float:
    """Card-seconds of a sample; where no time is known, bytes of memory."""
    return plan.mean.seconds * plan.ranks / plan.samples if plan.mean else plans.room(plan)[0]


def meshes(ranks: int, config: Any, job: str, card: Card) -> Iterator[Axes]:
    """Every mesh of so many ranks that an experiment may have, sequences inside a machine."""
    for sp in range(1, min(ranks, card.cards if card.tflops else ranks) + 1 if job != "train_tae" else 2):
        for zero in range(1, ranks // sp + 1):
            axes = {"data": ranks // sp // zero, "zero": zero, "sp": sp}
            if ranks % (sp * zero) == 0 and not rules.violations(axes, ranks, config, job):
                yield axes


def with_keys(config: Any, values: dict[str, Any]) -> Any:
    """A copy of a config with dotted keys set; those that it does not have are left out."""
    made = config.copy_and_resolve_references().unlock()
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if name in made[section]:
            made[section][name] = value
    return made


def changes(plan: Plan) -> list[Change]:
    """For a run that does not fit: of each kind of change the cheapest that lets it fit; all together; more cards.

    For one that fits: what would be faster on as many cards, where time is known. The cheapest of a sample comes first,
    more cards last.
    """
    if plans.fits(plan) and not plan.times:
        return []
    config, job, card, found = plan.config, plan.job, plan.card, []
    here, batch = {"mesh": plan.axes}, config.train.batch_size if job != "sample" else 0
    alone = {
        "mesh": [{"mesh": axes} for axes in meshes(plan.ranks, config, job, card)],
        "ZeRO stage": [here | {"train.zero_stage": stage} for stage in (1, 2, 3)],
    }
    if job == "train":
        parts = _parts(batch, plan.axes, config.optim.accumulate)
        alone |= {
            "recomputing": [here | {"train.recompute": "all"}, here | {"train.recompute": "none"}],
            "offload": [here | {"train.offload_optimizer": moved} for moved in (True, False)],
            "parts of a step": [here | {"optim.accumulate": n} for n in parts],
        }
    if job != "sample":
        fewer = [n for n in range(batch - 1, 0, -1) if batch % n == 0]
        alone["smaller batch"] = [here | {"train.batch_size": n} for n in fewer]
    for what, options in alone.items():
        found += _cheapest(plan, what, options)
    if best := best_of(config, job, plan.ranks, card):
        found.append(_change(plan, "all of these", best))
    if plans.fits(plan):
        return sorted((c for c in found if price(c.plan) < 0.99 * price(plan)), key=lambda c: price(c.plan))
    ranks = plan.ranks
    while card.tflops and (ranks := ranks * 2) <= MOST_CARDS:
        if best := best_of(config, job, ranks, card):
            found.append(_change(plan, f"{ranks} cards", best))
            break
    unique = {(c.flags, c.plan.ranks): c for c in reversed(found)}
    return sorted(unique.values(), key=lambda c: (c.plan.ranks, price(c.plan)))


def best_of(config: Any, job: str, ranks: int, card: Card) -> Plan | None:
    """The cheapest plan that fits on so many cards: mesh, stage, recomputing, offload and parts of a step as needed.

    The batch grows to what the mesh divides; only where nothing fits it is halved, and halved again. None where nothing does.
    """
    if job == "sample":
        options = [(axes, {"train.zero_stage": s}) for axes in meshes(ranks, config, job, card) for s in (1, 3)]
        return _choose([_fitting(config, job, *option, card) for option in options])
    batch = config.train.batch_size
    while batch:
        found = list(_of_batch(config, job, ranks, card, batch))
        if found:
            return _choose(found)
        batch //= 2
    return None


def _of_batch(config: Any, job: str, ranks: int, card: Card, batch: int) -> Iterator[Plan]:
    """For every mesh and stage the plan with the least saving of memory that fits, of a batch at least so large."""
    divisible = {"train.batch_size": ranks, "data.image_batch_size": ranks, "optim.accumulate": 1}
    for axes in meshes(ranks, with_keys(config, divisible), job, card):
        pieces = axes["data"] * axes["zero"]
        size = {"train.batch_size": -(-batch // pieces) * pieces}
        if job == "train_tae":
            size["data.image_batch_size"] = -(-config.data.image_batch_size // pieces) * pieces
        for stage in (1, 2, 3):
            for policy in _policies(config, job):
                values = size | {"train.zero_stage": stage} | policy
                made = _in_parts(config, job, axes, values, card)
                if made:
                    yield made
                    break  # those that follow cost more


def _in_parts(config: Any, job: str, axes: Axes, values: dict[str, Any], card: Card) -> Plan | None:
    """The plan with some keys set and a step in as few parts as fit; where blocks are kept, in one."""
    whole = _fitting(config, job, axes, values | {"optim.accumulate": 1}, card)
    if whole or job != "train" or values["train.recompute"] != "all":
        return whole
    # More parts take less memory, but for the first cut, after which sums of gradients are kept besides.
    parts, found = _parts(values["train.batch_size"], axes, 2), None
    while parts:
        middle = len(parts) // 2 if found else -1
        made = _fitting(config, job, axes, values | {"optim.accumulate": parts[middle]}, card)
        if made is None and not found:
            return None
        found, parts = made or found, parts[:middle] if made else parts[middle + 1 :]
    return found


def _choose(found: list[Plan | None]) -> Plan | None:
    """The cheapest; of those that cost nearly as little, where time is known, the one that exchanges least."""
    best = min(filter(None, found), key=price, default=None)
    if best is None or not best.mean:
        return best
    near = [plan for plan in found if plan and price(plan) <= (1 + EQUAL) * price(best)]
    return min(near, key=lambda plan: plan.mean.hidden + plan.mean.communication)


def _policies(config: Any, job: str) -> Iterator[dict[str, Any]]:
    """Ways to save memory, those that cost less time first."""
    if job == "train_tae":
        yield {}
        return
    for moved, again in itertools.product((False, True), ("none", "all")):
        yield {"train.recompute": again, "train.offload_optimizer": moved}


def _parts(batch: int, axes: Axes, least: int) -> list[int]:
    """Into how many parts a step can be cut, from `least` on."""
    each = batch // (axes["data"] * axes["zero"])
    return [n for n in range(least, each + 1) if each % n == 0]


def _fitting(config: Any, job: str, axes: Axes, values: dict[str, Any], card: Card) -> Plan | None:
    """The plan with some keys set, if the rules of the mesh hold and the memory is enough."""
    made = with_keys(config, values)
    unit = axes["data"] * axes["zero"] * made.get("optim", {}).get("accumulate", 1)
    if rules.violations(axes, math.prod(axes.values()), made, job):
        return None
    if job == "train" and buckets.configured(made) and buckets.problems(made, unit):
        return None
    first = Plan(made, job, axes, card, memory.of(made, job, axes, card), {})
    return plans.of(made, job, axes, card) if plans.fits(first) else None


def _cheapest(plan: Plan, what: str, options: list[dict[str, Any]]) -> list[Change]:
    """The cheapest of some changes that fits, if any does."""
    made = []
    for option in options:
        values = {key: value for key, value in option.items() if key != "mesh"}
        made.append(_fitting(plan.config, plan.job, option["mesh"], values, plan.card))
    best = _choose(made)
    return [_change(plan, what, best)] if best and _flags(plan, best) else []


def _change(before: Plan, what: str, after: Plan) -> Change:
    return Change(what, _flags(before, after), after)


KEYS = (
    "train.zero_stage train.recompute train.offload_optimizer optim.accumulate train.batch_size data.image_batch_size"
)


def _flags(before: Plan, after: Plan) -> tuple[str, ...]:
    """What to add to the command of one plan to get the other."""
    own = () if after.axes == before.axes else ("--mesh=" + mesh(after.axes),)
    return (*own, *flags(before.config, after))


def flags(config: Any, after: Plan) -> list[str]:
    """The overrides that lead from a config to a plan's."""
    found = []
    for key in KEYS.split():
        section, _, name = key.partition(".")
        value = after.config.get(section, {}).get(name)
        if value != config.get(section, {}).get(name):
            found.append(f"--config.{key}={str(value).lower() if isinstance(value, bool) else value}")
    return found


def mesh(axes: Axes) -> str:
    """A mesh as the launcher takes it."""
    return ",".join(f"{axis}={size}" for axis, size in axes.items() if size > 1) or "data=1"
