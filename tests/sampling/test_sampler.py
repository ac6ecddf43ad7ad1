"""What is sampled for which request, whatever the batch; what is loaded, and when."""

import re
import weakref

import mindspore as ms
import numpy as np
import pytest

from moviegen import streams
from moviegen.data import trained_with, video
from moviegen.errors import ConfigError, DataError
from moviegen.runner import Run
from moviegen.sampling import sampler
from moviegen.sampling.sampler import Request, Sampler, write
from moviegen.storage import checkpoint
from moviegen.streams import Stream
from tests.models.transformer import tiny_transformer
from tests.sampling import stand_ins
from tests.sampling.stand_ins import MEANS, SHAPE


@pytest.fixture
def config():
    return stand_ins.config()


@pytest.fixture
def seen(monkeypatch, tmp_path):
    return stand_ins.install(monkeypatch, tmp_path)


@pytest.fixture
def requests(config):
    return [Request(prompt, index) for index, prompt in enumerate(config.sample.prompts)]


def test_samples_come_one_for_each_request_whatever_the_batch(seen, config, requests, tmp_path):
    assert [request for request, _ in Sampler(Run(config, tmp_path)).sample(requests)] == requests
    config.sample.batch_size = 8
    list(Sampler(Run(config, tmp_path)).sample(requests))
    assert len(seen) == 6
    np.testing.assert_array_equal(seen[:3], seen[3:])


def test_a_sampler_loads_once_for_any_number_of_requests(seen, config, requests, tmp_path, monkeypatch):
    loaded = []
    for module, name in ((sampler.states, "load_ema"), (sampler.tae_weights, "load")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, real=real, name=name: loaded.append(name) or real(*args))
    one = Sampler(Run(config, tmp_path))
    list(one.sample(requests))
    again = [request for request, _ in one.sample([requests[2], requests[0], Request("another", 9), requests[1]])]
    assert [request.index for request in again] == [2, 0, 9, 1]
    assert sorted(loaded) == ["load", "load_ema"]
    np.testing.assert_array_equal([seen[3], seen[4], seen[6]], [seen[2], seen[0], seen[1]])
    assert list(one.sample([])) == []


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_weights_are_held_as_they_are_computed_with(tmp_path, monkeypatch, zero_stage):
    """Matrices in the compute dtype, the rest in float32."""
    config = stand_ins.config()
    config.model = tiny_transformer.config(compute_dtype="float16", latent_channels=2)
    config.train.zero_stage = zero_stage
    monkeypatch.setattr(sampler.tae_weights, "configured", lambda config: "weights")
    params = tiny_transformer.random_params(config.model)
    meta = {"latent_shift": [0.0] * 2, "latent_scale": [1.0] * 2}
    checkpoint.save(tmp_path / "checkpoints", 1, {"ema": params}, meta)
    held, exchange, _ = Sampler(Run(config, tmp_path))._generator
    for path, value in held.items():
        exact = re.search("^position|^time|modulation$|norm$|norm_bias$", path)
        assert value.dtype == (ms.float32 if exact else ms.float16), path
        np.testing.assert_array_equal(value.asnumpy(), params[path].astype(value.asnumpy().dtype))
    assert all(value is held[path] for path, value in exchange.all_gather(held).items())


def test_latents_are_scaled_back_by_the_checkpoints_statistics(seen, config, requests, tmp_path):
    list(Sampler(Run(config, tmp_path)).sample(requests))
    noise = streams.rng(Stream.SAMPLING_NOISE, config.seed, 1).standard_normal(SHAPE, dtype=np.float32)
    shift, scale = (np.reshape(MEANS[key], (2, 1, 1, 1)) for key in ("shift", "scale"))
    np.testing.assert_allclose(seen[1][0], noise / scale + shift, rtol=1e-6)


def trained_with_others(config, tmp_path, **others):
    """A checkpoint whose weights were trained as the config says, but for `others`."""
    made_with = trained_with.describe(config, "0123") | others
    meta = {"latent_shift": list(MEANS["shift"]), "latent_scale": list(MEANS["scale"]), "trained_with": made_with}
    checkpoint.save(tmp_path / "checkpoints", 8, {"ema": {"w": np.ones(1, np.float32)}}, meta)
    return Run(config, tmp_path)


def test_what_the_weights_were_not_trained_with_is_said(seen, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampler.tae_weights, "digest", lambda path: "0123")
    Sampler(Run(config, tmp_path))
    assert "step-00000007 does not say what its weights were trained with" in capsys.readouterr().out
    Sampler(trained_with_others(config, tmp_path))
    assert capsys.readouterr().out == ""
    others = {"tae_weights": "abcd", "text": {"encoders": {"ul2": {"weights": "ef01"}}}}
    Sampler(trained_with_others(config, tmp_path, **others))
    said = capsys.readouterr().out
    assert 'tae_weights: "abcd" -> "0123"; text.encoders.ul2: {"weights": "ef01"} -> "toy"' in said


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("tae", "temporal_upsample_padding", "zeros"),
        ("model", "cross_attention_norm", False),
        ("model", "num_heads", 1),
    ],
)
def test_weights_that_would_compute_something_else_are_refused(
    seen, config, tmp_path, monkeypatch, section, key, value
):
    monkeypatch.setattr(sampler.tae_weights, "digest", lambda path: "0123")
    run = trained_with_others(config, tmp_path)
    config[section][key] = value
    with pytest.raises(ConfigError, match=rf"step-00000008 were trained with other settings \({section}.{key}: "):
        Sampler(run)


def test_a_checkpoint_without_statistics_is_named(seen, config, requests, tmp_path):
    checkpoint.save(tmp_path / "checkpoints", 8, {"ema": {"w": np.ones(1, np.float32)}}, {})
    with pytest.raises(DataError, match="step-00000008: latent_shift is None, expected 2 finite numbers"):
        Sampler(Run(config, tmp_path))


def test_statistics_that_are_no_numbers_are_named(seen, config, requests, tmp_path):
    meta = {"latent_shift": [0.5, float("nan")], "latent_scale": [2.0, 4.0]}
    checkpoint.save(tmp_path / "checkpoints", 8, {"ema": {"w": np.ones(1, np.float32)}}, meta)
    with pytest.raises(DataError, match=r"step-00000008: latent_shift is \[0.5, nan\], expected 2 finite numbers"):
        list(Sampler(Run(config, tmp_path)).sample(requests))
    assert not seen


def test_prompts_of_a_csv_experiment_come_as_files(seen, config, requests, tmp_path, monkeypatch):
    config.data.source = "csv"
    config.model.text_dims.byt5 = 0
    names = ("ul2", "metaclip")
    for name in names:
        for i, prompt in enumerate([*config.sample.prompts, "empty"]):
            (tmp_path / name).mkdir(exist_ok=True)
            values = np.full((2 + i, 3), float(i), np.float32)
            np.savez(tmp_path / name / f"{prompt}.npz", text_emb=values, mask=np.ones(2 + i, int))
    with config.unlocked():
        config.data.text_folders = {name: str(tmp_path / name) for name in names}
        config.data.empty_text = {name: str(tmp_path / name / "empty.npz") for name in names}
    given = []

    def generate(params, config, text, start, by, comm):
        given.append(text)
        return start

    monkeypatch.setattr(sampler, "generate", generate)
    config.sample.batch_size = 8
    list(Sampler(Run(config, tmp_path)).sample(requests))
    (text,) = given
    assert text["ul2"][0].shape == (4, 64, 3)
    np.testing.assert_array_equal(text["metaclip"][1].sum(1), [2, 3, 4, 5])
    assert text["ul2"][0][3].max() == 3 and text["ul2"][0][1].max() == 1


@pytest.mark.parametrize(("keep", "kept"), [(False, None), (True, {"ul2"})])
def test_text_encoders_are_kept_where_asked_for(seen, config, requests, tmp_path, monkeypatch, keep, kept):
    real = sampler.online.encode

    def encode(prompts, config, mesh, encoders):
        if encoders is not None:
            encoders["ul2"] = "loaded"
        return real(prompts, config, mesh)

    monkeypatch.setattr(sampler.online, "encode", encode)
    one = Sampler(Run(config, tmp_path), keep_encoders=keep)
    list(one.sample(requests))
    assert one.encoders == kept or set(one.encoders) == kept


def test_a_video_is_written_as_its_pieces_come(tmp_path):
    frames = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3) * 20
    given = []

    def pieces():
        for piece in np.split(frames, [5, 6, 7, 9, 10]):
            assert sum(before() is not None for before in given) <= 3
            piece = piece.copy()
            given.append(weakref.ref(piece))
            yield piece

    base = write(tmp_path, Request("A dog!", 3), pieces(), 12, 8.0)
    assert base == tmp_path / "03-a-dog" and len(given) == 6
    np.testing.assert_allclose(video.read(base.with_suffix(".mp4"))[0].mean((1, 2, 3)), frames.mean((1, 2, 3)), atol=3)
    sheet = video.read(base.with_suffix(".png"))[0][0]
    assert [int(sheet[0, 18 * i, 0]) // 20 for i in range(8)] == [0, 2, 3, 5, 6, 8, 9, 11]
