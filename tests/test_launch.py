import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl.testing import flagsaver

import launch
from moviegen import sweep
from moviegen.errors import ConfigError
from moviegen.parallel import launcher
from moviegen.storage.writers import read_metrics

ROOT = Path(launch.__file__).parent
WORKERS = ("worker_0.log", "worker_1.log")
EXPERIMENT = """
from ml_collections import ConfigDict
def get_config(tiny=False):
    train = {"rank_timeout": 60.0}
    return ConfigDict({"job": "fake", "rate": 0.5, "steps": 3, "fail": "", "stages": ("one", "two"), "train": train})
"""
# Python imports this by itself at its start: every process gets a job "fake", and a MindSpore that cannot be imported.
SITE = """
import ctypes, os, signal, sys, time, types
import moviegen.parallel.mesh as meshes
import moviegen.runner as runner
import moviegen.parallel.signals as signals
from moviegen.errors import DataError, Found

signals.GRACE = 0.5

def run(given):
    config = given.config
    print("running", given.stage, flush=True)
    if config.fail == "data":
        raise DataError("clips.csv:3: a.mp4 is not a video")
    if config.fail == "found":
        raise Found("audit: 2 faults")
    if config.fail == "print":
        print("ü")
    if config.fail == "native":  # as a compiler, which lets no handler of Python's run
        ctypes.CDLL(None).sleep(60)
    if config.fail == "wrapped":  # as a native module whose import is interrupted
        try:
            time.sleep(60)
        except BaseException as error:
            raise ImportError("initialization failed") from error
    if config.fail in ("sleep", "tidy"):
        try:
            time.sleep(60)
        finally:
            time.sleep(1 if config.fail == "tidy" else 0)
            print("tidied up", flush=True)
    if config.fail == "write":
        writer = given.open_writer("fake")
        for step in range(200):
            writer.write_scalars(step, {"loss": step})
        writer.close()
    return {"loss": config.rate * 2}

def setup(axes, opened):
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        os._exit(0)
    return meshes.ONE

runner.jobs = lambda: ["fake"]
runner.WITH_STAGES = ("fake",)
module = types.ModuleType("moviegen.jobs.fake")
module.run = run
sys.modules["moviegen.jobs.fake"] = module
if "WITHOUT_MINDSPORE" in os.environ:
    sys.modules["mindspore"] = None
    meshes.setup = setup
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "e.py").write_text(EXPERIMENT)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("WITHOUT_MINDSPORE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*args, **more):
    command = [sys.executable, str(ROOT / "launch.py"), *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", **more
    )


def start_ranks(fail):
    """Starts two ranks in `w`; returns the launcher and the numbers of their processes, once both work."""
    process, ranks = start("--config=e.py", f"--config.fail={fail}", "--workdir=w", "--workers=2"), Path("w/ranks")
    while not all(log.is_file() and "running" in log.read_text() for log in map(ranks.joinpath, WORKERS)):
        assert process.poll() is None
        time.sleep(0.05)
    return process, [int((ranks / f"alive_{rank}").read_text().split()[1]) for rank in (0, 1)]


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["--config"]),
        (["--config=no.py"], ["no.py does not exist"]),
        (["--config=e.py:large"], ["no argument 'large'", "tiny"]),
        (["--config=e.py", "--config.rat=3"], ["config.rat does not exist", "'rate'"]),
        (["--config=e.py", "--config.rate", "fast"], ["config.rate is 'fast'", "a number"]),
        (["--config=e.py", "--config.steps"], ["--config.steps has no value"]),
        (["--config=e.py", "--job=dance"], ["job 'dance' does not exist"]),
        (["--config=e.py", "--job=sweep"], ["job 'sweep' does not exist"]),
        (["--config=e.py", "--workdir", "--job=fake"], ["--workdir has no value: write --workdir=VALUE"]),
        (["--config=e.py", "--jobs=train"], ["jobs", "--help"]),
        (["--config=e.py", "--workers=0"], ["workers"]),
        (["--config=e.py", "train"], ["'train' is no flag"]),
        (["--config=e.py", "--sweep=no.py"], ["sweep file no.py does not exist"]),
    ],
)
def test_a_wrong_flag_is_one_clear_line(here, args, words, monkeypatch):
    monkeypatch.setattr(launch.runner, "jobs", lambda: ["fake"])
    with flagsaver.flagsaver(), pytest.raises(ConfigError) as error:
        launch.main(["launch.py", *args])
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_exit_code_2_without_traceback(here):
    for args in (["--config.rate=fast"], ["--mesh=data=2"], ["--stage=three"], ["--config.fail=data"]):
        code, _, err = finish(start("--config=e.py", *args))
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err


def test_faults_that_a_job_looked_for_are_exit_code_1_without_traceback(here):
    assert finish(start("--config=e.py", "--config.fail=found"))[::2] == (1, "audit: 2 faults\n")


def test_run_and_continue(here):
    code, out, err = finish(start("--config=e.py", "--config.rate=4", "--stage=two", "--workdir=w"))
    assert code == 0, err
    assert out == "running two\n"
    assert json.loads((here / "w/result.json").read_text())["metrics"] == {"loss": 8.0}
    assert json.loads((here / "w/config.json").read_text())["rate"] == 4.0
    _, out, _ = finish(start("--config=e.py", "--workdir=w"))
    assert "config changed since the last run in w: rate: 4.0 -> 0.5" in out


def test_help_names_flags_and_jobs(here):
    code, out, _ = finish(start("--help"))
    assert code == 0
    assert all(word in out for word in ("--config", "--stage", "--mesh", "--workers", "--sweep", "show", "jobs: fake"))


def test_a_key_that_a_stage_hides_is_refused_where_stages_run():
    hidden = ["launch.py", f"--config={ROOT}/experiments/tiny.py", "--config.ema.decay=0.5"]
    with flagsaver.flagsaver(), pytest.raises(ConfigError, match="set config.stages.tae.ema.decay .it is 0.97. too"):
        launch.main(hidden)
    with flagsaver.flagsaver(), pytest.raises(ConfigError, match=r"sample.prompts is \(\)"):  # and no word of stages
        launch.main([*hidden, "--job=sample"])


def test_show_prints_the_settings_and_runs_nothing(here):
    code, out, _ = finish(start("--config=e.py", "--config.rate=0", "--show"))
    assert code == 0 and "rate = 0.0" in out and "running" not in out and not (here / "runs").exists()
    assert "train.rank_timeout = 60.0" in out and "a number above 0" in out


def test_help_and_show_are_instant(here):
    for args in (["--help"], [f"--config={ROOT}/experiments/tiny.py", "--show"]):
        begun = time.monotonic()
        assert finish(start(*args))[0] == 0
        assert time.monotonic() - begun < 3  # 0.2 s on a machine with nothing else to do


def test_sweep_from_the_command_line(here):
    (here / "s.py").write_text(
        "def sweep():\n    return [{'rate': 1.0}, {'rate': 2.0, 'fail': 'data'}, {'rate': 3.0}]\n"
    )
    code, out, err = finish(start("--config=e.py", "--config.steps=5", "--sweep=s.py", "--stage=one"))
    assert code == 1
    rows = json.loads((here / "runs/e-s/summary.json").read_text())
    assert [row["status"] for row in rows] == ["done", "failed (2)", "done"]
    assert [row["metrics"].get("loss") for row in rows] == [2.0, None, 6.0]
    assert json.loads((here / "runs/e-s/rate=1.0/config.json").read_text())["steps"] == 5
    assert "error: clips.csv:3" in err and "all numbers: runs/e-s/summary.json" in out


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("fail", ["sleep", "tidy", "native", "wrapped"])
def test_a_signal_says_how_to_continue(here, signum, code, fail):
    process = start("--config=e.py", f"--config.fail={fail}", "--workdir=w")
    assert process.stdout.readline() == "running None\n"
    for _ in range(2 if fail in ("tidy", "native") else 1):
        process.send_signal(signum)
        time.sleep(0.2)
    found, _, err = finish(process)
    assert found == code and "Traceback" not in err
    if fail != "native":  # that one ends in the middle of it
        line = f"stopped by {signum.name}: to go on, run python {ROOT}/launch.py --config=e.py --config.fail={fail} --workdir=w"
        assert err.strip() == line
    code, out, _ = finish(start("--config=e.py", "--workdir=w"))
    assert code == 0 and f'fail: "{fail}" -> ""' in out  # no lock was left


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_python_still_imports(here, signum, code):
    (here / "site/sitecustomize.py").write_text(
        "import os, sys\nclass Finder:\n"
        f"    def find_spec(self, name, *_):\n        name == 'absl' and os.kill(os.getpid(), {signum:d})\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    assert finish(start("--config=e.py")) == (code, "", "")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("twice", [False, True, "each process"])
def test_ranks_get_the_signal_and_time_to_stop(here, signum, code, twice):
    process, ranks = start_ranks("tidy")
    refused, _, said = finish(start("--config=e.py", "--workdir=w", "--workers=2"))
    assert refused == 2 and f"w belongs to another run (lock): process {process.pid} on " in said
    if twice == "each process":  # as Slurm does
        twice = False
        for pid in ranks:
            os.kill(pid, signum)
    for _ in range(1 + twice):
        process.send_signal(signum)
        time.sleep(0.3)
    found, _, err = finish(process)
    assert found == code and f"stopped by {signum.name}: to go on, run python {ROOT}/launch.py" in err
    assert "Traceback" not in err
    logs = [(here / "w/ranks" / log).read_text() for log in WORKERS]
    assert ["tidied up" in log for log in logs] == [not twice, not twice], logs
    assert (here / "w/lock").read_text() == ""


def test_ranks_keep_the_lock_of_a_launcher_that_is_killed(here):
    process, ranks = start_ranks("sleep")
    process.kill()
    process.communicate()
    code, _, err = finish(start("--config=e.py", "--workdir=w"))
    assert code == 2 and "belongs to another run" in err
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    for _ in range(100):
        if finish(start("--config=e.py", "--workdir=w"))[0] == 0:
            return
    raise AssertionError("the lock outlived the ranks")


def make_dangling(path):
    path.symlink_to("nowhere/at/all")


@pytest.mark.parametrize(
    ("workdir", "make", "why"),
    [
        ("w", Path.touch, "w: is there and is no folder"),
        ("w/run", lambda path: path.parent.touch(), "Not a directory"),
        ("w", make_dangling, "w: is there and is no folder"),
        ("w" * 256, lambda path: None, "File name too long"),
        ("/proc/run", lambda path: None, "/proc/run: "),
    ],
)
def test_a_folder_that_cannot_be_is_one_line(here, monkeypatch, capsys, workdir, make, why):
    make(here / workdir)
    for workers in ("--workers=1", "--workers=2"):
        monkeypatch.setattr(sys, "argv", ["launch.py", "--config=e.py", f"--workdir={workdir}", workers])
        monkeypatch.setattr(launch.runner, "jobs", lambda: ["fake"])
        with flagsaver.flagsaver():
            assert launch._ended() == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and why in err, err


def test_an_error_of_a_connection_keeps_its_traceback(here, monkeypatch, capsys):
    monkeypatch.setattr(launch, "main", lambda argv: exec("raise ConnectionResetError(104, 'reset')"))
    assert launch._ended() == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "file"), [(10, "w/"), (2000, "w/metrics.jsonl"), (300, "w/")])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(here, limit, file):
    args = ("--config=e.py", "--config.fail=write", "--workdir=w")

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    code, _, err = finish(start(*args, preexec_fn=fill))
    assert code == 2 and err.startswith("error: w/") and file in err and err.count("\n") == 1, err
    assert "File too large" in err and not list((here / "w").glob("*.tmp"))
    code, _, err = finish(start(*args))
    assert code == 0, err
    assert [line["step"] for line in read_metrics(here / "w")][-200:] == list(range(200))


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "latin-1"}],
)
def test_files_and_console_are_utf8_whatever_the_locale(here, monkeypatch, locale):
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    code, out, err = finish(start("--config=e.py", "--config.fail=print", "--workdir=ü"))
    assert code == 0, err
    assert "ü\n" in out and (here / "ü/config.json").is_file()


def test_workers_start_this_script_again_without_workers(here, monkeypatch):
    seen = {}
    monkeypatch.setattr(launch.runner, "jobs", lambda: ["fake"])
    monkeypatch.setattr(launch.runner, "WITH_STAGES", ("fake",))
    monkeypatch.setattr(launcher, "run", lambda *args: seen.update(args=args) or 5)
    with flagsaver.flagsaver():
        assert launch.main(["launch.py", "--config=e.py", "--workers=2", "--config.rate=1", "--stage=one"]) == 5
    command, ranks, workdir, *_ = seen["args"]
    assert command == [str(ROOT / "launch.py"), "--config=e.py", "--config.rate=1", "--stage=one"]
    assert ranks == 2 and workdir == Path("runs/e")


def test_a_sweep_gives_its_runs_their_workers(here, monkeypatch):
    seen = {}
    monkeypatch.setattr(launch.runner, "jobs", lambda: ["fake"])
    monkeypatch.setattr(launch.runner, "WITH_STAGES", ("fake",))
    monkeypatch.setattr(sweep, "run", lambda *args: seen.update(args=args) or 0)
    with flagsaver.flagsaver():
        launch.main(["launch.py", "--config=e.py", "--workers=2", "--stage=one", "--sweep=s.py", "--workdir=w"])
    file, _, workdir, command = seen["args"]
    assert (file, workdir) == ("s.py", "w") and command[1:] == ["--config=e.py", "--stage=one", "--workers=2"]


@pytest.mark.slow
def test_two_ranks(here, monkeypatch):
    monkeypatch.delenv("WITHOUT_MINDSPORE")
    code, out, err = finish(start("--config=e.py", "--workers=2", "--workdir=w"))
    assert code == 0, err
    assert "running None" in out and "MindSpore" not in out
    assert json.loads((here / "w/result.json").read_text())["metrics"] == {"loss": 1.0}
    assert (here / "w/ranks/worker_1.log").read_text().count("running None") == 1


@pytest.mark.slow
def test_a_failing_rank_gives_its_exit_code(here, monkeypatch):
    monkeypatch.delenv("WITHOUT_MINDSPORE")
    code, _, err = finish(start("--config=e.py", "--workers=2", "--workdir=w", "--config.fail=data"))
    assert code == 2
    assert "error: clips.csv:3: a.mp4 is not a video" in err
