"""The files that sampling leaves, and what it says of wrong settings, with models whose answer is known."""

import json

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
    assert names == sorted([*(stem + suffix for stem in stems for suffix in (".mp4", ".png")), "samples.json"])
    frames, fps = video.read(tmp_path / "samples" / (stems[1] + ".mp4"))
    assert frames.shape == (4, 16, 16, 3) and fps == config.sample.fps
    assert abs(frames.astype(int) - (0.2 + 1) * 127.5).max() < 4  # the second video that was decoded
    assert "step 7" in capsys.readouterr().out


def test_an_image_is_a_png_alone(config, tmp_path):
    config.sample.num_frames = 1
    sample.run(Run(config, tmp_path))
    assert sorted(path.suffix for path in (tmp_path / "samples").iterdir()) == [".json", ".png", ".png", ".png"]
    index = json.loads((tmp_path / "samples/samples.json").read_text())
    assert all((tmp_path / "samples" / made["file"]).is_file() for made in index["samples"])


def test_one_index_says_how_the_samples_are_made(config, tmp_path):
    config.sample.guidance_scale, config.seed = 3.0, 5
    sample.run(Run(config, tmp_path))
    index = json.loads((tmp_path / "samples/samples.json").read_text())
    settings = index.pop("settings")
    assert {"height": 16, "width": 16, "num_frames": 4, "steps": 3, "guidance_scale": 3.0}.items() <= settings.items()
    assert settings["fps"] == config.sample.fps and "prompts" not in settings
    assert index == {
        "checkpoint": str(tmp_path / "checkpoints/step-00000007"),
        "step": 7,
        "seed": 5,
        "samples": [
            {"prompt": "a red circle moves left", "index": 0, "file": "00-a-red-circle-moves-left.mp4"},
            {"prompt": "a blue square", "index": 1, "file": "01-a-blue-square.mp4"},
            {"prompt": "a green cross moves up", "index": 2, "file": "02-a-green-cross-moves-up.mp4"},
        ],
    }


def test_the_folder_holds_one_sampling_and_what_is_not_ours_stays(config, tmp_path, capsys):
    folder = tmp_path / "samples"
    sample.run(Run(config, tmp_path))
    (folder / "recons-mine.png").write_text("mine")
    (folder / "notes.json").write_text("mine")
    first = {path.name for path in folder.iterdir()} - {"recons-mine.png", "notes.json"}
    sample.run(Run(config, tmp_path))  # the same once more
    assert not (folder / "earlier-1").exists()
    config.sample.prompts = ("a red circle moves left",)
    for number, files in (
        (1, first),
        (2, {"samples.json", *(f"00-a-red-circle-moves-left.{x}" for x in ("mp4", "png"))}),
    ):
        config.sample.steps += 1
        sample.run(Run(config, tmp_path))
        assert {path.name for path in (folder / f"earlier-{number}").iterdir()} == files
    assert "samples made in another way are in" in capsys.readouterr().out
    left = {"recons-mine.png", "notes.json", "earlier-1", "earlier-2"}
    assert {path.name for path in folder.iterdir()} == left | files


def test_a_finished_run_that_may_not_be_written_is_sampled_to_another_folder(config, tmp_path):
    config.sample.checkpoint = str(tmp_path / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    sample.run(Run(config, tmp_path / "another"))
    found = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "another" not in path.parts}
    assert found == before


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
