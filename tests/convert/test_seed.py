import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import common
from moviegen.convert import seed
from moviegen.errors import ConfigError
from moviegen.models.tae import model as tae
from moviegen.models.transformer import model as transformer
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


# ---- the autoencoder

TAE_CFG = common.tae("full", compat="seed", base_channels=32)


@pytest.fixture
def tae_arrays():
    found = {}
    for entry in np.load(GOLDEN.with_name("tae.npz"))["names"]:
        name, shape = re.fullmatch(r"(\S+) \((.*)\)", str(entry)).groups()
        found[name] = golden_array(name, [int(n) for n in shape.split(",") if n.strip()])
    return found


def without_unused(arrays):
    return {name: value for name, value in arrays.items() if ".temb_proj." not in name}


def same(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path].asnumpy(), value.asnumpy(), err_msg=path)


def test_tae_takes_every_array_once(tae_arrays):
    params = seed.tae(tae_arrays, TAE_CFG)
    assert {path: value.shape for path, value in params.items()} == tae.shapes(TAE_CFG)
    used = sorted(value.asnumpy().tobytes() for value in params.values())
    assert used == sorted(value.tobytes() for value in without_unused(tae_arrays).values())


def test_tae_places(tae_arrays):
    params = seed.tae(tae_arrays, TAE_CFG)
    places = {
        "encoder.down.1.block.0.nin_shortcut.conv_temp.weight": "encoder/down/1/block/0/shortcut/temporal/w",
        "encoder.down.2.downsample_temp.conv.weight": "encoder/down/2/downsample/temporal/w",
        "decoder.up.3.upsample_spat.conv.bias": "decoder/up/3/upsample/spatial/b",
        "decoder.up.0.block.2.norm2.gamma": "decoder/up/0/block/2/norm2/scale",
        "encoder.mid.attn_1.0.proj_out.weight": "encoder/mid/spatial_attention/out/w",
        "decoder.mid.attn_1.1.to_k.bias": "decoder/mid/temporal_attention/k/b",
        "encoder.mid.attn_1.1.norm.beta": "encoder/mid/temporal_attention/norm/bias",
        "decoder.mid.block_2.conv1.conv_spat.weight": "decoder/mid/block/1/conv1/spatial/w",
        "decoder.norm_out.beta": "decoder/head/norm/bias",
        "encoder.conv_out.conv_temp.bias": "encoder/head/conv/temporal/b",
    }
    for name, path in places.items():
        np.testing.assert_array_equal(params[path].asnumpy(), tae_arrays[name].reshape(params[path].shape), name)


@pytest.mark.parametrize("prefix", ["autoencoder.", "network.autoencoder.", "ema.model.", "model."])
def test_tae_prefixes_and_half_floats(tae_arrays, prefix):
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in tae_arrays.items()}
    same(seed.tae({prefix + name: value for name, value in half.items()}, TAE_CFG), seed.tae(half, TAE_CFG))


def test_tae_with_the_wrapper_s_name_inside(tae_arrays):
    def wrapped(name):
        module, _, leaf = name.rpartition(".")
        return f"autoencoder.{module}._backbone.{leaf}" if "norm" in module or "sample" in module else name

    renamed = {wrapped(name): value for name, value in tae_arrays.items()}
    assert any("_backbone" in name for name in renamed)
    same(seed.tae(renamed, TAE_CFG), seed.tae(tae_arrays, TAE_CFG))


def test_tae_without_the_unused_projections(tae_arrays):
    assert len(without_unused(tae_arrays)) == len(tae_arrays) - 48
    same(seed.tae(without_unused(tae_arrays), TAE_CFG), seed.tae(tae_arrays, TAE_CFG))


def test_tae_with_plain_temporal_kernels_and_projections(tae_arrays):
    flat = {
        name: value[:, :, 0] if value.shape[2:3] == (1,) and "attn" not in name and "spat" not in name else value
        for name, value in tae_arrays.items()
    }
    flat = {name: v.reshape(v.shape[:2]) if ".attn_1.0." in name and v.ndim == 4 else v for name, v in flat.items()}
    assert {v.ndim for name, v in flat.items() if "temp.weight" in name or "sample_temp" in name} == {1, 3}
    same(seed.tae(flat, TAE_CFG), seed.tae(tae_arrays, TAE_CFG))


def test_tae_that_does_not_fit_is_named_at_once(tae_arrays):
    del tae_arrays["decoder.conv_in.conv_temp.weight"]
    tae_arrays["quant_conv.conv_spat.weight"] = np.zeros((32, 32, 1, 1))
    tae_arrays["encoder.norm_out.gamma"] = np.zeros(64)
    with pytest.raises(ConfigError) as error:
        seed.tae(tae_arrays, TAE_CFG)
    message = str(error.value)
    assert "missing: decoder/conv_in/temporal/w;" in message
    assert "extra: quant_conv/spatial/w;" in message
    assert "encoder/head/norm/scale is (64,), expected (128,)" in message


def test_tae_of_two_sets_of_weights_in_one_file(tae_arrays):
    name = "encoder.norm_out.gamma"
    with pytest.raises(ConfigError, match=rf"'{name}' and 'ema.{name}'"):
        seed.tae(tae_arrays | {"ema." + name: tae_arrays[name]}, TAE_CFG)
