"""What is noted of the settings that weights were trained with, and what is said of others."""

import json
import re

import pytest

from experiments import common
from moviegen.data import trained_with
from moviegen.errors import ConfigError
from moviegen.text import encoders, store
from tests.text import tiny_encoders

STORE = {"encoder": "ul2", "weights": "aa11", "tokenizer": "t5", "budget": 512, "dtype": "bfloat16", "width": 16}


@pytest.fixture
def config():
    config = common.shrink(common.stage("1b", 2))
    config.model.text_dims = tiny_encoders.WIDTHS
    return config


@pytest.fixture
def from_csv(config, tmp_path):
    """Embeddings of ul2 in a store, those of byt5 as the seed's npz files, of which nobody knows what made them."""
    config.data.source = "csv"
    store.check_or_write(tmp_path / "ul2", STORE, "key")
    (tmp_path / "byt5").mkdir()
    config.data.text_folders.update(ul2=str(tmp_path / "ul2"), byt5=str(tmp_path / "byt5"))
    return config


def noted(config, *args):
    return json.loads(json.dumps(trained_with.describe(config, *args)))  # as a checkpoint gives it back


def test_what_is_noted(from_csv, config):
    found = noted(from_csv, "ab12")
    assert found["tae_weights"] == "ab12" and found["model"]["text_norm"] == "layer"
    assert found["tae"]["temporal_upsample_padding"] == "replicate" and "latent_scale" not in found["tae"]
    ul2 = {"weights": "aa11", "tokenizer": "t5", "budget": 512}
    assert found["text"] == {"encoders": {"ul2": ul2}, "tell_fps": True, "camera": "", "fps": None}
    from_csv.data.fps = 16
    assert noted(from_csv, "ab12")["text"]["fps"] == 16
    assert noted(from_csv, "ab12", True)["text"]["fps"] == from_csv.sample.fps
    from_csv.data.num_frames = 1  # images, which have no rate
    assert "fps" not in noted(from_csv, "ab12")["text"]
    config.data.source = "synthetic"
    assert noted(config, None)["text"] == {"encoders": {"ul2": "toy", "metaclip": "toy", "byt5": "toy"}}


def test_nothing_is_said_where_nothing_differs(from_csv):
    before = noted(from_csv, "ab12")
    from_csv.model.update(compute_dtype="bfloat16", position_lengths=(32, 96, 96), weight_std=1.0)
    from_csv.tae.update(spatial_tile=16, latent_scale=2.0)
    assert trained_with.check(before, noted(from_csv, "ab12"), "c", ("model.", "tae.")) == []
    assert trained_with.check(before, noted(from_csv, None), "c") == []  # unknown weights are not other ones
    assert trained_with.check({}, noted(from_csv, "ab12"), "c")[0].startswith("c does not say what its weights were")


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("text", {"tell_fps": False}, "text.tell_fps: true -> false"),
        ("data", {"fps": 24.0}, "text.fps: 16.0 -> 24.0"),
        ("text", {"camera": "zoom in"}, 'text.camera: "" -> "zoom in"'),
        ("tae", {"temporal_upsample_padding": "zeros"}, 'tae.temporal_upsample_padding: "replicate" -> "zeros"'),
    ],
)
def test_what_may_be_meant_is_said(from_csv, section, values, words):
    from_csv.data.fps = 16.0
    before = noted(from_csv, "ab12")
    from_csv[section].update(values)
    (line,) = trained_with.check(before, noted(from_csv, "cd34"), "c")
    assert line.startswith("c was trained with something else (") and words in line
    assert 'tae_weights: "ab12" -> "cd34"' in line


def test_other_embeddings_are_said_by_what_made_them(from_csv, tmp_path):
    before = noted(from_csv, "ab12")
    store.check_or_write(tmp_path / "other", STORE | {"weights": "bb22", "dtype": "float32", "budget": 256}, "key")
    from_csv.data.text_folders.ul2 = str(tmp_path / "other")
    (line,) = trained_with.check(before, noted(from_csv, "ab12"), "c")
    assert 'budget: 512 -> 256; text.encoders.ul2.weights: "aa11" -> "bb22")' in line


def test_the_rate_that_a_sample_tells_is_compared_with_that_of_training(from_csv):
    from_csv.data.fps = 16.0
    before = noted(from_csv, "ab12")
    assert trained_with.check(before, noted(from_csv, "ab12", True), "c") == []
    from_csv.sample.fps = 24
    assert "(text.fps: 16.0 -> 24.0)" in trained_with.check(before, noted(from_csv, "ab12", True), "c")[0]
    assert trained_with.check(before, noted(from_csv, "ab12"), "c") == []  # what a sample is told is not of training


def test_encoders_at_hand_are_compared_with_those_of_the_stores(from_csv, tmp_path):
    from_csv.text.encoders.update(ul2=tiny_encoders.make(tmp_path / "encoders")["ul2"])
    files = encoders.look(from_csv, "ul2")
    made = {"weights": encoders.digest(files), "tokenizer": files.tokenizer.digest, "budget": 512}
    before = noted(from_csv, "ab12") | {"text": {"encoders": {"ul2": made}}}
    assert trained_with.check(before, noted(from_csv, "ab12", True), "c") == []
    tiny_encoders.make(tmp_path / "encoders", seed=1)
    (line,) = trained_with.check(before, noted(from_csv, "ab12", True), "c")
    assert "text.encoders.ul2.weights: " in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda now: now["text"].update(tell_fps=False), "(text.tell_fps: true -> false): change them back"),
        (lambda now: now["text"]["encoders"]["ul2"].update(budget=256), "(text.encoders.ul2.budget: 512 -> 256)"),
        (
            lambda now: now.update(tae_weights="cd34"),
            '(tae_weights: "ab12" -> "cd34"): change them back, and use latents',
        ),
        (lambda now: now["tae"].update(temporal_upsample_padding="zeros"), "(tae.temporal_upsample_padding:"),
        (lambda now: now["model"]["text_dims"].update(byt5=9), "(model.text_dims.byt5: 8 -> 9)"),
    ],
)
def test_a_stage_is_refused_what_its_weights_do_not_know(from_csv, change, words):
    before, now = noted(from_csv, "ab12"), noted(from_csv, "ab12")
    change(now)
    with pytest.raises(ConfigError, match=re.escape(words)):
        trained_with.check(before, now, "c", trained_with.STAGE)
    if not words.startswith("(model"):
        assert len(trained_with.check(before, now, "c")) == 1  # a run that goes on may


def test_a_stage_is_told_of_another_rate_and_of_an_encoder_more(from_csv):
    before, now = noted(from_csv, "ab12"), noted(from_csv, "ab12")
    before["text"]["fps"], now["text"]["fps"] = 16.0, 24.0
    before["model"]["text_dims"]["byt5"] = 0
    (line,) = trained_with.check(before, now, "c", trained_with.STAGE)
    assert "(model.text_dims.byt5: 0 -> 8; text.fps: 16.0 -> 24.0)" in line


@pytest.mark.parametrize("values", [{"num_heads": 3}, {"norm_eps": 1e-6}, {"text_norm": "rms"}])
def test_another_model_is_refused(config, values):
    before, (name,) = noted(config, None), values
    config.model.update(values)
    with pytest.raises(
        ConfigError, match=re.escape(f"the weights in c were trained with other settings (model.{name}:")
    ):
        trained_with.check(before, noted(config, None), "c")


def test_another_autoencoder_s_arithmetic_is_refused_where_it_is_asked_for(config):
    before = noted(config, None)
    config.tae.temporal_upsample_padding = "zeros"
    with pytest.raises(ConfigError, match='tae.temporal_upsample_padding: "replicate" -> "zeros"'):
        trained_with.check(before, noted(config, None), "c", ("model.", "tae."))


def test_statistics_are_said_where_they_are_more_than_noise_apart():
    """Numbers of issue 15: with one dark clip more the shift went from -0.04 to 0.65, the scale from 0.905 to 0.746."""
    theirs = ([-0.04, 0.0], [0.905, 1.0])
    assert trained_with.statistics(theirs, ([-0.03, 0.01], [0.915, 1.01])) == []
    (line,) = trained_with.statistics(theirs, ([0.65, 0.0], [0.746, 1.0]))
    assert "shift -0.02, the data's 0.325" in line and "scale 0.953, the data's 0.873" in line
    assert "+0.00 to +0.62 deviations off" in line and "(0.82 to 1.00 times)" in line
