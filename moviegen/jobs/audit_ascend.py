"""Looks at every graph of an experiment as an Ascend card would be given it, on any machine: docs/ascend.md."""

import importlib
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moviegen import config as configs
from moviegen.demo import isolate
from moviegen.errors import ConfigError, Found
from moviegen.nn import ascend, ir
from moviegen.runner import WITH_STAGES, Run
from moviegen.storage import files


class Step(NamedTuple):
    """A step of the experiment: its graphs, each with how often the step calls it, and why it ended before its end."""

    name: str
    graphs: list[tuple[ir.Graph, int]]
    broken: str = ""


def run(run: Run) -> dict[str, float]:
    """Compiles each graph of the experiment at its real size, without weights, in Ascend's forms and the compute dtype.

    Leaves `audit.json` and `audit.md`, which is also printed: launches, FLOP and bytes of every graph; kernel, dtypes and
    lines of every primitive; what is wrong. Raises Found where anything is: a graph that does not compile, a primitive
    without a kernel, a dtype that its kernel does not take, a constant of more than 16 MB. ConfigError for a MindSpore whose
    kernels are not known.
    """
    ascend.table()
    axes = run.mesh.axes
    with tempfile.TemporaryDirectory() as folder:
        steps, _ = isolate.call("moviegen.jobs.audit_ascend:compile_all", run.config, axes, folder)
    found, shape = findings(steps), ",".join(f"{axis}={size}" for axis, size in axes.items())
    page = report(steps, found, f"{run.config.get('name', 'the experiment')} on {shape}")
    files.write_text(page, run.workdir / "audit.md")
    files.write_json(
        {"mesh": axes, "steps": [summary(step) for step in steps], "wrong": found}, run.workdir / "audit.json"
    )
    print(page, flush=True)
    graphs = {id(graph): graph for step in steps for graph, _ in step.graphs}.values()
    if found:
        raise Found(
            f"audit_ascend: {len(found)} faults in {len(graphs)} graphs, listed above and in {run.workdir}/audit.md"
        )
    kinds = Counter(kind for graph in graphs for _, kind in launched(graph))
    return {"graphs": len(graphs)} | {kind: kinds[kind] for kind in ("aclnn", "aclop", "hccl")}


def compile_all(config: Any, axes: Mapping[str, int], folder: str) -> list[Step]:
    """The steps of an experiment, compiled; in a process of its own, since MindSpore reads its settings as it is imported."""
    os.environ |= {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": folder, "MS_DEV_DUMP_IR_PASSES": "validate"}
    os.environ["GLOG_v"] = "4"
    compile_only = importlib.import_module("moviegen.nn.compile_only")
    taken: list[Counter[int]] = []  # of the step at hand: how often each graph was called, for one layer and for two
    graphs: dict[int, ir.Graph] = {}

    def note(graph: ir.Graph) -> None:
        taken[-1][id(graph)] += 1
        graphs[id(graph)] = graph

    compile_only.start(Path(folder), note)
    cases = importlib.import_module("moviegen.training.graphs")
    found = []
    for of, (view, job) in _views(config).items():
        found += [case._replace(name=of + case.name) for case in cases.of_experiment(view, job, axes)]
    os.chdir(folder)  # where a graph does not compile, MindSpore leaves a file in the current folder
    steps = []
    for number, case in enumerate(found, 1):
        print(f"audit_ascend: step {number} of {len(found)}, {case.name}", flush=True)
        taken.clear()
        broken = ""
        try:
            for layers in range(1, min(case.layers, 2) + 1):
                taken.append(Counter())
                case.take(layers)
        except compile_only.Refused:
            pass  # the graph says why
        except ConfigError:
            raise
        except Exception as error:  # whatever a fault of a model leads to between its graphs
            broken = compile_only.told(error)
        one, last = taken[0], taken[-1]
        each = {
            key: one[key] + (case.layers - 1) * (n - one[key]) for key, n in last.items()
        }  # as the second, so the others
        steps.append(Step(case.name, [(graphs[key], n) for key, n in each.items()], broken))
    return steps


def _views(config: Any) -> dict[str, tuple[Any, str]]:
    """What the experiment trains: {beginning of the steps' names: (config, job)}, one for each of its stages that trains."""
    job = config.get("job")
    found = {"": (config, job)}
    if job in WITH_STAGES:
        stages = configs.stages(config).items()
        found = {f"{name}: ": (own.lock(), of) for name, (own, of) in stages if of in ("train", "train_tae")}
    for _, job in found.values():
        if job not in ("train", "train_tae"):
            raise ConfigError(
                f"audit_ascend: the experiment's job is {job!r}, expected one that trains: train or train_tae"
            )
    return found


def findings(steps: list[Step]) -> list[str]:
    """All that is wrong, each once."""
    found = []
    for step in steps:
        if step.broken:
            found.append(f"{step.name}: {step.broken}")
        for graph, _ in step.graphs:
            if graph.refused:
                found.append(f"{step.name}: {graph.name} does not compile: {graph.refused}")
            for node in graph.nodes:
                if wrong := ascend.complaint(node):
                    found.append(
                        f"{step.name}: {graph.name}: {node.op}{f' of {node.where}' if node.where else ''}: {wrong}"
                    )
    return list(dict.fromkeys(found))


def launched(graph: ir.Graph) -> list[tuple[ir.Node, str]]:
    """The nodes of a graph that are launched, with their kernels' kinds."""
    kinds = ((node, ascend.kernel(node.op)) for node in graph.nodes)
    return [(node, kind) for node, kind in kinds if kind in ascend.LAUNCHED]


def summary(step: Step) -> dict[str, Any]:
    """A step as JSON: every primitive of every graph with its dtypes, lines, FLOP and bytes."""
    return {
        "step": step.name,
        "graphs": [
            {
                "graph": graph.name,
                "calls": calls,
                "compile_seconds": round(graph.seconds, 2),
                "refused": graph.refused,
                "launches": [
                    dict(zip(("flop", "bytes"), ir.cost(node), strict=True))
                    | {"op": node.op, "kernel": kind, "dtypes": dtypes(node), "where": node.where}
                    for node, kind in launched(graph)
                ],
            }
            for graph, calls in step.graphs
        ],
    }


def dtypes(node: ir.Node) -> str:
    """What a node takes and gives, such as "bf16 f32 -> f32"."""
    taken = sorted({t.dtype for given in node.inputs for t in given})
    return f"{' '.join(taken)} -> {' '.join(sorted({t.dtype for t in node.outputs}))}"


def report(steps: list[Step], found: list[str], of: str) -> str:
    """The page: lines for the graphs of every step and for every primitive, and what is wrong.

    Graphs of one function differ in shapes; their line has the sum of one call of each, that of a step all its calls.
    """
    shown, rows, uses = set(), [], {}
    for step in steps:
        whole, lines = Counter(), {}
        for graph, calls in step.graphs:
            line = lines.setdefault(graph.name, Counter())
            own = Counter(kind for _, kind in launched(graph))
            for node, _ in launched(graph):
                own.update(dict(zip(("flop", "bytes"), ir.cost(node), strict=True)))
            whole.update({key: n * calls for key, n in own.items()})
            line.update(own | {"graphs": 1, "calls": calls, "seconds": graph.seconds})
            for node, kind in launched(graph) if id(graph) not in shown else ():
                counts, places = uses.setdefault((ascend.KINDS.index(kind), node.op), (Counter(), Counter()))
                counts[dtypes(node)] += 1
                places[node.where or "sums of gradients"] += 1
            shown.add(id(graph))
        for name, line in lines.items():
            counted = [f"{line['graphs']}", f"{line['calls']}"]
            rows.append([step.name, name, *counted, *_numbers(line), f"{line['seconds']:.1f}"])
        rows.append([step.name, "**all calls**", "", "", *_numbers(whole), ""])
    primitives = [
        [op, ascend.KINDS[kind], f"{counts.total()}", "; ".join(counts), _some(places)]
        for (kind, op), (counts, places) in sorted(uses.items())
    ]
    heads = ["step", "function", "graphs", "calls", "aclnn", "aclop", "hccl", "none", "TFLOP", "GB", "compiled in s"]
    verdict = ["Wrong on Ascend:", "", *(f"- {text}" for text in found)]
    return "\n".join(
        [
            f"# Graphs of {of}",
            "",
            *table(heads, rows),
            "",
            *table(["primitive", "kernel", "nodes", "dtypes", "where"], primitives),
            "",
            *(verdict if found else ["Nothing is wrong on Ascend, as far as graphs and the registry tell."]),
            "",
        ]
    )


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table in Markdown, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    return [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in lines]


def _numbers(of: Mapping[str, float]) -> list[str]:
    counts = [of.get("aclnn", 0), of.get("aclop", 0), of.get("hccl", 0)]
    counts.append(sum(of.get(kind, 0) for kind in ascend.LAUNCHED[3:]))
    return [*(f"{n}" for n in counts), f"{of['flop'] / 1e12:.3g}", f"{of['bytes'] / 1e9:.3g}"]


def _some(lines: Counter) -> str:
    named = [line for line, _ in lines.most_common(3)]
    return ", ".join(named) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
