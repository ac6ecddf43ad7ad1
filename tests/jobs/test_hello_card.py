import json

import pytest

import moviegen
from moviegen import config
from moviegen.errors import ConfigError
from moviegen.parallel import card, launcher


def test_two_ranks_check_each_other(tmp_path):
    command = ["launch.py", "--config=experiments/1b_stage1.py:tiny", "--job=hello_card", f"--workdir={tmp_path}"]
    assert launcher.run(command, 2, tmp_path) == 0
    found = json.loads((tmp_path / "hello_card.json").read_text())
    outcomes = {check["name"]: check["outcome"] for check in found["checks"]}
    assert outcomes["collectives"] == outcomes["shared folder"] == "ok" and found["failing_ranks"] == {}
    assert not {path.name for path in tmp_path.glob("hello_*") if not path.name.startswith("hello_card.")}


def test_what_failed_is_named_at_the_end(tmp_path, monkeypatch, capsys):
    def check(mesh, workdir):
        raise card.Failed("it is on fire")

    monkeypatch.setattr(card, "CHECKS", {"card": (check, "put it out")})
    with pytest.raises(ConfigError, match="hello_card: failed: card"):
        moviegen.run(config.load("experiments/tiny.py"), "hello_card", tmp_path)
    assert capsys.readouterr().out.startswith(
        "failed   card           it is on fire\n                        -> put it out\n"
    )
    assert json.loads((tmp_path / "hello_card.json").read_text())["checks"][0]["found"] == "it is on fire"
