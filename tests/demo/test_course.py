"""The order of the demo's stages, and what is run again after a change."""

from pathlib import Path

import pytest

from moviegen import config as configs
from moviegen.demo import course, isolate
from moviegen.errors import ConfigError
from moviegen.runner import Run


@pytest.fixture
def config():
    return configs.load("experiments/tiny.py:quick")


@pytest.fixture
def ran(monkeypatch):
    """Notes (stage, its config, whether its folder was kept) instead of running it."""
    ran = []

    def call(function, config, folder):
        name = function.rpartition(":")[2]
        kept = (Path(folder) / "work").exists()
        (Path(folder) / "work").touch()
        ran.append((name, config, kept))
        return {f"{name}.number": len(ran)}, 1.5

    monkeypatch.setattr(isolate, "call", call)
    return ran


def names(ran):
    return [name for name, _, _ in ran]


def test_all_stages_in_order_and_joined_up(config, ran, tmp_path):
    assert course.run(Run(config, tmp_path)) == {"report.number": 5}
    assert names(ran) == ["tae", "t2i", "t2v", "sample", "report"]
    stages = {name: made for name, made, _ in ran}
    assert stages["t2i"].data.tae_weights == str(tmp_path / "tae/tae.safetensors")
    assert stages["t2i"].train.init_from == ""
    assert stages["t2v"].train.init_from == str(tmp_path / "t2i/checkpoints")
    assert stages["t2v"].data.latent_folder == str(tmp_path / "t2i/latents")
    assert stages["sample"].sample.checkpoint == str(tmp_path / "t2v/checkpoints")
    assert stages["t2i"].model.position_lengths == (1, 4, 4)
    assert stages["t2v"].model.position_lengths == (2, 4, 4)
    done = course.finished(tmp_path, "t2v")
    assert done["metrics"] == {"t2v.number": 3} and done["peak_memory_gb"] > 1.5


def test_finished_stages_are_skipped(config, ran, tmp_path):
    first = course.run(Run(config, tmp_path))
    assert course.run(Run(config, tmp_path)) == first and len(ran) == 5


def test_an_unfinished_stage_goes_on_in_its_folder(config, ran, tmp_path, monkeypatch):
    course.run(Run(config, tmp_path))
    (tmp_path / "t2v/done.json").unlink()
    ran.clear()
    course.run(Run(config, tmp_path))
    assert [(name, kept) for name, _, kept in ran] == [("t2v", True)]


def test_a_changed_stage_goes_on_and_what_builds_on_it_starts_anew(config, ran, tmp_path):
    course.run(Run(config, tmp_path))
    ran.clear()
    config = configs.apply_overrides(config, {"stages.t2v.train.steps": 9})
    course.run(Run(config, tmp_path))
    assert [(name, kept) for name, _, kept in ran] == [("t2v", True), ("sample", False), ("report", False)]
    assert ran[0][1].train.steps == 9


def test_other_settings_of_sampling_are_no_reason_to_train_again(config, ran, tmp_path):
    course.run(Run(config, tmp_path))
    ran.clear()
    course.run(Run(configs.apply_overrides(config, {"sample.guidance_scale": 1.5}), tmp_path))
    assert names(ran) == ["sample", "report"]


def test_an_override_reaches_every_stage(config, ran, tmp_path):
    config = configs.apply_overrides(config, {"model.num_layers": 3, "seed": 5})
    course.run(Run(config, tmp_path))
    assert all((made.model.num_layers, made.seed) == (3, 5) for _, made, _ in ran)


def test_a_moved_folder_stays_finished(config, ran, tmp_path):
    course.run(Run(config, tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    course.run(Run(config, tmp_path / "b"))
    assert len(ran) == 5


def test_one_stage(config, ran, tmp_path):
    with pytest.raises(ConfigError, match="--stage=t2v needs the stage tae"):
        course.run(Run(config, tmp_path, stage="t2v"))
    for name in ("tae", "t2i"):
        course.run(Run(config, tmp_path, stage=name))
    assert course.run(Run(config, tmp_path, stage="t2v")) == {"t2v.number": 3}
    assert names(ran) == ["tae", "t2i", "t2v"]
    course.run(Run(config, tmp_path, stage="t2i"))  # asked for by name: run again
    assert names(ran)[-1] == "t2i"


def test_a_failing_stage_is_not_finished(config, ran, tmp_path, monkeypatch):
    def fail(*_):
        raise ConfigError("no such thing")

    monkeypatch.setattr(isolate, "call", fail)
    with pytest.raises(ConfigError, match="no such thing"):
        course.run(Run(config, tmp_path))
    assert course.finished(tmp_path, "tae") is None
