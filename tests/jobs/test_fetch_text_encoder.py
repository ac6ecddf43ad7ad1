import pytest

from experiments import common
from moviegen.errors import ConfigError
from moviegen.jobs import fetch_text_encoder
from moviegen.runner import Run
from moviegen.text import encoders
from tests.text import tiny_encoders


def test_fetched_encoders_are_ready_to_run(tmp_path, capsys):
    tiny_encoders.make(tmp_path / "copies" / "owner")
    config = common.stage("1b", 1)
    names = list(tiny_encoders.WIDTHS)
    config.text.update(
        repositories={name: f"owner/{name}" for name in names},
        encoders={name: str(tmp_path / "encoders" / name) for name in names},
        offline=str(tmp_path / "copies"),
    )
    config.model.text_dims = tiny_encoders.WIDTHS
    assert fetch_text_encoder.run(Run(config, tmp_path)) == {"fetched": 3, "kept": 0}
    assert fetch_text_encoder.run(Run(config, tmp_path)) == {"fetched": 0, "kept": 3}
    assert "ul2: owner/ul2 there and whole" in capsys.readouterr().out
    for name, width in tiny_encoders.WIDTHS.items():
        files = encoders.look(config, name)
        found = encoders.embed(encoders.load(files, "float32"), files.tokenizer.encode(["a dog"]))
        assert found[0].shape[1] == width


def test_nothing_to_fetch_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="text.encoders names no folder"):
        fetch_text_encoder.run(Run(common.stage("1b", 1), tmp_path))
