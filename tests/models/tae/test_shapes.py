import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import common
from moviegen.errors import ConfigError
from moviegen.models.tae.shapes import parameter_dtypes, plan, shapes
from tests.models.tae.tiny_tae import tiny


def test_blocks_are_in_order_of_execution():
    cfg = common.tae("tiny", base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=4)
    encoder = [
        ("conv", "encoder/conv_in", 3, 8, None),
        ("residual", "encoder/down/0/block/0", 8, 8, 0),
        ("downsample", "encoder/down/0/downsample", 8, 8, 0),
        ("residual", "encoder/down/1/block/0", 8, 16, 1),
        ("residual", "encoder/mid/block/0", 16, 16, None),
        ("spatial_attention", "encoder/mid/spatial_attention", 16, 16, None),
        ("temporal_attention", "encoder/mid/temporal_attention", 16, 16, None),
        ("residual", "encoder/mid/block/1", 16, 16, None),
        ("head", "encoder/head", 16, 2 * cfg.latent_channels, None),
    ]
    assert plan(cfg, "encoder") == encoder
    decoder = [(kind, prefix.removeprefix("decoder/")) for kind, prefix, *_ in plan(cfg, "decoder")]
    middle = [(kind, prefix.removeprefix("encoder/")) for kind, prefix, *_ in encoder[4:8]]
    up = [("residual", "up/1/block/0"), ("residual", "up/1/block/1"), ("upsample", "up/1/upsample")]
    up += [("residual", "up/0/block/0"), ("residual", "up/0/block/1")]
    assert decoder == [("conv", "conv_in"), *middle, *up, ("head", "head")]
    assert plan(cfg, "decoder")[-1] == ("head", "decoder/head", 8, 3, None)


def test_norms_alone_stay_in_float32():
    adversarial = ConfigDict(dict(dims=3, channels=4))
    for dtype in ("bfloat16", "float16"):
        found = parameter_dtypes(tiny(compute_dtype=dtype), adversarial)
        assert found.keys() == shapes(tiny(), adversarial).keys()
        for path, kind in found.items():
            assert kind == (
                "float32" if path.endswith(("scale", "norm/bias", "norm1/bias", "norm2/bias")) else dtype
            ), path
    assert set(parameter_dtypes(tiny(compute_dtype="bfloat16_simulated")).values()) == {"float32"}


def test_full_size_has_the_seed_s_parameters():
    total = sum(int(np.prod(shape)) for shape in shapes(common.tae("full")).values())
    assert total / 1e6 == pytest.approx(119.13 - 4.66, abs=0.011)  # without its unused projections


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"norm_groups": 3}, r"tae.norm_groups is 3.*8 x 1 = 8"),
        ({"temporal_upsample_padding": "reflect"}, r"tae.temporal_upsample_padding is 'reflect'"),
    ],
)
def test_impossible_configs_are_named(overrides, message):
    cfg = tiny()
    cfg.update(overrides)
    with pytest.raises(ConfigError, match=message):
        shapes(cfg)


@pytest.mark.parametrize("key, value", [("dims", 1), ("channels", 0)])
def test_an_impossible_discriminator_is_named(key, value):
    adversarial = ConfigDict(dict(weight=0.5, start=0, dims=3, channels=2) | {key: value})
    with pytest.raises(ConfigError, match=f"loss.adversarial.{key} is {value}"):
        shapes(tiny(), adversarial)
