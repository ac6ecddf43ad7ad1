import functools
import importlib
import inspect
import json
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
from ml_collections import ConfigDict

import moviegen
from moviegen import config as configs, runner
from moviegen.errors import ConfigError
from moviegen.storage.writers import read_metrics


@pytest.fixture
def config():
    return ConfigDict({"job": "fake", "name": "exp", "seed": 1, "optim": {"learning_rate": 0.5}, "stages": ("a", "b")})


@pytest.fixture
def calls(monkeypatch):
    """A job named fake that notes what it was called with."""
    calls = []

    def run(given):
        calls.append((given.config, given.workdir, given.stage))
        return {"loss": given.config.optim.learning_rate / 2}

    module = types.ModuleType("moviegen.jobs.fake")
    module.run = run
    monkeypatch.setitem(sys.modules, "moviegen.jobs.fake", module)
    monkeypatch.setattr(runner, "jobs", lambda: ["fake", "sample"])
    monkeypatch.setattr(runner, "WITH_STAGES", ("fake",))
    return calls


def test_run_returns_metrics_and_notes_config_and_result(config, calls, tmp_path):
    assert moviegen.run(config, workdir=tmp_path / "run", stage="b") == {"loss": 0.25}
    (given, workdir, stage), *_ = calls
    assert given.is_locked and not config.is_locked and workdir == tmp_path / "run" and stage == "b"
    assert json.loads((tmp_path / "run/config.json").read_text())["optim"] == {"learning_rate": 0.5}
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["job"], result["stage"], result["metrics"]) == ("fake", "b", {"loss": 0.25})


def test_a_writer_that_is_handed_in_gets_config_and_numbers(config, calls, tmp_path):
    def run(given):
        writer = given.open_writer("fake")
        writer.write_scalars(3, {"fake/loss": 0.5})
        writer.close()
        return {}

    sys.modules["moviegen.jobs.fake"].run = run
    other = mock.Mock()
    moviegen.run(config, workdir=tmp_path, writer=other)
    hparams = {"job": "fake", "name": "exp", "seed": 1, "optim.learning_rate": 0.5, "stages": ("a", "b")}
    assert other.mock_calls == [
        mock.call.write_hparams(hparams),
        mock.call.write_scalars(3, {"fake/loss": 0.5}),
        mock.call.flush(),
    ]
    assert [line["fake/loss"] for line in read_metrics(tmp_path)] == [0.5]


def test_a_sweep_is_a_loop(config, calls, tmp_path):
    losses = []
    for rate in (0.5, 1.0):
        config.optim.learning_rate = rate
        losses.append(moviegen.run(config, workdir=tmp_path / str(rate))["loss"])
    assert losses == [0.25, 0.5]


def test_run_from_a_file_with_the_default_workdir(calls, tmp_path, monkeypatch):
    (tmp_path / "e.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(rate=1.0):\n    return ConfigDict({'job': 'fake', 'optim': {'learning_rate': rate}})\n"
    )
    monkeypatch.chdir(tmp_path)
    assert moviegen.run("e.py:rate=4") == {"loss": 2.0}
    assert (tmp_path / "runs/e-rate=4/config.json").is_file()


def test_resume_says_what_changed(config, calls, tmp_path, capsys):
    moviegen.run(config, workdir=tmp_path)
    moviegen.run(config, workdir=tmp_path)
    assert capsys.readouterr().out == ""
    config.optim.learning_rate = 0.25
    moviegen.run(config, workdir=tmp_path)
    assert "optim.learning_rate: 0.5 -> 0.25" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["learning_rate"] == 0.25


def test_a_failed_run_leaves_no_result(config, calls, tmp_path):
    moviegen.run(config, workdir=tmp_path)
    sys.modules["moviegen.jobs.fake"].run = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        moviegen.run(config, workdir=tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_each_job_has_a_record_of_its_own(config, calls, tmp_path, monkeypatch):
    moviegen.run(config, workdir=tmp_path)
    kept = {name: (tmp_path / name).read_text() for name in ("config.json", "result.json")}
    monkeypatch.setattr(runner, "jobs", lambda: ["fake", "other"])
    monkeypatch.setitem(sys.modules, "moviegen.jobs.other", sys.modules["moviegen.jobs.fake"])
    config.optim.learning_rate = 3.0
    assert moviegen.run(config, job="other", workdir=tmp_path) == {"loss": 1.5}
    assert {name: (tmp_path / name).read_text() for name in kept} == kept
    assert json.loads((tmp_path / "other.config.json").read_text())["optim"]["learning_rate"] == 3.0
    result = json.loads((tmp_path / "other.result.json").read_text())
    assert (result["job"], result["metrics"]) == ("other", {"loss": 1.5})


def test_a_finished_run_that_is_repeated_keeps_its_result(config, calls, tmp_path, capsys):
    moviegen.run(config, workdir=tmp_path)
    kept = (tmp_path / "result.json").read_text()
    fake = sys.modules["moviegen.jobs.fake"]
    fake.run = lambda given: 1 / 0
    with pytest.raises(ZeroDivisionError):  # ended before it could see that nothing is left to do
        moviegen.run(config, workdir=tmp_path)
    fake.run = lambda given: {}
    assert moviegen.run(config, workdir=tmp_path) == {"loss": 0.25}
    assert (tmp_path / "result.json").read_text() == kept
    assert f"fake: was finished before, its result is in {tmp_path}/result.json" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "lock", "result.json"]


@pytest.mark.parametrize("content", [bytes(40), b"[1]", b"[" * 200_000, b"\xff"])
def test_a_damaged_config_of_before_is_told_and_written_anew(config, calls, tmp_path, capsys, content):
    (tmp_path / "config.json").write_bytes(content)
    assert moviegen.run(config, workdir=tmp_path) == {"loss": 0.25}
    assert f"{tmp_path}/config.json is damaged" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_a_workdir_has_one_run_of_a_job_at_a_time(config, calls, tmp_path, monkeypatch):
    fake = sys.modules["moviegen.jobs.fake"]
    monkeypatch.setattr(runner, "jobs", lambda: ["fake", "other"])
    monkeypatch.setitem(sys.modules, "moviegen.jobs.other", types.SimpleNamespace(run=fake.run))

    def run(given):
        with pytest.raises(ConfigError, match="belongs to another run"):
            moviegen.run(config, workdir=tmp_path)
        assert moviegen.run(config, job="other", workdir=tmp_path) == {"loss": 0.25}  # beside it
        return {}

    fake.run = run
    moviegen.run(config, workdir=tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"job": "fak"}, "job 'fak' does not exist.*'fake'.*fake, sample"),
        ({"stage": "c"}, "stage 'c' does not exist.*stages: a, b"),
        ({"stage": "a", "job": "sample"}, "stage 'a': job 'sample' has no stages.*fake.*leave --stage out"),
        ({"mesh": "data=3"}, "3 ranks"),
    ],
)
def test_wrong_settings_leave_no_trace(config, calls, tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        moviegen.run(config, workdir=tmp_path / "run", **settings)
    assert calls == [] and not (tmp_path / "run").exists()


def test_a_stage_of_an_experiment_without_stages_is_refused(config, calls, tmp_path):
    del config["stages"]
    with pytest.raises(ConfigError, match="stage 'a' does not exist; this experiment has no stages: leave --stage out"):
        moviegen.run(config, workdir=tmp_path, stage="a")


def test_the_job_with_stages_is_there():
    assert set(runner.WITH_STAGES) <= set(runner.jobs())


def test_no_workdir_without_a_name(config, calls):
    del config["name"]
    with pytest.raises(ConfigError, match="no workdir"):
        moviegen.run(config)


def test_a_second_rank_notes_nothing(config, calls, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.meshes, "setup", lambda axes, opened: runner.ONE)
    monkeypatch.setattr(runner.lock, "joined", lambda path: None)
    for name in ("MS_NODE_TIMEOUT", "HCCL_EXEC_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    config.train = ConfigDict({"rank_timeout": 60.0})
    for name, value in {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_NODE_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    moviegen.run(config, workdir=tmp_path / "run", mesh="data=2")
    assert len(calls) == 1 and not list((tmp_path / "run").glob("*.json"))


def test_jobs_are_the_files_of_the_folder(tmp_path, monkeypatch):
    for name in ("train.py", "sample.py", "_shared.py", "__init__.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr(runner, "JOBS", tmp_path)
    assert runner.jobs() == ["sample", "train"]


@pytest.mark.parametrize("job", runner.jobs())
def test_every_job_is_a_function_of_a_run(job):
    function = importlib.import_module(f"moviegen.jobs.{job}").run
    assert list(inspect.signature(function).parameters) == ["run"] and function.__doc__


def test_a_job_of_any_mesh_is_given_one_of_ranks_that_do_not_exist(calls, tmp_path, monkeypatch):
    meshes = []
    monkeypatch.setattr(runner, "ANY_MESH", ("fake",))
    monkeypatch.setattr(runner, "WITH_STAGES", ())
    monkeypatch.setattr(runner.meshes, "setup", lambda axes, opened: pytest.fail("no rank is joined"))
    monkeypatch.setattr(sys.modules["moviegen.jobs.fake"], "run", lambda run: meshes.append(run.mesh) or {})
    run = functools.partial(runner.run, "experiments/1b_stage2.py", "fake", tmp_path)
    run(mesh="zero=2,sp=4")
    assert [(m.data, m.zero, m.sp, m.world.size) for m in meshes] == [(1, 2, 4, 1)]
    with pytest.raises(ConfigError, match="model.num_heads = 16"):  # its training's rules hold
        run(mesh="sp=3")


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    from moviegen.models.costs import cards

    small = cards.Card("CPU", {}, 1e6, 1e6)
    monkeypatch.setattr(cards, "cpu", lambda: small)
    monkeypatch.setitem(sys.modules, "moviegen.jobs.train", mock.Mock(run=lambda run: {"loss": 1.0}))
    config = configs.load("experiments/1b_stage1.py:tiny")
    with pytest.raises(ConfigError, match=r"this run cannot fit: it needs .* of this machine.*plan\.check=false"):
        moviegen.run(config, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    insisting = configs.apply_overrides(config, {"plan.check": False})
    assert moviegen.run(insisting, workdir=tmp_path / "run") == {"loss": 1.0}


def test_a_launch_says_what_it_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "moviegen.jobs.train", mock.Mock(run=lambda run: {"loss": 1.0}))
    moviegen.run("experiments/1b_stage1.py:tiny", workdir=tmp_path)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["plan:"] * 3


EXPERIMENTS = sorted(Path(runner.__file__).parents[1].glob("experiments/*_*.py"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_is_forecast(file, tmp_path):
    config = configs.apply_overrides(configs.load(str(file)), {"plan.card": "910C", "plan.check": False})
    for job in dict.fromkeys((config.job, "sample" if "sample" in config else config.job)):
        plan = runner.prepare(config, job, tmp_path, None, None, 1)
        of = [job for _, job in configs.stages(config).values()] if job == "train_stages" else [job]
        assert len(runner.forecast(plan)) == 3 * len([job for job in of if job in ("train", "train_tae", "sample")])


def test_a_stage_that_cannot_fit_is_named_before_the_first_begins(tmp_path, monkeypatch):
    from moviegen.models.costs import plan as plans, summary

    monkeypatch.setattr(plans, "fits", lambda plan: plan.job != "sample")
    monkeypatch.setattr(summary, "refusal", lambda plan: "this run cannot fit")
    with pytest.raises(ConfigError, match="^sample: this run cannot fit$"):
        runner.forecast(runner.prepare("experiments/tiny_stages.py", None, tmp_path, None, None, 1))


def test_an_unnamed_card_is_noted(tmp_path, monkeypatch):
    from moviegen.models.costs import cards

    (tmp_path / "davinci0").touch()
    monkeypatch.setattr(cards, "DEVICES", tmp_path)
    plan = runner.prepare("experiments/1b_stage1.py:tiny", None, tmp_path, None, None, 1)
    assert runner.forecast(plan)[3:] == ["note: plan.card does not say which card this is: 910B2"]
