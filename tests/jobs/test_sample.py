"""The files that sampling leaves, and what it says of wrong settings, with models whose answer is known."""

import pytest

from moviegen.data import video
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import sample
from moviegen.runner import Run
from tests.sampling import stand_ins


@pytest.fixture
def config(monkeypatch, tmp_path):
    stand_ins.install(monkeypatch, tmp_path)
    return stand_ins.config()


def test_files(config, tmp_path, capsys):
    assert sample.run(Run(config, tmp_path)) == {"samples": 3}
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    stems = ["00-a-red-circle-moves-left", "01-a-blue-square", "02-a-green-cross-moves-up"]
    assert names == sorted(stem + suffix for stem in stems for suffix in (".mp4", ".png"))
    frames, fps = video.read(tmp_path / "samples" / (stems[1] + ".mp4"))
    assert frames.shape == (4, 16, 16, 3) and fps == config.sample.fps
    assert abs(frames.astype(int) - (0.2 + 1) * 127.5).max() < 4  # the second video that was decoded
    assert "step 7" in capsys.readouterr().out


def test_an_image_is_a_png_alone(config, tmp_path):
    config.sample.num_frames = 1
    sample.run(Run(config, tmp_path))
    assert {path.suffix for path in (tmp_path / "samples").iterdir()} == {".png"}


def test_a_prompt_without_embeddings_is_named(config, tmp_path):
    config.data.source = "csv"
    config.model.text_dims = {"metaclip": 3}
    with config.unlocked():
        config.data.text_folders = {"metaclip": str(tmp_path)}
        config.data.empty_text = {"metaclip": ""}
    config.sample.prompts = ("a dog",)
    with pytest.raises(DataError, match="a dog.npz: no metaclip embeddings of the prompt 'a dog'"):
        sample.run(Run(config, tmp_path))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompts": ()}, "sample.prompts is empty"),
        ({"height": 24}, "sample.height is 24.*multiple of 16"),
        ({"checkpoint": "nowhere"}, "sample.checkpoint is 'nowhere'.*no checkpoint"),
    ],
)
def test_wrong_settings(config, tmp_path, values, words):
    config.sample.update(values)
    with pytest.raises(ConfigError, match=words):
        sample.run(Run(config, tmp_path))
