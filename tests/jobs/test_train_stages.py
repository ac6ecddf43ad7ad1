"""The order of stages, what each begins with, and what a second run of the same command does; the trainings are stand-ins."""

import json
import shutil

import numpy as np
import pytest

import moviegen
from experiments import tiny_stages
from moviegen import config as configs
from moviegen.errors import ConfigError, Stopped
from moviegen.jobs import sample, train
from moviegen.storage import checkpoint
from tests.experiments.test_files import ROOT

FILE = f"{ROOT}/tiny_stages.py"


@pytest.fixture
def stood_in(monkeypatch):
    """Trainings that leave weights and numbers, and samplings that leave nothing; returns what was asked of them."""
    asked = []

    def trained(run):
        steps, folder = run.config.train.steps, run.workdir / "checkpoints"
        begun = checkpoint.latest(folder) or 0
        asked.append((run.stage, run.config.train.init_from, begun))
        writer = run.open_writer(run.stage, resume_step=begun)
        for step in range(begun, steps + 1):
            writer.write_scalars(
                step, {f"{run.stage}/video_loss": 10.0 - step, f"{run.stage}/heldout_loss": 5.0 - step}
            )
        writer.close()
        for step in range(begun + 1, steps + 1):
            arrays = {"w": np.full(2, float(step), np.float32)}
            checkpoint.save(folder, step, {"params": arrays, "opt/m": arrays}, {})
        return {"loss": 1.0}

    def sampled(run):
        asked.append((run.stage, run.config.sample.checkpoint, len(run.config.average_weights.checkpoints)))
        return {"samples": 1.0}

    monkeypatch.setattr(train, "run", trained)
    monkeypatch.setattr(sample, "run", sampled)
    monkeypatch.setattr("moviegen.jobs.average_weights.run", sampled)
    return asked


def config(**overrides):
    return configs.apply_overrides(configs.load(f"{FILE}:quick"), overrides)


def test_each_stage_begins_where_the_one_before_ended_and_is_done_once(stood_in, tmp_path, capsys):
    found = moviegen.run(config(), workdir=tmp_path)
    names = [name for name, *_ in stood_in]
    assert names == ["stage1", "stage2", "stage3", "stage4", "average", "sample"]
    starts = [start for _, start, _ in stood_in]
    assert starts == [
        "",
        *(str(tmp_path / f"stage{i}") for i in (1, 2, 3)),
        "",
        f"{tmp_path}/average",
    ]
    assert stood_in[4][2] == 3  # the checkpoints of stage 4
    said = capsys.readouterr().out
    assert "[2/6] stage2 done: first loss 10, last loss 7, heldout before 5, heldout after 2, seconds" in said
    assert (
        json.loads((tmp_path / "stages.json").read_text())["stage4"]["heldout_after"]
        == found["stage4/heldout_after"]
        == 2
    )
    assert json.loads((tmp_path / "stage3" / "config.json").read_text())["train"]["init_from"] == str(
        tmp_path / "stage2"
    )
    stood_in.clear()
    assert moviegen.run(config(), workdir=tmp_path) == found and stood_in == []
    assert "[6/6] sample was done before: samples 1" in capsys.readouterr().out
    moved = tmp_path / "moved"  # a workdir is no setting
    shutil.copytree(tmp_path, moved)
    assert moviegen.run(config(), workdir=moved) == found and stood_in == []


def test_a_stage_that_was_cut_short_goes_on(stood_in, tmp_path, monkeypatch):
    whole, stop = train.run, []

    def cut(run):
        if run.stage == "stage3" and not stop:
            stop.append(True)
            with run.config.unlocked():
                run.config.train.steps = 1
            whole(run)
            raise Stopped(15)
        return whole(run)

    monkeypatch.setattr(train, "run", cut)
    with pytest.raises(Stopped):
        moviegen.run(config(), workdir=tmp_path)
    stood_in.clear()
    moviegen.run(config(), workdir=tmp_path)
    assert [(name, begun) for name, _, begun in stood_in][:2] == [("stage3", 1), ("stage4", 0)]


def test_other_samples_are_no_reason_to_train_and_other_weights_before_are_refused(stood_in, tmp_path):
    moviegen.run(config(), workdir=tmp_path)
    stood_in.clear()
    moviegen.run(config(**{"sample.steps": 2}), workdir=tmp_path)
    assert [name for name, *_ in stood_in] == ["average", "sample"]
    stood_in.clear()
    longer = config(**{"train.steps": 4})
    with pytest.raises(
        ConfigError, match="stage2 began from other weights than the stage before has now: move it away"
    ):
        moviegen.run(longer, workdir=tmp_path)
    assert [(name, begun) for name, _, begun in stood_in] == [("stage1", 3)]
    for number in (2, 3, 4):
        shutil.rmtree(tmp_path / f"stage{number}")
    moviegen.run(longer, workdir=tmp_path)


def test_one_stage_alone_and_wrong_settings(stood_in, tmp_path):
    moviegen.run(config(), workdir=tmp_path, stage="stage1")
    assert [name for name, *_ in stood_in] == ["stage1"]
    with pytest.raises(ConfigError, match="--stage=stage3 needs the stage stage2, not done in"):
        moviegen.run(config(), workdir=tmp_path, stage="stage3")
    with pytest.raises(
        ConfigError, match="order is .*expected each of the stages once: average, sample, stage1, stage2"
    ):
        moviegen.run(config(order=("stage1", "stage2")), workdir=tmp_path)
    with pytest.raises(ConfigError, match="stages.stage2.data.num_frames is 0, expected a whole number of at least 1"):
        moviegen.run(config(**{"stages.stage2.data.num_frames": 0}), workdir=tmp_path)


def test_a_chain_is_its_stages_again():
    for argument in ("", ":buckets"):
        made = configs.load(FILE + argument)
        for number in (1, 2, 3, 4):
            own = configs.stage(made, f"stage{number}")
            del own.order, own.name
            expected = tiny_stages._stage(number, bool(argument), False)
            assert configs.to_plain(own) == configs.to_plain(expected)


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["", ":buckets"])
def test_the_loss_falls_in_each_stage_and_validation_is_better_after_it(tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    found = moviegen.run(FILE + argument, workdir=tmp_path / "run")
    for number in (1, 2, 3, 4):
        first, last, before, after = (
            found[f"stage{number}/{key}"] for key in ("first_loss", "last_loss", "heldout_before", "heldout_after")
        )
        assert last < first and after < before
    assert list((tmp_path / "run" / "sample" / "samples").glob("*.mp4"))
