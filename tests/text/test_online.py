import gc
import weakref

import numpy as np
import pytest

from experiments import common
from moviegen import config as configs
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import encode_text
from moviegen.parallel.mesh import ONE
from moviegen.runner import Run
from moviegen.text import encoders, online
from tests.text import tiny_encoders

PROMPTS = ['a sign "OPEN 24h"', "a dog"]


@pytest.fixture
def config(tmp_path):
    folders = tiny_encoders.make(tmp_path / "encoders")
    config = common.stage("1b", 2)
    config.text.update(encoders=folders, dtype="float32", batch_size=2)
    config.model.text_dims = tiny_encoders.WIDTHS
    config.data.text_folders = {name: str(tmp_path / "emb" / name) for name in folders}
    return config


def test_a_plain_prompt_gives_what_the_cache_would(config, tmp_path):
    plain = online.encode(PROMPTS, config, ONE)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    config.text.prompts = str(tmp_path / "prompts.txt")
    encode_text.run(Run(config, tmp_path))
    config.text.encoders.update(ul2="", metaclip="", byt5="")
    cached = online.encode(PROMPTS, config, ONE)
    assert plain.keys() == cached.keys() == tiny_encoders.WIDTHS.keys()
    for name, (values, mask) in plain.items():
        assert values.shape[0] == 3 and not np.allclose(values[0], values[1])
        np.testing.assert_allclose(values, cached[name][0], atol=1e-5)
        np.testing.assert_array_equal(mask, cached[name][1])
    assert plain["byt5"][1].sum(1).tolist() == [len("OPEN 24h") + 1, 1, 1]
    config.sample.fps = 24
    with pytest.raises(DataError, match="no ul2 embeddings of the prompt 'a sign.*told as 'FPS-24 a sign.*encode_text"):
        online.encode(PROMPTS, config, ONE)


@pytest.fixture
def embedded(config, tmp_path):
    """The captions of a picture and of a video in stores, all that is left of the encoders; told with a camera motion."""
    (tmp_path / "train.csv").write_text("video,caption,camera\na.jpg,a dog,arc\nb.mp4,a cat,arc\n")
    config.data.update(csv=str(tmp_path / "train.csv"), fps=16.0)
    encode_text.run(Run(config, tmp_path))
    tiny = configs.load("experiments/5b_stage1.py:tiny").unlock()
    tiny.model.text_dims, tiny.data.text_folders = tiny_encoders.WIDTHS, config.data.text_folders
    tiny.data.source, tiny.text.camera = "csv", "arc"
    return tiny


def test_a_request_for_an_image_is_told_as_the_caption_of_one(embedded):
    assert embedded.sample.num_frames == 1
    found = online.encode(["a dog"], embedded, ONE)
    assert found.keys() == tiny_encoders.WIDTHS.keys()
    with pytest.raises(DataError, match="embeddings of the prompt 'a cat', told as 'a cat'"):
        online.encode(["a cat"], embedded, ONE)


def test_a_request_for_a_video_is_told_as_the_caption_of_one(embedded):
    embedded.sample.num_frames = 16
    video = online.encode(["a cat"], embedded, ONE)
    assert video["ul2"][1][0].sum() > 5
    with pytest.raises(DataError, match="embeddings of the prompt 'a dog', told as 'FPS-16 Arc. a dog'"):
        online.encode(["a dog"], embedded, ONE)


@pytest.mark.parametrize(("frames", "told"), [(1, "a dog"), (16, "FPS-16 Arc. a dog")])
def test_encoders_at_hand_are_given_the_same(config, monkeypatch, frames, told):
    config.sample.num_frames, config.text.camera = frames, "arc"
    seen = []
    monkeypatch.setattr(
        online, "_run", lambda files, texts, *rest: seen.append(texts) or [np.ones((1, 2))] * len(texts)
    )
    online.encode(["a dog"], config, ONE)
    assert seen == [[told, ""], [told, ""], ["", ""]]


def test_an_encoder_that_gives_no_numbers_is_named(config, monkeypatch):
    monkeypatch.setattr(online, "_run", lambda files, texts, *rest: [np.full((1, 2), np.nan)] * len(texts))
    with pytest.raises(DataError, match="'a dog' by .*ul2: its embeddings are not all finite"):
        online.encode(["a dog"], config, ONE)


def npz(path, tokens):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, text_emb=np.ones((tokens, 8), np.float32), mask=np.ones(tokens))


def test_without_guidance_nobody_asks_for_the_empty_prompt(config, tmp_path):
    config.text.encoders = dict.fromkeys(tiny_encoders.WIDTHS, "")
    for name in tiny_encoders.WIDTHS:
        npz(tmp_path / "emb" / name / "a dog.npz", 3)
    config.sample.guidance_scale = 1.0
    assert online.encode(["a dog"], config, ONE)["ul2"][1].sum(1).tolist() == [3]
    config.sample.guidance_scale = 2.0
    with pytest.raises(ConfigError, match="data.empty_text.ul2 is .*guidance needs"):
        online.encode(["a dog"], config, ONE)


def test_a_prompt_is_no_way_out_of_the_folder(config, tmp_path):
    config.text.encoders.byt5, config.sample.guidance_scale = "", 1.0
    npz(tmp_path / "secret.npz", 3)
    for prompt in ("../../secret", str(tmp_path / "secret")):
        with pytest.raises(DataError, match="byt5: .*secret.npz' leads out of the folder"):
            online.encode([prompt], config, ONE)
    config.text.encoders = tiny_encoders.make(tmp_path / "encoders")
    assert online.encode(["../../secret", "x" * 300], config, ONE)["byt5"][1].shape[0] == 2  # texts like any other


def test_an_encoder_that_the_model_has_not_is_neither_run_nor_looked_for(config):
    config.model.text_dims.metaclip, config.data.text_folders.metaclip = 0, ""
    config.text.encoders.metaclip = ""
    assert online.encode(PROMPTS, config, ONE).keys() == {"ul2", "byt5"}


def test_one_encoder_is_in_memory_at_a_time(config, monkeypatch):
    load, living = encoders.load, []

    def watched(*args):
        assert not [ref for ref in living if ref() is not None]
        encoder = load(*args)
        living.extend(weakref.ref(value) for value in encoder.params.values())
        return encoder

    monkeypatch.setattr(online.encoders, "load", watched)
    online.encode(PROMPTS, config, ONE)
    gc.collect()
    assert len(living) > 50 and not [ref for ref in living if ref() is not None]


def test_kept_encoders_are_loaded_once(config, monkeypatch):
    once, kept = online.encode(PROMPTS, config, ONE), {}
    first = online.encode(PROMPTS[:1], config, ONE, kept)
    monkeypatch.setattr(online.encoders, "load", None)
    again = online.encode(PROMPTS, config, ONE, kept)
    assert set(kept) == set(tiny_encoders.WIDTHS) == set(first)
    for name, (values, mask) in again.items():
        np.testing.assert_array_equal(values, once[name][0])
        np.testing.assert_array_equal(mask, once[name][1])


def test_cut_prompts_are_told(config, capsys):
    config.text.budgets.byt5 = 5
    found = online.encode(PROMPTS, config, ONE)
    assert found["byt5"][1].sum(1).tolist() == [5, 1, 1]
    assert "sample: 1 of 2 prompts are cut to 5 tokens for byt5" in capsys.readouterr().out


def test_what_is_wrong_with_any_encoder_comes_before_the_first_is_run(config, monkeypatch):
    monkeypatch.setattr(online.encoders, "load", None)
    config.text.encoders.ul2 = "nowhere"
    with pytest.raises(ConfigError, match="text.encoders.ul2 is 'nowhere'"):
        online.encode(PROMPTS, config, ONE)
    config.text.encoders.ul2 = ""
    with pytest.raises(DataError, match="a sign .*no ul2 embeddings of the prompt.*text.encoders.ul2"):
        online.encode(PROMPTS, config, ONE)
