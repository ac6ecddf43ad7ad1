"""A plan in words: three lines for every launch, and why a run cannot fit."""

from moviegen.models.costs import autoencoder, plan as plans, search, work
from moviegen.models.costs.plan import Plan
from moviegen.models.costs.times import Times

GB = 1e9
MOST_KINDS = 2  # of steps that a line, or columns of a table, are about
PARTS = {
    "compute": "products",
    "memory": "other operations",
    "waiting": "launches",
    "communication": "exchange",
    "host": "host",
}


def lines(plan: Plan) -> list[str]:
    """What a run takes, in three lines: memory, a step, the whole run."""
    needed, there = plans.room(plan)
    where = "in this machine" if plan.card.name == "CPU" else "a card"
    host = plan.memory.total[1] if plan.card.name != "CPU" else 0
    beside = f", {host / GB:.1f} GB a card in the host" if host else ""
    first = f"{cards_of(plan)}: {needed / GB:.1f} of {there / GB:.1f} GB {where}{beside} ({kinds(plan)})"
    return [f"plan: {line}" for line in (first, step(plan), course(plan))]


def cards_of(plan: Plan) -> str:
    """The cards and the mesh."""
    name = "on this CPU" if plan.card.name == "CPU" else plan.card.name
    return f"{plan.ranks} x {name}, {search.mesh(plan.axes)}" if plan.ranks > 1 else name


def kinds(plan: Plan, most: int = 4) -> str:
    """The largest kinds of one rank's memory: the card's, or on a CPU all."""
    both = [plan.memory.device, *([plan.memory.host] if plan.card.name == "CPU" else [])]
    sizes = {kind: sum(table.get(kind, 0) for table in both) for table in both for kind in table}
    found = sorted(sizes.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{kind} {size / GB:.1f}" for kind, size in found if size >= GB / 20)


def step(plan: Plan) -> str:
    """Seconds of a step and what they go to, or what there is to compute."""
    each = ", ".join(f"{kind} {t.seconds:.3g}" for kind, t in plan.times.items()) if len(plan.times) > 1 else ""
    if len(plan.times) > MOST_KINDS:
        least, most = (of(t.seconds for t in plan.times.values()) for of in (min, max))
        each = f"{least:.3g} to {most:.3g} in {len(plan.times)} shapes, as if each had as many samples"
    if plan.mean is None:
        return f"a step is {plan.flop / 1e12:.3g} TFLOP on each rank; how long it takes is not predicted on a CPU"
    share = plans.utilisation(plan)
    return (
        f"a step {plan.mean.seconds:.3g} s{f' ({each})' if each else ''}: {shares(plan.mean)}; {share:.0%} of the peak "
        "is used (predicted; nothing was measured on a card)"
    )


def shares(times: Times) -> str:
    """What the seconds go to, in percent."""
    found = {words: getattr(times, name) / times.seconds for name, words in PARTS.items()}
    return ", ".join(f"{words} {part:.0%}" for words, part in found.items() if part >= 0.005)


def course(plan: Plan) -> str:
    """How long the run is."""
    found = plans.course(plan)
    told = [f"{found['steps']:,} steps", f"{found['samples']:,} samples", f"{found['tokens']:,} tokens"]
    if "epochs" in found:
        told.append(f"{found['epochs']:.3g} epochs")
    if "hours" in found:
        told += [f"{found['hours']:,.1f} hours", f"{found['card_hours']:,.0f} card-hours"]
    return "to the end: " + ", ".join(told)


def refusal(plan: Plan) -> str:
    """Why a run cannot fit, and what would mend it."""
    needed, there = plans.room(plan)
    what = "this machine's processes" if plan.card.name == "CPU" else f"a {plan.card.name}"
    found = [f"{' '.join(c.flags)} ({cost(c.plan)})" for c in search.changes(plan)[:3]]
    mend = (
        f"these would let it fit: {'; '.join(found)}"
        if found
        else "no mesh and no setting that the planner knows would"
    )
    return (
        f"this run cannot fit: it needs {needed / GB:.1f} GB of the {there / GB:.1f} GB of {what} ({kinds(plan)}); {mend}; "
        "--config.plan.check=false tries it nevertheless, --job=plan tells more"
    )


def cost(plan: Plan) -> str:
    """Cards, and seconds of a step."""
    needed = plans.room(plan)[0] / GB
    return f"{plan.ranks} cards, {plan.mean.seconds:.3g} s a step" if plan.mean else f"{needed:.1f} GB"


def as_json(plan: Plan) -> dict:
    """All that is known of a plan, as JSON holds it; bytes, seconds and operations are of one rank."""
    needed, there = plans.room(plan)
    found = {
        "job": plan.job,
        "card": plan.card._asdict(),
        "mesh": plan.axes,
        "cards": plan.ranks,
        "parameters": parameters(plan),
        "memory": {"device": plan.memory.device, "host": plan.memory.host, "needed": needed, "there": there},
        "fits": plans.fits(plan),
        "steps": {},
        "utilisation": plans.utilisation(plan),
        "course": plans.course(plan),
    }
    for kind, each in plan.steps.items():
        done = work.total([(1, part) for part, _ in each.parts])
        numbers = done._asdict() | {"messages": [m._asdict() | {"received": m.received} for m in done.messages]}
        own = {"share": each.share, "samples": each.samples, "tokens": each.tokens} | numbers
        times = plan.times.get(kind)
        found["steps"][kind] = own | ({"seconds": times._asdict() | {"all": times.seconds}} if times else {})
    return found


def parameters(plan: Plan) -> int:
    """Values of the model that is trained, or sampled with."""
    return (autoencoder.weights(plan.config) if plan.job == "train_tae" else work.weights(plan.config.model)).values
