"""The image autoencoder's names and arrays; that the result computes the same is in tests/models/test_tae.py."""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from experiments import common
from moviegen.convert import sd35
from moviegen.errors import ConfigError
from moviegen.models.tae import model as tae
from tests.golden.recipe import golden_array

GOLDEN = Path(__file__).parents[1] / "golden" / "sd35_vae.npz"
CFG = common.tae("full", base_channels=32)


@pytest.fixture
def arrays():
    found = {}
    for entry in np.load(GOLDEN)["names"]:
        name, shape = re.fullmatch(r"(\S+) \((.*)\)", str(entry)).groups()
        found[name] = golden_array(name, [int(n) for n in shape.split(",") if n.strip()])
    return found


def test_the_reference_has_the_width_of_the_config():
    assert json.loads(str(np.load(GOLDEN)["config"]))["block_out_channels"] == [
        CFG.base_channels * m for m in CFG.channel_multipliers
    ]


def test_every_parameter_comes_from_the_image_model_or_does_nothing(arrays):
    params = sd35.tae(arrays, CFG)
    assert {path: value.shape for path, value in params.items()} == tae.shapes(CFG)
    sources = {value.tobytes(): name for name, value in arrays.items()}
    used = []
    for path, value in params.items():
        value = value.asnumpy()
        assert value.dtype == np.float32
        if "/temporal" not in path:
            used.append(sources[value.tobytes()])
        elif "temporal_attention/out/" in path or path.endswith("/temporal/b"):
            assert not value.any(), path
        elif path.endswith("temporal/w"):
            assert np.array_equal(value[:, :, value.shape[2] // 2], np.eye(len(value)))
            assert np.count_nonzero(value) == len(value), path
    assert sorted(used) == sorted(arrays)  # each once


def test_places(arrays):
    params = {path: value.asnumpy() for path, value in sd35.tae(arrays, CFG).items()}
    places = {
        "encoder.down_blocks.2.resnets.1.conv2.weight": "encoder/down/2/block/1/conv2/spatial/w",
        "encoder.down_blocks.1.downsamplers.0.conv.bias": "encoder/down/1/downsample/spatial/b",
        "encoder.mid_block.attentions.0.group_norm.bias": "encoder/mid/spatial_attention/norm/bias",
        "decoder.up_blocks.0.resnets.2.norm1.weight": "decoder/up/3/block/2/norm1/scale",
        "decoder.up_blocks.2.upsamplers.0.conv.weight": "decoder/up/1/upsample/spatial/w",
        "decoder.up_blocks.3.resnets.0.conv_shortcut.weight": "decoder/up/0/block/0/shortcut/spatial/w",
        "decoder.mid_block.attentions.0.to_out.0.bias": "decoder/mid/spatial_attention/out/b",
        "decoder.mid_block.resnets.1.conv1.bias": "decoder/mid/block/1/conv1/spatial/b",
        "decoder.conv_norm_out.weight": "decoder/head/norm/scale",
        "encoder.conv_out.weight": "encoder/head/conv/spatial/w",
    }
    for name, path in places.items():
        np.testing.assert_array_equal(params[path], arrays[name], err_msg=name)


def test_projections_stored_as_convolutions_and_half_floats(arrays):
    plain = sd35.tae({name: value.astype(ml_dtypes.bfloat16) for name, value in arrays.items()}, CFG)
    name = "encoder.mid_block.attentions.0.to_q.weight"
    found = sd35.tae(
        {n: v.astype(ml_dtypes.bfloat16) for n, v in arrays.items()}
        | {name: arrays[name].astype(ml_dtypes.bfloat16)[:, :, None, None]},
        CFG,
    )
    for path in plain:
        np.testing.assert_array_equal(found[path].asnumpy(), plain[path].asnumpy())


def test_without_temporal_attention(arrays):
    cfg = common.tae("full", base_channels=32, temporal_attention=False)
    assert {path: v.shape for path, v in sd35.tae(arrays, cfg).items()} == tae.shapes(cfg)


def test_everything_that_does_not_fit_is_named_at_once(arrays):
    del arrays["decoder.conv_in.bias"]
    arrays["quant_conv.weight"] = np.zeros((32, 32, 1, 1))
    arrays["encoder.conv_out.bias"] = np.zeros(8)
    with pytest.raises(ConfigError) as error:
        sd35.tae(arrays, CFG)
    message = str(error.value)
    assert "missing: decoder/conv_in/spatial/b;" in message
    assert "extra: quant_conv/spatial/w;" in message
    assert "encoder/head/conv/spatial/b is (8,), expected (32,)" in message


def test_a_config_of_another_width_is_refused(arrays):
    with pytest.raises(ConfigError, match=r"conv_in/spatial/w is \(32, 3, 3, 3\), expected \(128, 3, 3, 3\)"):
        sd35.tae(arrays, common.tae("full"))
