import json

import pytest
from ml_collections import ConfigDict

from moviegen import runner, sweep
from moviegen.errors import ConfigError

# Stands in for launch.py: writes what a run leaves behind, counts itself, fails for one learning rate.
CHILD = """
import json, pathlib, sys
from ml_collections import ConfigDict
from moviegen import config as configs
from moviegen.storage import files
_, overrides = configs.split_overrides(sys.argv)
workdir = pathlib.Path(sys.argv[-1].partition("=")[2])
base = ConfigDict({"job": "fake", "name": "exp", "seed": 1, "optim": {"learning_rate": 0.1}})
config = configs.apply_overrides(base, overrides)
files.write_json(configs.to_plain(config), workdir / "config.json")
with open(workdir / "calls", "a") as f:
    f.write("x")
if config.optim.learning_rate == 0.3 and not (workdir / "mended").exists():
    sys.exit(7)
result = {"job": "fake", "stage": None, "seconds": 1.5, "metrics": {"loss": config.optim.learning_rate * 2}}
files.write_json(result, workdir / "result.json")
"""


@pytest.fixture
def plan():
    config = ConfigDict({"job": "fake", "name": "exp", "seed": 1, "optim": {"learning_rate": 0.1}}).lock()
    return runner.Plan(config, "fake", "unused", {"data": 1, "zero": 1, "sp": 1}, None)


@pytest.fixture
def go(tmp_path, plan, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(runner.JOBS.parent.parent))
    (tmp_path / "child.py").write_text(CHILD)

    def go(rates):
        (tmp_path / "s.py").write_text(f"def sweep():\n    return [{{'optim.learning_rate': r}} for r in {rates}]\n")
        return sweep.run(str(tmp_path / "s.py"), plan, str(tmp_path / "out"), [str(tmp_path / "child.py")])

    return go


def test_sweep_runs_reports_and_resumes(go, tmp_path, capsys):
    out = tmp_path / "out"
    assert go([0.2, 0.3, 0.4]) == 1
    rows = json.loads((out / "summary.json").read_text())
    assert [row["status"] for row in rows] == ["done", "failed (7)", "done"]
    assert [row["metrics"] for row in rows] == [{"loss": 0.4}, {}, {"loss": 0.8}]
    table, failed = capsys.readouterr()
    assert "optim.learning_rate" in table and "0.8" in table and "1 of 3 failed: optim.learning_rate=0.3" in failed

    (out / "optim.learning_rate=0.3/mended").touch()
    assert go([0.2, 0.3, 0.4, 0.5]) == 0
    rows = json.loads((out / "summary.json").read_text())
    assert [row["status"] for row in rows] == ["done before", "done", "done before", "done"]
    assert rows[0]["metrics"] == {"loss": 0.4}
    assert [(out / row["name"] / "calls").read_text() for row in rows] == ["x", "xx", "x", "x"]


def test_a_run_of_another_config_is_not_finished(go, plan, tmp_path):
    assert go([0.2]) == 0
    config = json.loads((tmp_path / "out/optim.learning_rate=0.2/config.json").read_text())
    where = tmp_path / "out/optim.learning_rate=0.2"
    assert sweep._result(where, config, plan) and not sweep._result(where, config | {"seed": 2}, plan)
    assert not sweep._result(where, config, plan._replace(job="sample"))


def test_a_point_that_a_stage_hides_starts_nothing(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(runner, "WITH_STAGES", ("fake",))
    config = ConfigDict({"seed": 1, "stages": {"one": {"seed": 2}}}).lock()
    (tmp_path / "s.py").write_text("def sweep():\n    return [{'seed': 5}]\n")
    with pytest.raises(ConfigError, match="seed=5: config.seed does not reach .* config.stages.one.seed"):
        sweep.run(str(tmp_path / "s.py"), plan._replace(config=config), str(tmp_path / "out"), ["missing.py"])


def test_what_another_job_left_in_a_runs_folder_changes_nothing_and_a_damaged_result_is_none(go, tmp_path):
    where = tmp_path / "out/optim.learning_rate=0.2"
    assert go([0.2]) == 0
    for name in ("config", "result"):
        (where / f"sample.{name}.json").write_text('{"job": "sample", "seed": 9}')
    assert go([0.2]) == 0 and (where / "calls").read_text() == "x"
    (where / "result.json").write_bytes(bytes(40))
    assert go([0.2]) == 0 and (where / "calls").read_text() == "xx"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def sweep():\n    return [{'optim.lr': 1}]\n", "config.optim.lr does not exist"),
        ("def sweep():\n    return [{'seed': 1}, {'seed': 'x'}]\n", "seed=x: config.seed is 'x'"),
        ("def sweep():\n    return [{'seed': 1}, {'seed': -1}]\n", "seed=-1: seed is -1, expected a whole number"),
        ("def sweep():\n    return {'seed': 1}\n", "must return a list"),
        ("def sweep():\n    return [{1: 2}]\n", "must return a list"),
        ("def sweep():\n    return [{'seed': 1}, {'seed': 1}]\n", "twice"),
        ("x = 1\n", r"no function sweep\(\)"),
    ],
)
def test_a_wrong_sweep_starts_nothing(tmp_path, plan, source, words):
    (tmp_path / "s.py").write_text(source)
    with pytest.raises(ConfigError, match=words):
        sweep.run(str(tmp_path / "s.py"), plan, str(tmp_path / "out"), ["missing.py"])
    assert not (tmp_path / "out").exists()


def test_missing_sweep_file(plan):
    with pytest.raises(ConfigError, match="sweep file no.py does not exist"):
        sweep.run("no.py", plan, None, [])
