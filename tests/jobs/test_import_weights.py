"""Safetensors files as a checkpoint, and what is refused."""

import re

import numpy as np
import pytest

from moviegen.errors import ConfigError, DataError
from moviegen.jobs import export, import_weights
from moviegen.models.transformer import model as transformer
from moviegen.parallel.mesh import ONE
from moviegen.runner import Run
from moviegen.sampling import sampler
from moviegen.storage import arraystore, checkpoint, safetensors_io
from moviegen.training import generator, state as states
from tests.jobs.test_export import META, settings, trained


def with_path(path, **model):
    config = settings()
    config.model.update(model)
    config.import_weights.path = str(path)
    return config


@pytest.mark.parametrize(("dtype", "shard_bytes"), [("float32", 20_000), ("bfloat16", 10**9)])
def test_an_export_comes_back_as_a_start_for_training_and_sampling(tmp_path, monkeypatch, dtype, shard_bytes):
    config = settings(dtype=dtype, shard_bytes=shard_bytes)
    weights = trained(tmp_path / "checkpoints", config)["ema"]
    export.run(Run(config, tmp_path))
    config = with_path(tmp_path / "export")
    assert import_weights.run(Run(config, tmp_path / "run")) == {"arrays": len(weights)}
    folder = tmp_path / "run" / "imported"
    trees, meta = checkpoint.load(folder)
    assert trees.keys() == {"params"} and meta == {
        "step": 0,
        **{key: META[key] for key in ("latent_shift", "latent_scale", "trained_with")},
    }
    kinds = {path: "float32" if re.search("norm|modulation|position|time", path) else dtype for path in weights}
    expected = {path: arraystore.cast(arraystore.cast(x, kinds[path]), "float32") for path, x in weights.items()}
    config.train.init_from = config.sample.checkpoint = str(folder)
    state = generator.first_state(config, states.Layout(transformer.shapes(config.model), ONE, 3))
    monkeypatch.setattr(sampler.tae_weights, "configured", lambda config: "none are read here")
    monkeypatch.setattr(sampler.tae_weights, "digest", lambda path: "0123abcd")
    sampled, _, statistics = sampler.Sampler(Run(config, tmp_path))._generator
    assert list(statistics.latent_scale) == META["latent_scale"]
    for path, value in expected.items():
        for found in (trees["params"][path], state.master[path].asnumpy(), sampled[path].asnumpy()):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, value, err_msg=path)


def test_a_file_of_others_takes_the_configs_latent_statistics(tmp_path, capsys):
    arrays = {path: np.ones(shape, np.float32) for path, shape in transformer.shapes(settings().model).items()}
    config = with_path(safetensors_io.write(arrays, tmp_path / "x.safetensors"))
    import_weights.run(Run(config, tmp_path))
    assert "does not say how its latents were scaled" in capsys.readouterr().out
    meta = checkpoint.load(tmp_path / "imported")[1]
    assert meta["latent_shift"] == [config.tae.latent_shift] * 16
    assert meta["latent_scale"] == [config.tae.latent_scale] * 16


def test_latent_statistics_of_a_file_are_checked(tmp_path):
    arrays = {path: np.ones(shape, np.float32) for path, shape in transformer.shapes(settings().model).items()}
    metadata = {"latent_shift": [0.0] * 16, "latent_scale": [1.0] * 15 + [float("nan")]}
    config = with_path(safetensors_io.write(arrays, tmp_path / "x.safetensors", metadata=metadata))
    with pytest.raises(DataError, match="x.safetensors: latent_scale is .*expected 16 positive numbers"):
        import_weights.run(Run(config, tmp_path))
    assert not (tmp_path / "imported").exists()


def test_missing_extra_and_wrong_arrays_are_named(tmp_path):
    arrays = {path: np.ones(shape, np.float32) for path, shape in transformer.shapes(settings().model).items()}
    arrays["mine"] = arrays.pop("patch")
    arrays["final/norm"] = np.ones(3, np.float32)
    config = with_path(safetensors_io.write(arrays, tmp_path / "x.safetensors"))
    words = r"missing: patch; extra: mine; wrong shape: final/norm is \(3,\), expected \(24,\); .*x.safetensors"
    with pytest.raises(ConfigError, match=words):
        import_weights.run(Run(config, tmp_path))
    assert not (tmp_path / "imported").exists()


def test_another_model_of_the_same_shapes_is_named(tmp_path):
    trained(tmp_path / "checkpoints", settings())
    export.run(Run(settings(), tmp_path))
    words = r"weights in .*export were trained with other settings \(model.num_heads: 2 -> 3\)"
    with pytest.raises(ConfigError, match=words):
        import_weights.run(Run(with_path(tmp_path / "export", num_heads=3), tmp_path))
    import_weights.run(Run(with_path(tmp_path / "export", compute_dtype="bfloat16_simulated"), tmp_path))


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_no_file(tmp_path, path):
    with pytest.raises(ConfigError, match=f"import_weights.path is '{path}': expected a safetensors file or a folder"):
        import_weights.run(Run(with_path(path), tmp_path))
