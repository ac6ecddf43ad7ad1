"""A checkpoint as safetensors files; tests/jobs/test_import_weights.py has the way back."""

import re

import numpy as np
import pytest

from experiments import common
from moviegen import config as configs
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import export
from moviegen.models.transformer import model as transformer
from moviegen.runner import Run
from moviegen.storage import arraystore, checkpoint, safetensors_io

NOTED = {"tae_weights": "0123abcd", "text": {"fps": 16}}
META = {"latent_shift": [0.5] * 16, "latent_scale": [2.0] * 16, "trained_with": NOTED, "position": {"video": {}}}


def settings(**export):
    config = common.shrink(common.stage("1b", 1))
    config.model.update(hidden_size=24, num_layers=1, num_heads=2, ffn_size=32)
    config.export.update(export)
    return config


def trained(folder, config, step=5):
    """A checkpoint of made-up weights; returns its trees."""
    rng, shapes = np.random.default_rng(step), transformer.shapes(config.model)
    trees = {
        tree: {path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}
        for tree in ("params", "ema")
    }
    checkpoint.save(folder, step, trees, META)
    return trees


@pytest.mark.parametrize("weights", ["ema", "params"])
@pytest.mark.parametrize(("dtype", "shard_bytes"), [("float32", 10**9), ("bfloat16", 20_000), ("float16", 20_000)])
def test_export(tmp_path, weights, dtype, shard_bytes):
    config = settings(weights=weights, dtype=dtype, shard_bytes=shard_bytes)
    expected = trained(tmp_path / "checkpoints", config)[weights]
    metrics = export.run(Run(config, tmp_path))
    assert metrics["step"] == 5 and (metrics["files"] > 1) == (shard_bytes < 10**9)
    found = safetensors_io.read(tmp_path / "export")
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        kept = re.search("norm|modulation|position|time", path)  # computed with in float32
        value = arraystore.cast(value, "float32" if kept else dtype)
        assert found[path].dtype == value.dtype, path
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    metadata = safetensors_io.lazy(tmp_path / "export")[1]
    model = {"weights": weights, "model": configs.to_plain(config.model)}
    expected = {"step": 5, "latent_shift": [0.5] * 16, "latent_scale": [2.0] * 16, "trained_with": NOTED}
    assert metadata == expected | model


def test_weights_without_an_average_are_exported_as_they_are(tmp_path):
    config = settings(weights="ema")
    trees = trained(tmp_path / "average", config)
    checkpoint.save(tmp_path / "checkpoints", 5, {"params": trees["params"]}, META)
    export.run(Run(config, tmp_path))
    np.testing.assert_array_equal(safetensors_io.read(tmp_path / "export")["patch"], trees["params"]["patch"])
    assert safetensors_io.lazy(tmp_path / "export")[1]["weights"] == "params"


def test_one_of_several_checkpoints(tmp_path):
    config = settings(checkpoint=str(tmp_path / "c" / "step-00000003"))
    expected = trained(tmp_path / "c", config, 3)["ema"]
    trained(tmp_path / "c", config, 4)
    assert export.run(Run(config, tmp_path))["step"] == 3
    np.testing.assert_array_equal(safetensors_io.read(tmp_path / "export")["patch"], expected["patch"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"weights": "average"}, "export.weights is 'average', expected one of ema, params"),
        ({"dtype": "int8"}, "export.dtype is 'int8', expected one of float32, bfloat16, float16"),
        ({"shard_bytes": 0}, "export.shard_bytes is 0"),
        ({"checkpoint": "nowhere"}, "nowhere: no checkpoint here"),
    ],
)
def test_mistakes_are_named(tmp_path, wrong, words):
    with pytest.raises(ConfigError, match=words):
        export.run(Run(settings(**wrong), tmp_path))


def test_weights_of_another_model_are_refused(tmp_path):
    trained(tmp_path / "checkpoints", settings())
    config = settings()
    config.model.ffn_size = 48
    with pytest.raises(
        ConfigError, match=r"wrong shape: blocks/0/mlp/gate is \(32, 24\), expected \(48, 24\).*checkpoints"
    ):
        export.run(Run(config, tmp_path))


def test_damage_of_the_checkpoint_is_found_and_leaves_no_export(tmp_path):
    config = settings()
    trained(tmp_path / "checkpoints", config)
    file = next((tmp_path / "checkpoints" / "step-00000005" / "ema" / "patch").glob("c.*"))
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(DataError, match="step-00000005: array ema/patch is damaged"):
        export.run(Run(config, tmp_path))
    assert not list((tmp_path / "export").iterdir())
