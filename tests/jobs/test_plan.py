import json

import pytest

from moviegen import config as configs, runner
from moviegen.errors import ConfigError


def planned(file, tmp_path, mesh=None, **values):
    overrides = {key.replace("__", "."): value for key, value in values.items()}
    config = configs.apply_overrides(configs.load(f"experiments/{file}"), overrides)
    metrics = runner.run(config, "plan", tmp_path, mesh)
    return metrics, json.loads((tmp_path / "plan.json").read_text())


def test_a_plan_is_printed_noted_and_drawn(tmp_path, capsys):
    metrics, noted = planned("30b_stage2.py", tmp_path, "sp=8", plan__card="910B2")
    said = capsys.readouterr().out
    assert said.count("\nplan: ") >= 3 and "kept activations" in said and "messages of a step" in said
    assert metrics["fits"] == 1.0 and metrics["seconds"] == pytest.approx(
        sum(s["share"] * s["seconds"]["all"] for s in noted["train"]["steps"].values())
    )
    assert noted["train"]["mesh"] == {"data": 1, "zero": 1, "sp": 8} and noted["train"]["card"]["name"] == "910B2"
    page = (tmp_path / "plan.html").read_text()
    assert page.count("<svg") == 4 and "Where the numbers of 910B2 are from" in page  # card, host, video, image


def test_the_planner_chooses_the_mesh(tmp_path, capsys):
    _, noted = planned("5b_stage2.py", tmp_path, plan__card="910B2", plan__cards=16)
    assert noted["train"]["cards"] == 16 and noted["train"]["fits"]
    assert "on 16 cards the cheapest is --mesh=" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"plan\.cards is 1: nothing"):
        planned("30b_stage3.py", tmp_path, plan__card="910B4", plan__cards=1)


def test_sampling_and_the_demos_stages_are_planned(tmp_path):
    _, noted = planned("30b_stage2.py", tmp_path, "sp=8", plan__card="910B3", plan__job="sample")
    assert list(noted["sample"]["steps"]) == ["a batch of prompts"]
    _, noted = planned("tiny.py", tmp_path)
    assert set(noted) == {"tae", "t2i", "t2v"} and all(not each["utilisation"] for each in noted.values())
