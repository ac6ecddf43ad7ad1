import math

import pytest

from experiments import common
from moviegen.errors import ConfigError
from moviegen.models.transformer import model as transformer

TRANSFORMER_KEYS = (
    "hidden_size num_layers num_heads ffn_size latent_channels patch_size position_lengths text_dims norm_eps "
    "cross_attention_norm text_norm weight_std position_std compute_dtype"
).split()
TAE_KEYS = (
    "base_channels channel_multipliers num_res_blocks latent_channels norm_groups temporal_attention "
    "temporal_upsample_padding spatial_tile latent_shift latent_scale compute_dtype"
).split()


@pytest.mark.parametrize(("size", "count"), [("1b", 934_290_432), ("5b", 4_921_706_496), ("30b", 29_303_672_832)])
def test_sizes_of_the_seeds_models(size, count):
    """Counts and the number of tensors (14 a layer and 16 more) were read off the seed's models."""
    config = common.transformer(size, compat="seed", position_lengths=(128, 64, 64))
    shapes = transformer.shapes(config)
    assert sum(math.prod(shape) for shape in shapes.values()) == count
    assert len(shapes) == 14 * config.num_layers + 16


def test_compat():
    paper, seed = common.transformer("1b"), common.transformer("1b", compat="seed")
    assert (paper.cross_attention_norm, paper.text_norm) == (True, "layer")
    assert (seed.cross_attention_norm, seed.text_norm) == (False, "rms")
    assert common.tae().temporal_upsample_padding == "replicate"
    assert common.tae(compat="seed").temporal_upsample_padding == "zeros"


@pytest.mark.parametrize("size", common.TRANSFORMERS)
def test_transformer_presets(size):
    config = common.transformer(size, norm_eps=0.5)
    assert set(config) == set(TRANSFORMER_KEYS)
    assert config.norm_eps == 0.5
    assert config.hidden_size % config.num_heads == 0


@pytest.mark.parametrize("preset", common.TAES)
def test_tae_presets(preset):
    config = common.tae(preset, latent_shift=(0.1, 0.2))
    assert set(config) == set(TAE_KEYS)
    assert config.latent_shift == (0.1, 0.2)
    assert len(config.channel_multipliers) == 4  # three halvings: 8x8x8
    assert all(config.base_channels * m % config.norm_groups == 0 for m in config.channel_multipliers)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: common.transformer("2b"), "'2b' does not exist.*30b, 5b, 1b, tiny"),
        (lambda: common.transformer("1b", hidden=3), "no setting 'hidden'.*'hidden_size'"),
        (lambda: common.transformer("1b", compat="sead"), "compat is 'sead'"),
        (lambda: common.tae("big"), "tae preset 'big' does not exist"),
        (lambda: common.tae(latent_shifts=1.0), "no setting 'latent_shifts'.*'latent_shift'"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
