"""--job=plan: what a run takes, on which cards it fits, and what would be cheaper; without MindSpore, and at once."""

from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from moviegen import config as configs
from moviegen.errors import ConfigError
from moviegen.evaluation import page
from moviegen.models.costs import cards, plan as plans, search, summary, work
from moviegen.models.costs.plan import Plan, Step
from moviegen.models.costs.times import Times
from moviegen.models.costs.work import Work
from moviegen.runner import Run
from moviegen.storage import files

GB = 1e9
Table = tuple[str, Sequence[str], list[list[str]]]  # title, heads, rows


def run(run: Run) -> dict[str, float]:
    """Prints the plan; leaves plan.json and the page plan.html in the workdir. Returns the last plan's numbers."""
    own, axes = run.config.get("plan", {}), run.mesh.axes
    card, metrics, noted, sections = cards.named(own.get("card", "")), {}, {}, []
    for name, config, job in _runs(run.config):
        plan = plans.of(config, job, axes, card) if not own.get("cards") else _best(config, job, own.cards, card)
        tables = list(_tables(plan))
        print("\n".join(summary.lines(plan)))
        for title, heads, rows in tables:
            print(f"\n{title}\n{_text(heads, rows)}")
        print(flush=True)
        noted[name] = summary.as_json(plan)
        sections.append(page.section(f"{name}: {summary.cards_of(plan)}", _pictures(plan, tables)))
        metrics = {"fits": float(plans.fits(plan)), "needed_gb": plans.room(plan)[0] / GB}
        if plan.mean:
            metrics |= {"seconds": plan.mean.seconds, "hours": plans.course(plan)["hours"]}
    files.write_json(noted, run.workdir / "plan.json")
    sources = [[kind, page.escape(words)] for kind, words in card.sources.items()]
    sections.append(
        page.section(f"Where the numbers of {card.name} are from", page.table(("number", "source"), sources))
    )
    files.write_text(
        page.document(f"Plan of {run.config.get('name', 'an experiment')}", sections), run.workdir / "plan.html"
    )
    print(f"plan: {run.workdir / 'plan.json'}, and as a page {run.workdir / 'plan.html'}", flush=True)
    return metrics


def _runs(config: ConfigDict) -> Iterator[tuple[str, ConfigDict, str]]:
    """Name, settings and job of what an experiment trains or samples: of one with stages those."""
    job = config.get("plan", {}).get("job") or config.get("job")
    if job in plans.JOBS:
        yield job, config, job
        return
    stages = configs.stages(config) if "stages" in config else {}
    found = [(name, own, of) for name, (own, of) in stages.items() if of in plans.JOBS]
    if not found:
        known = ", ".join(plans.JOBS)
        raise ConfigError(f"job {job!r} cannot be planned: set --config.plan.job to one of {known}")
    yield from found


def _best(config: ConfigDict, job: str, ranks: int, card: cards.Card) -> Plan:
    """The planner's own mesh and settings for so many cards, or ConfigError."""
    found = search.best_of(config, job, ranks, card)
    if not found:
        raise ConfigError(f"plan.cards is {ranks}: nothing that the planner knows fits on so many {card.name}")
    print(f"plan: on {ranks} cards the cheapest is --mesh={search.mesh(found.axes)}", *search.flags(config, found))
    return found


def _tables(plan: Plan) -> Iterator[Table]:
    device, host = plan.memory.device, plan.memory.host
    rows = [[kind, _gb(device.get(kind, 0)), _gb(host.get(kind, 0))] for kind in {**device, **host}]
    together = [_gb(sum(each.values())) for each in (device, host)]
    yield "memory of one rank, GB", ("", "card", "host"), [*rows, ["together", *together]]
    done = {kind: work.total([(1, part) for part, _ in each.parts]) for kind, each in plan.steps.items()}
    columns = {kind: _step(plan.times.get(kind), done[kind], each) for kind, each in plan.steps.items()}
    heads = next(iter(columns.values()))
    rows = [[head, *(column[head] for column in columns.values())] for head in heads]
    if len(columns) > summary.MOST_KINDS:  # a line for each
        yield "a step, on one rank", ("", *heads), [[kind, *column.values()] for kind, column in columns.items()]
        done = dict([max(done.items(), key=lambda item: item[1].flop)])  # of the largest alone
    else:
        yield "a step, on one rank", ("", *columns), rows
    rows = [
        [kind, m.what, str(m.ranks), f"{m.count:,.0f}", _gb(m.received), "yes" if m.hidden else "no"]
        for kind, each in done.items()
        for m in each.messages
    ]
    if rows:
        yield "messages of a step", ("", "what", "ranks", "messages", "GB received", "while computing"), rows
    rows = []
    for what, flags, other in search.changes(plan):
        times = [f"{other.mean.seconds:.3g}", f"{search.price(other):.3g}"] if other.mean else ["", ""]
        rows.append([what, " ".join(flags), str(other.ranks), *times, _gb(plans.room(other)[0])])
    if rows:
        title = "what would be faster" if plans.fits(plan) else "what would let it fit"
        yield title, ("", "add", "cards", "s a step", "card-s a sample", "GB a card"), rows


def _step(times: Times | None, done: Work, step: Step) -> dict[str, str]:
    """What is told of a kind of step."""
    found = {}
    if times:
        found = {words: f"{getattr(times, name):.3g}" for name, words in summary.PARTS.items()}
        found |= {"seconds": f"{times.seconds:.3g}", "exchange that is hidden": f"{times.hidden:.3g}"}
    return found | {
        "TFLOP": f"{done.flop / 1e12:.3g}",
        "other operations, GB": _gb(done.traffic),
        "to and from the host, GB": _gb(done.host),
        "kernels": f"{done.launches:,.0f}",
        "share of the steps": f"{step.share:.0%}",
        "samples": str(step.samples),
        "tokens of each": f"{step.tokens:,}",
    }


def _gb(size: float) -> str:
    return f"{size / GB:.2f}" if size else ""


def _text(heads: Sequence[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)
    )


def _pictures(plan: Plan, tables: list[Table]) -> str:
    """Memory as a bar, time as another for every kind of step, and the tables."""
    needed, there = plans.room(plan)
    times = plan.ranks if plan.card.name == "CPU" else 1
    size = {kind: times * n / GB for kind, n in plan.memory.device.items()}
    bars = [page.bar(f"memory: {needed / GB:.1f} of {there / GB:.1f} GB", size, "GB", there / GB)]
    if plan.card.name != "CPU" and plan.memory.host:
        size = {kind: n / GB for kind, n in plan.memory.host.items()}
        bars.append(page.bar(f"in the host, for each card: {sum(size.values()):.1f} GB", size, "GB"))
    for kind, t in plan.times.items():
        parts = {words: getattr(t, name) for name, words in summary.PARTS.items()}
        bars.append(page.bar(f"a step with {kind}: {t.seconds:.3g} s", parts, "s"))
    told = [f"<p>{page.escape(line)}</p>" for line in summary.lines(plan)]
    shown = [
        f"<h3>{page.escape(title)}</h3>"
        + page.table(list(map(page.escape, heads)), [list(map(page.escape, r)) for r in rows])
        for title, heads, rows in tables
    ]
    return "\n".join([*told, *bars, *shown])
