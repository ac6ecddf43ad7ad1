"""What an experiment will take on a mesh of some card: memory, time, and how long it runs. Without MindSpore, and at once."""

import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

from moviegen.models.costs import autoencoder, memory, times, work
from moviegen.models.costs.cards import Card
from moviegen.models.costs.memory import Memory
from moviegen.models.costs.times import Times
from moviegen.models.costs.work import IMAGE, VIDEO, Work
from moviegen.parallel import buckets, rules

JOBS = ("train", "train_tae", "sample")  # that can be planned
BATCH = "a batch of prompts"


class Step(NamedTuple):
    """A kind of step: the share of all steps that are of it, samples of all ranks, tokens of one, parts and their dtypes."""

    share: float
    samples: int
    tokens: int
    parts: tuple[tuple[Work, str], ...]


class Plan(NamedTuple):
    """What one run will take: `memory` of one rank, and its steps by kind."""

    config: Any
    job: str
    axes: dict[str, int]
    card: Card
    memory: Memory
    steps: dict[str, Step]

    @property
    def ranks(self) -> int:
        """How many cards, or processes, there are."""
        return math.prod(self.axes.values())

    @property
    def times(self) -> dict[str, Times]:
        """Seconds of a step of each kind; nothing where a card's speed is not known."""
        if not self.card.tflops:
            return {}
        parts = {kind: [times.of(each, self.card, dtype) for each, dtype in s.parts] for kind, s in self.steps.items()}
        return {kind: Times(*map(sum, zip(*each, strict=True))) for kind, each in parts.items()}

    @property
    def mean(self) -> Times | None:
        """Seconds of a step, in the mean over the kinds; None where a card's speed is not known."""
        found = [[self.steps[kind].share * x for x in each] for kind, each in self.times.items()]
        return Times(*map(sum, zip(*found, strict=True))) if found else None

    @property
    def flop(self) -> float:
        """Operations of a step on one rank, in the mean over the kinds."""
        return sum(s.share * part.flop for s in self.steps.values() for part, _ in s.parts)

    @property
    def samples(self) -> float:
        """Samples of a step on all ranks, in the mean over the kinds."""
        return sum(s.share * s.samples for s in self.steps.values())


def of(config: Any, job: str, axes: dict[str, int], card: Card) -> Plan:
    """The plan of an experiment whose settings hold."""
    return Plan(config, job, axes, card, memory.of(config, job, axes, card), steps(config, job, axes))


def steps(config: Any, job: str, axes: dict[str, int]) -> dict[str, Step]:
    """What the steps of a job are."""
    if job == "sample":
        return {BATCH: _sampling(config, axes)}
    if job == "train":
        return _training(config, axes)
    images = config.data.image_fraction
    dtype, done = config.tae.get("compute_dtype", "float32"), autoencoder.training(config, axes)
    batches = {VIDEO: config.train.batch_size, IMAGE: config.data.image_batch_size}
    pixels = config.data.height * config.data.width
    tokens = {VIDEO: config.data.num_frames * pixels // 512, IMAGE: pixels // 64}
    shares = {VIDEO: 1 - images, IMAGE: images} if len(done) > 1 else dict.fromkeys(done, 1.0)
    return {kind: Step(shares[kind], batches[kind], tokens[kind], ((each, dtype),)) for kind, each in done.items()}


def _training(config: Any, axes: dict[str, int]) -> dict[str, Step]:
    """The steps of a generator's training; of buckets of a kind as if each had as many samples, which are not counted here."""
    dtype, images = config.model.get("compute_dtype", "float32"), config.data.image_fraction
    table = rules.kinds(config, axes["data"] * axes["zero"] * config.optim.get("accumulate", 1))
    steps = {kind: each.weight / each.batch_size for kind, each in table.items()}  # of an epoch
    parts = {"image": images, "video": 1 - images} if len({each.kind for each in table.values()}) > 1 else {}
    sums = {each.kind: sum(steps[kind] for kind, b in table.items() if b.kind == each.kind) for each in table.values()}
    return {
        kind: Step(
            parts.get(table[kind].kind, 1.0) * steps[kind] / (sums[table[kind].kind] or 1.0),
            table[kind].batch_size,
            buckets.tokens(table[kind], config),
            ((done, dtype),),
        )
        for kind, done in work.training(config, axes).items()
    }


def _sampling(config: Any, axes: dict[str, int]) -> Step:
    """A batch of prompts on every team of ranks: the steps through the flow, and decoding."""
    sample, guided = config.sample, config.sample.guidance_scale != 1
    halves = guided and axes["data"] == 2  # each half of the mesh computes one branch of guidance
    teams = axes["zero"] if halves else axes["data"] * axes["zero"]
    batch = max(1, min(sample.batch_size, -(-max(1, len(sample.prompts)) // teams)))
    sides = (sample.height, sample.width)
    grid = [-(-sample.num_frames // 8), *(n // 8 for n in sides)]
    tokens = math.prod(n // p for n, p in zip(grid, config.model.patch_size, strict=True))
    called = work.velocity(config, axes, batch * (2 if guided and not halves else 1), tokens)
    tiles, decoded = autoencoder.decoding(config.tae, sample.num_frames, *sides)
    sharing = axes["sp"] * (2 if halves else 1)
    parts = (
        (work.total([(sample.steps, called)]), config.model.get("compute_dtype", "float32")),
        (work.total([(math.ceil(batch * tiles / sharing), decoded)]), config.tae.get("compute_dtype", "float32")),
    )
    return Step(1.0, batch * teams, tokens, parts)


def room(plan: Plan) -> tuple[float, float]:
    """Bytes that are needed and that there are: of a card, or of the machine that the processes of a CPU share."""
    device, host = plan.memory.total
    if plan.card.name == "CPU":
        return (device + host) * plan.ranks, plan.card.usable
    return device, plan.card.usable


def fits(plan: Plan) -> bool:
    """Whether the memory is enough."""
    needed, there = room(plan)
    return needed <= there


def utilisation(plan: Plan) -> float | None:
    """Operations that a step cannot do without, forward and back once, as a share of the card's peak."""
    if plan.mean is None:
        return None
    done, dtype = plan.flop, next(iter(plan.steps.values())).parts[0][1]
    if plan.job == "train":
        once = work.training(plan.config, plan.axes, once=True)
        done = sum(plan.steps[kind].share * each.flop for kind, each in once.items())
    peak = plan.card.tflops["float32" if dtype == "bfloat16_simulated" else dtype] * 1e12
    return done / (plan.mean.seconds * peak)


def course(plan: Plan) -> dict[str, float]:
    """How long the run is: steps, samples, tokens, epochs where the samples can be counted; hours where time is known."""
    if plan.job == "sample":
        count = math.ceil(max(1, len(plan.config.sample.prompts)) / plan.samples)
    else:
        count = plan.config.train.steps
    found = {"steps": count, "samples": round(count * plan.samples)}
    found["tokens"] = round(count * sum(s.share * s.samples * s.tokens for s in plan.steps.values()))
    rows = None if plan.job == "sample" else _rows(plan.config.data)
    if rows:
        found["epochs"] = found["samples"] / rows
    if plan.mean is not None:
        found["hours"] = count * plan.mean.seconds / 3600
        found["card_hours"] = found["hours"] * plan.ranks
    return found


def _rows(data: Any) -> int:
    """How many samples there are to train on; 0 where nobody knows without opening them."""
    if data.source == "synthetic":
        return data.get("num_samples", 0)
    path = Path(data.get("csv", ""))
    if data.source != "csv" or not path.is_file():
        return 0
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return max(0, sum(1 for row in csv.reader(file) if row) - 1)
