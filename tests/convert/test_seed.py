import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.convert import seed
from moviegen.errors import ConfigError
from moviegen.models import transformer
from tests.golden.recipe import golden_array, golden_input

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer.npz"
DIMS = {"ul2": 4096, "metaclip": 1280, "byt5": 1472}


def golden():
    stored = np.load(GOLDEN)
    reference = json.loads(str(stored["config"]))
    arrays = {}
    for entry in stored["names"]:
        name, shape = re.fullmatch(r"(\S+) \((.*)\)", str(entry)).groups()
        arrays[name] = golden_array(name, [int(n) for n in shape.split(",") if n], reference["salt"])
    cfg = ConfigDict(
        dict(
            hidden_size=reference["hidden_size"],
            num_layers=reference["num_layers"],
            num_heads=reference["num_heads"],
            ffn_size=reference["ffn"],
            latent_channels=reference["latent_shape"][2],
            patch_size=(1, 2, 2),
            position_lengths=tuple(reference["position_table_lengths"]),
            text_dims=DIMS,
            norm_eps=1e-5,
            cross_attention_norm=False,
            text_norm="rms",
        )
    )
    return arrays, cfg, reference, stored["output"]


def golden_inputs(reference):
    latents = golden_input("latent", reference["latent_shape"], reference["salt"]).transpose(0, 2, 1, 3, 4)
    text = {
        name: (golden_input(name, (len(latents), length, DIMS[name]), reference["salt"]), None)
        for name, length in zip(DIMS, reference["text_lengths"], strict=True)
    }
    return latents, 1 - np.array(reference["timesteps"], np.float32) / 1000, text


def test_velocity_equals_the_seed_s():
    arrays, cfg, reference, expected = golden()
    velocity = transformer.apply(seed.transformer(arrays, cfg), cfg, *golden_inputs(reference))
    np.testing.assert_allclose(velocity.asnumpy().transpose(0, 2, 1, 3, 4), expected, atol=1e-4)


@pytest.mark.parametrize("prefix", ["network.model.", "network.network.model.", "ema.", "ema.network.model.", "model."])
def test_prefixes_and_dtypes(prefix):
    arrays, cfg, *_ = golden()
    plain = seed.transformer(arrays, cfg)
    rounded = {prefix + name: value.astype(ml_dtypes.bfloat16) for name, value in arrays.items()}
    params = seed.transformer(rounded, cfg)
    assert params.keys() == plain.keys()
    for path, value in params.items():
        np.testing.assert_allclose(value.asnumpy(), plain[path].asnumpy(), rtol=2**-8)


def test_convolutional_patch_embedder_flattens_to_the_same():
    arrays, cfg, *_ = golden()
    plain = seed.transformer(arrays, cfg)["patch"].asnumpy()
    name = "latent_embedder.proj.weight"
    conv = seed.transformer(arrays | {name: arrays[name].reshape(64, 16, 1, 2, 2)}, cfg)["patch"].asnumpy()
    np.testing.assert_array_equal(conv, plain)


def test_position_tables_of_another_length_are_interpolated():
    arrays, cfg, *_ = golden()
    cfg.position_lengths = (8, 15, 3)
    params = seed.transformer(arrays, cfg)
    for axis, length in zip("thw", cfg.position_lengths, strict=True):
        table = arrays[f"pos_embedding_table_{axis}.embedding_table"]
        at = np.linspace(0, 7, length)
        expected = np.stack([np.interp(at, np.arange(8), column) for column in table.T], 1)
        np.testing.assert_allclose(params[f"position/{axis}"].asnumpy(), expected, atol=1e-6)


def test_everything_that_does_not_fit_is_named_at_once():
    arrays, cfg, *_ = golden()
    del arrays["layers.1.mlp.up_proj.weight"]
    arrays["layers.2.mlp.up_proj.weight"] = np.zeros((128, 64))
    arrays["layers.0.mlp.bias"] = np.zeros(64)
    arrays["final_layer.proj.weight"] = np.zeros((32, 64))
    with pytest.raises(ConfigError) as error:
        seed.transformer(arrays, cfg)
    message = str(error.value)
    assert "missing: blocks/1/mlp/up;" in message
    assert "extra: blocks/2/mlp/up, layers.0.mlp.bias;" in message
    assert "final/proj is (32, 64), expected (64, 64)" in message
    assert "compat" not in message


def test_a_paper_config_points_to_compat():
    arrays, cfg, *_ = golden()
    cfg.cross_attention_norm, cfg.text_norm = True, "layer"
    with pytest.raises(ConfigError, match=r"blocks/0/cross/norm.*text/ul2/norm_bias.*compat='seed'"):
        seed.transformer(arrays, cfg)


def test_two_sets_of_weights_in_one_file():
    arrays, cfg, *_ = golden()
    name = "adaLN_modulation.1.weight"
    both = {"network.model." + k: v for k, v in arrays.items()} | {"ema." + name: arrays[name]}
    with pytest.raises(ConfigError, match=rf"'network.model.{name}' and 'ema.{name}'"):
        seed.transformer(both, cfg)
