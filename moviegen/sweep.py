"""A sweep: one experiment run once for each of a list of overrides, every run a process and a folder of its own."""

import contextlib
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from moviegen import config as configs, runner
from moviegen.errors import ConfigError
from moviegen.runner import Plan
from moviegen.storage import files

TABLE_METRICS = 6


def run(file: str, plan: Plan, workdir: str | None, command: list[str]) -> int:
    """Runs `python *command` with each override of the sweep file, then prints a table and writes summary.json.

    The file is Python with a function `sweep()` that returns a list of `{"optim.learning_rate": 3e-4, ...}`. A run that
    is finished with the very same config is skipped, a failing one is reported and the rest go on. Returns the exit
    code: 0 if every run finished, 1 if any failed, 130 if interrupted. Raises ConfigError before the first run.
    """
    folder = Path(workdir or f"runs/{plan.config.name}-{Path(file).stem}")
    runs = _runs(file)
    wanted = {name: _checked(plan, overrides, name) for name, overrides in runs.items()}
    rows = []
    for i, (name, overrides) in enumerate(runs.items(), 1):
        where = folder / name
        result = _result(where, wanted[name], plan)
        row = {"name": name, "overrides": overrides, "status": "done before"}
        if result is None:
            print(f"[{i}/{len(runs)}] {name}", flush=True)
            start = time.time()
            values = [f"--config.{key}={value}" for key, value in overrides.items()]
            code = _call([sys.executable, *command, *values, f"--workdir={where}"])
            if code == 130:
                print(f"interrupted: the same command again continues the sweep in {folder}", file=sys.stderr)
                return 130
            result = _result(where, wanted[name], plan) or {"seconds": round(time.time() - start, 1), "metrics": {}}
            row["status"] = f"failed ({code})" if code else "done"
        rows.append({**row, "seconds": result["seconds"], "metrics": result["metrics"]})
        files.write_json(rows, folder / "summary.json")
    print(f"\n{table(rows)}\nall numbers: {folder / 'summary.json'}")
    failed = [row["name"] for row in rows if row["status"].startswith("failed")]
    if failed:
        print(f"{len(failed)} of {len(rows)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _checked(plan: Plan, overrides: dict[str, Any], name: str) -> dict:
    """Returns the plain config of a run. Raises ConfigError that names the run where its settings are wrong."""
    try:
        config = configs.apply_overrides(plan.config, overrides)
        if plan.job in runner.WITH_STAGES:
            configs.refuse_hidden(config, overrides)
        runner.check(config, plan.job, plan.axes, math.prod(plan.axes.values()))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return configs.to_plain(config)


def _call(command: list[str]) -> int:
    """Runs a process and returns its exit code; when this one is interrupted, it is given time to tidy up."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:  # a terminal sends it to the child as well
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        return 130
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _runs(file: str) -> dict[str, dict[str, Any]]:
    """Returns {folder name: overrides}."""
    overrides = configs.call_in_file(Path(file), "sweep", lambda fn: fn(), "sweep file")
    if (
        not isinstance(overrides, list)
        or not overrides
        or not all(isinstance(o, dict) and all(isinstance(key, str) for key in o) for o in overrides)
    ):
        raise ConfigError(f"{file}: sweep() must return a list of {{key: value}}, one for each run")
    runs = {}
    for override in overrides:
        name = re.sub(r"[^\w.=,+-]+", "-", ",".join(f"{k}={v}" for k, v in override.items()))[:150] or "base"
        if name in runs:
            raise ConfigError(f"{file}: sweep() holds {name!r} twice")
        runs[name] = override
    return runs


def _result(where: Path, config: dict, plan: Plan) -> dict | None:
    """Returns the result of a run that is finished with this config, job and stage, else None."""
    there = plan._replace(workdir=where)
    result, noted = (files.noted(there.record(name)) for name in ("result.json", "config.json"))
    same = result is not None and (noted, result.get("job"), result.get("stage")) == (config, plan.job, plan.stage)
    return result if same else None


def table(rows: list[dict]) -> str:
    """Returns a table with a line for each run: overrides, status, seconds and the first few metrics."""
    keys = list(dict.fromkeys(k for row in rows for k in row["overrides"]))
    metrics = list(dict.fromkeys(m for row in rows for m in row["metrics"]))[:TABLE_METRICS]
    lines = [[*keys, "status", "seconds", *metrics]]
    for row in rows:
        numbers = [f"{row['metrics'][m]:.4g}" if m in row["metrics"] else "" for m in metrics]
        values = [str(row["overrides"].get(k, "")) for k in keys]
        lines.append([*values, row["status"], f"{row['seconds']:.0f}", *numbers])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
