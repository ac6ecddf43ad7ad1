import functools

import mindspore as ms
import numpy as np
import pytest

from moviegen.errors import ConfigError
from moviegen.models.transformer import model as transformer
from tests.models.transformer.tiny_transformer import (
    LENGTHS,
    config,
    inputs,
    numpy_velocity,
    random_params,
    seed_config,
)


def test_init_follows_the_recipe():
    cfg = config(hidden_size=64, num_heads=4, ffn_size=96)
    params = {path: value.asnumpy() for path, value in transformer.init(cfg, 0).items()}
    assert {path: value.shape for path, value in params.items()} == transformer.shapes(cfg)
    for path, value in params.items():
        assert value.dtype == np.float32
        if path.endswith("/norm"):
            assert (value == 1).all()
        elif path.endswith("norm_bias") or path in ("modulation", "final/proj"):
            assert not value.any()
        else:
            std = 1 / 8 if path.endswith("/modulation") else 0.3 if path.startswith("position/") else 0.05
            assert value.std() == pytest.approx(std, rel=5 / value.size**0.5), path
    assert not np.array_equal(params["blocks/0/attn/q"], params["blocks/1/attn/q"])


def test_init_of_a_parameter_depends_on_seed_and_path_alone():
    one, deeper, other = (
        transformer.init(cfg, seed) for cfg, seed in ((seed_config(), 0), (config(num_layers=3), 0), (seed_config(), 1))
    )
    for path in one:
        np.testing.assert_array_equal(one[path].asnumpy(), deeper[path].asnumpy())
    assert not np.array_equal(one["patch"].asnumpy(), other["patch"].asnumpy())


def test_velocity_is_zero_at_init():
    cfg = config()
    assert not transformer.apply(transformer.init(cfg, 0), cfg, *inputs()).asnumpy().any()


@pytest.mark.parametrize("cfg", [config(), seed_config()], ids=["paper", "seed"])
@pytest.mark.parametrize("masked", [True, False])
def test_velocity_equals_a_numpy_model(cfg, masked):
    params = random_params(cfg)
    latents, t, text = inputs(masked)
    velocity = transformer.apply(params, cfg, latents, t, text).asnumpy()
    assert velocity.shape == latents.shape
    np.testing.assert_allclose(velocity, numpy_velocity(params, cfg, latents, t, text), atol=2e-4)


def test_padded_text_with_a_mask_equals_trimmed_text():
    cfg = config()
    params, (latents, t, text) = random_params(cfg), inputs(masked=False)
    keep = {"ul2": 3, "metaclip": 2, "byt5": 1}
    trimmed = {name: (values[:, : keep[name]], None) for name, (values, _) in text.items()}
    masked = {
        name: (values, np.tile(np.arange(LENGTHS[name]) < keep[name], (2, 1))) for name, (values, _) in text.items()
    }
    expected, same, unmasked = (
        transformer.apply(params, cfg, latents, t, x).asnumpy() for x in (trimmed, masked, text)
    )
    np.testing.assert_allclose(same, expected, atol=1e-5)
    assert abs(unmasked - expected).max() > 1e-2


def test_texts_that_are_wholly_masked():
    """However long they are: with padding behind them they are packed, and something is left to attend to."""
    cfg = config()
    params, (latents, t, text) = random_params(cfg), inputs()
    nothing = {name: (values, np.zeros(mask.shape)) for name, (values, mask) in text.items()}
    expected = transformer.apply(params, cfg, latents, t, nothing).asnumpy()
    longer = {
        name: (np.tile(values, (1, 30, 1)), np.zeros((2, 30 * LENGTHS[name]))) for name, (values, _) in text.items()
    }
    found = transformer.apply(params, cfg, latents, t, longer).asnumpy()
    assert np.isfinite(found).all() and found.any()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_encoder_of_width_0_is_left_out():
    cfg = config(text_dims={"ul2": 24, "metaclip": 0, "byt5": 12})
    latents, t, text = inputs()
    del text["metaclip"]
    params = transformer.init(cfg, 0)
    assert transformer.apply(params, cfg, latents, t, text).shape == latents.shape


def test_samples_do_not_see_each_other():
    cfg = config()
    params, (latents, t, text) = random_params(cfg), inputs()
    before = transformer.apply(params, cfg, latents, t, text).asnumpy()
    latents[1], t[1] = -latents[1], 1 - t[1]
    for values, mask in text.values():
        values[1], mask[1] = -values[1], True
    after = transformer.apply(params, cfg, latents, t, text).asnumpy()
    np.testing.assert_array_equal(after[0], before[0])
    assert abs(after[1] - before[1]).max() > 1e-2


def test_an_image_is_one_frame():
    cfg = config()
    params, (latents, t, text) = random_params(cfg), inputs(frames=1)
    velocity = transformer.apply(params, cfg, latents, t, text).asnumpy()
    np.testing.assert_allclose(velocity, numpy_velocity(params, cfg, latents, t, text), atol=2e-4)


def test_numpy_and_tensors_are_taken_alike():
    cfg = config()
    params, (latents, t, text) = random_params(cfg), inputs()
    expected = transformer.apply(params, cfg, latents, t, text)
    assert isinstance(expected, ms.Tensor) and expected.dtype == ms.float32
    tensors = {name: (ms.Tensor(values), ms.Tensor(mask)) for name, (values, mask) in text.items()}
    params = {path: ms.Tensor(value) for path, value in params.items()}
    velocity = transformer.apply(params, cfg, ms.Tensor(latents), ms.Tensor(t), tensors)
    np.testing.assert_array_equal(velocity.asnumpy(), expected.asnumpy())


def test_bfloat16_on_cpu_is_refused_with_the_way_out():
    cfg = config(compute_dtype="bfloat16")
    with pytest.raises(ConfigError, match="bfloat16_simulated"):
        transformer.apply(random_params(cfg), cfg, *inputs())


def wrong_inputs():
    latents, t, text = inputs()
    zeros = functools.partial(np.zeros, dtype=np.float32)
    yield zeros((2, 3, 2, 4, 7)), t, text, r"7 along w.*patch_size\[2\] = 2"
    yield zeros((2, 3, 2, 10, 6)), t, text, r"5 patches along h, position_lengths\[1\] is 4"
    yield zeros((2, 3, 4, 4, 6)), t, text, r"4 patches along t, position_lengths\[0\] is 3"
    yield zeros((2, 4, 2, 4, 6)), t, text, r"\(2, 4, 2, 4, 6\), expected \(b 3 t h w\)"
    yield latents, t[:1], text, r"times have shape \(1,\)"
    yield latents, t, {"ul2": text["ul2"]}, "expected the encoders of text_dims"
    yield latents, t, text | {"ul2": (zeros((2, 5, 7)), None)}, r"'ul2' has shape \(2, 5, 7\), expected \(2 l 24\)"
    yield latents, t, text | {"byt5": (text["byt5"][0], zeros((2, 4)))}, r"'byt5' has a mask of shape \(2, 4\)"


@pytest.mark.parametrize("latents, t, text, message", list(wrong_inputs()))
def test_wrong_inputs_are_named(latents, t, text, message):
    cfg = config()
    with pytest.raises(ConfigError, match=message):
        transformer.apply(random_params(cfg), cfg, latents, t, text)


def test_parameters_of_another_config_are_named():
    params = random_params(config())
    with pytest.raises(ConfigError, match="position/h has 4 rows.*interpolate_positions"):
        transformer.apply(params, config(position_lengths=(3, 8, 5)), *inputs())
    with pytest.raises(ConfigError, match=r"unknown \['blocks/0/cross/norm'"):
        transformer.apply(params, seed_config(), *inputs())


def test_position_tables_grow_linearly_and_keep_their_ends():
    cfg = config()
    params = random_params(cfg)
    larger = config(position_lengths=(3, 7, 9))
    grown = transformer.interpolate_positions(params, larger)
    assert {path: tuple(value.shape) for path, value in grown.items()} == transformer.shapes(larger)
    for axis, old, new in (("h", 4, 7), ("w", 5, 9)):
        table, value = params[f"position/{axis}"], grown[f"position/{axis}"].asnumpy()
        np.testing.assert_allclose(value[:: (new - 1) // (old - 1)], table, atol=1e-6)
        np.testing.assert_allclose(value[1::2], (table[:-1] + table[1:]) / 2, atol=1e-6)
    for path in params:
        if path not in ("position/h", "position/w"):
            np.testing.assert_array_equal(grown[path].asnumpy(), params[path])
    assert np.isfinite(transformer.apply(grown, larger, *inputs()).asnumpy()).all()
