"""One run of one experiment: settings are checked, its config and result are noted in the workdir."""

import contextlib
import importlib
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from moviegen import config as configs, settings
from moviegen.errors import ConfigError, Stopped
from moviegen.nn import runtime
from moviegen.parallel import buckets, heartbeat, mesh as meshes, rules
from moviegen.parallel.mesh import ONE, Mesh, rank, ranks
from moviegen.storage import files, lock

if TYPE_CHECKING:
    from moviegen.storage.writers import Writer

JOBS = Path(__file__).parent / "jobs"
WITH_STAGES = ("demo", "train_stages")
# Jobs that look at what the experiment's own job would do: by themselves, for a mesh of ranks that need not exist.
ANY_MESH = ("audit_ascend", "plan")
# Jobs of which every rank would do all of the work.
ONE_RANK = (
    *ANY_MESH,
    *("average_weights", "check_data", "convert", "curate", "demo", "evaluate", "export", "fetch_text_encoder"),
    *("import_weights", "look"),
)


class Run(NamedTuple):
    """What a job is given.

    Args:
        config: its settings, locked.
        workdir: folder for its files.
        mesh: this process's place among the ranks.
        stage: the one to run, of a job that has several; a name for the numbers in training.
        writer: the caller's own metric writer, which `open_writer` adds to ours.
    """

    config: ConfigDict
    workdir: Path
    mesh: Mesh = ONE
    stage: str | None = None
    writer: Any = None

    def open_writer(self, name: str, resume_step: int | None = None) -> "Writer":
        """Opens a writer for this run's numbers under `name`, and sends it the config."""
        from moviegen.storage.writers import Writer

        writer = Writer(self.workdir, name, resume_step, self.mesh.world.rank, self.writer)
        writer.write_hparams(configs.flat(self.config))
        return writer


class Plan(NamedTuple):
    """The settings of a run after they were checked."""

    config: ConfigDict
    job: str
    workdir: Path
    axes: dict[str, int]
    stage: str | None

    def record(self, name: str) -> Path:
        """Where this job keeps what is called `name`: the experiment's own job under that name, any other under `JOB.name`."""
        return self.workdir / (name if self.job == self.config.get("job") else f"{self.job}.{name}")

    def owned(self) -> contextlib.AbstractContextManager[int | None]:
        """The lock of what this job writes (`lock.held`): another job may work in the same workdir at the same time."""
        return lock.held(self.record("lock"))


def run(
    config: ConfigDict | str,
    job: str | None = None,
    workdir: str | Path | None = None,
    mesh: str | None = None,
    stage: str | None = None,
    writer: Any = None,
) -> dict[str, float]:
    """Runs one experiment to its end and returns its final metrics, so that a sweep is a for-loop.

    `config` is a ConfigDict or `"experiments/tiny.py:data=clips"`; `job` defaults to `config.job`, `workdir` to
    `runs/<config.name>`, `mesh` to data parallel over all ranks. A workdir that holds an unfinished run is resumed.
    `writer`, a `clu.metric_writers.MetricWriter` or anything with its methods, gets what training and encode_text write,
    beside metrics.jsonl and TensorBoard, on rank 0; it is flushed and not closed.
    Leaves `config.json` and, once finished, `result.json` in the workdir; a job that is not the experiment's own,
    `JOB.config.json` and `JOB.result.json`. One that finds nothing left to do leaves the result as it was, and its metrics
    are returned. Raises ConfigError, also where another run is at work there.
    """
    plan = prepare(config, job, workdir, mesh, stage, ranks())
    told = forecast(plan)
    with contextlib.ExitStack() as stack:
        if rank():  # first, or a run that is refused would have the ranks of the other end
            lock.joined(plan.record("lock"))
        elif os.environ.get("MS_ROLE") != "MS_SCHED":
            stack.enter_context(plan.owned())
        if ranks() > 1:
            stack.enter_context(heartbeat.beating(plan.record("ranks"), plan.config.train.rank_timeout))
        runtime.tell(plan.config)  # before the ranks meet
        opened = rules.communicators(plan.axes, plan.config.train.get("zero_stage", 0), plan.job) if ranks() > 1 else ()
        mesh = Mesh(**plan.axes) if plan.job in ANY_MESH else meshes.setup(plan.axes, opened)
        if rank() == 0:
            _note_config(plan)
            for note in rules.notes(plan.axes, plan.config, plan.job):
                print(f"note: {note}", flush=True)
            for line in told:
                print(line, flush=True)
        start = time.monotonic()
        job = importlib.import_module(f"moviegen.jobs.{plan.job}")
        try:
            metrics = job.run(Run(plan.config, plan.workdir, mesh, plan.stage, writer))
        except Stopped:
            _together(mesh)
            raise
        metrics = {name: float(value) for name, value in metrics.items()}
        if rank() == 0:
            metrics = _note_result(plan, metrics, time.monotonic() - start)
        _together(mesh)
    return metrics


def prepare(
    config: ConfigDict | str,
    job: str | None,
    workdir: str | Path | None,
    mesh: str | None,
    stage: str | None,
    ranks: int,
) -> Plan:
    """Checks the settings of a run without importing anything heavy. Raises ConfigError."""
    config = configs.load(config) if isinstance(config, str) else config.copy_and_resolve_references().lock()
    job = job or config.get("job")
    if job not in jobs():
        raise ConfigError(f"job {job!r} does not exist{configs.nearest(str(job), jobs())}; jobs: {', '.join(jobs())}")
    if ranks > 1 and job in ONE_RANK:
        raise ConfigError(f"job {job!r} runs on one rank, there are {ranks}: leave --workers out")
    stages = list(config.get("stages", ()))
    if stage and job not in WITH_STAGES:
        having = ", ".join(WITH_STAGES)
        raise ConfigError(f"stage {stage!r}: job {job!r} has no stages (those with: {having}): leave --stage out")
    if stage and stage not in stages:
        known = f"stages: {', '.join(stages)}" if stages else "this experiment has no stages: leave --stage out"
        raise ConfigError(f"stage {stage!r} does not exist{configs.nearest(stage, stages)}; {known}")
    if not workdir and not config.get("name"):
        raise ConfigError("no workdir: a config that was not loaded from a file has no name to call its folder after")
    axes = meshes.parse(mesh, ranks)
    if job in ANY_MESH:
        check(config, config.get("plan", {}).get("job") or config.get("job"), axes, math.prod(axes.values()))
    else:
        check(config, job, axes, ranks)
    return Plan(config, job, Path(workdir or f"runs/{config.name}"), axes, stage or None)


def forecast(plan: Plan) -> list[str]:
    """Returns three lines of what a run will take, for jobs that can be planned. ConfigError where it cannot fit."""
    from moviegen.models.costs import cards, plan as plans, summary  # not above: they need numpy

    parts = configs.stages(plan.config) if plan.job == "train_stages" else {"": (plan.config, plan.job)}
    told: list[str] = []
    for stage, (config, job) in parts.items():
        if job not in plans.JOBS:
            continue
        own, name = config.get("plan", {}), f"{stage}: " if stage else ""
        made = plans.of(config, job, plan.axes, cards.named(own.get("card", "")))
        if own.get("check", True) and not plans.fits(made):
            raise ConfigError(name + summary.refusal(made))
        if rank():  # the first tells, and counts the rows of the csv for that
            continue
        assumed = not own.get("card") and made.card.name != "CPU"
        lines = summary.lines(made) + [f"note: plan.card does not say which card this is: {made.card.name}"] * assumed
        told += [name + line for line in lines]
    return told


def check(config: ConfigDict, job: str, axes: dict[str, int], ranks: int) -> None:
    """Raises one ConfigError with all that is wrong with the settings of a run, of the demo's stages and the mesh too."""
    views, stages = {"": (config, job)}, config.get("stages")
    if job in WITH_STAGES and isinstance(stages, ConfigDict):
        views |= configs.stages(config)
    known, found, shape = configs.flat(config), [], ",".join(f"{axis}={size}" for axis, size in axes.items())
    for stage, (view, of) in views.items():
        values = configs.flat(view)
        if absent := settings.missing(values, of, ranks):
            needs = f"stages.{stage} needs" if stage else f"--job={of} needs"
            take = f": take one that has, such as {settings.TAKE[of]}" if of in settings.TAKE else ""
            raise ConfigError(f"this experiment has no {', '.join(absent)}, which {needs}{take}")
        wrong = settings.broken(values, of)
        for key, words in wrong.items():
            own = f"stages.{stage}.{key}"
            found.append(f"{own if own in known else key} {words}")
        if "data.buckets.resolution" in values and view.data.buckets.resolution and not wrong:
            unit = axes["data"] * axes["zero"] * view.get("optim", {}).get("accumulate", 1) if of == "train" else 1
            found += buckets.problems(view, unit)
        for words in rules.violations(axes, math.prod(axes.values()) if stage else ranks, view, of, wrong):
            found.append(f"stages.{stage}: {words}" if stage else f"mesh {shape} does not fit this experiment: {words}")
    found = list(dict.fromkeys(found))
    if found:
        raise ConfigError((f"{len(found)} settings are wrong: " if len(found) > 1 else "") + "; ".join(found))


def jobs() -> list[str]:
    """Returns the names of the jobs there are, without importing any."""
    return sorted(path.stem for path in JOBS.glob("*.py") if not path.stem.startswith("_"))


def _together(mesh: Mesh) -> None:
    """Has the ranks leave together: MindSpore's scheduler, and msrun, end those that are still at work when others leave."""
    if mesh.world.size > 1:
        from moviegen.parallel import sync

        sync.wait(mesh.world)


def _note_config(plan: Plan) -> None:
    """Writes config.json, and before that prints what differs from the run that was here before."""
    path, config, result = plan.record("config.json"), configs.to_plain(plan.config), plan.record("result.json")
    for line in configs.changes(files.noted(path) or config, config):
        print(f"config changed since the last run in {plan.workdir}: {line}", flush=True)
    files.write_json(config, path)
    if result.is_file():  # aside: a run that does not finish has no result
        os.replace(result, plan.record("result.before.json"))


def _note_result(plan: Plan, metrics: dict[str, float], seconds: float) -> dict[str, float]:
    """Writes result.json, or puts back the one from before where the job found nothing left to do; returns its metrics."""
    path, before = plan.record("result.json"), plan.record("result.before.json")
    found = None if metrics else files.noted(before)
    if found:
        print(f"{plan.job}: was finished before, its result is in {path}", flush=True)
        os.replace(before, path)
        return found["metrics"]
    files.write_json({"job": plan.job, "stage": plan.stage, "seconds": round(seconds, 1), "metrics": metrics}, path)
    before.unlink(missing_ok=True)
    return metrics
