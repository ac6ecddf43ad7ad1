"""The pieces that reorder and modulate, against einops and numpy; the whole is held in test_transformer.py."""

import mindspore as ms
import numpy as np
import pytest
from einops import rearrange

from moviegen import layerwise
from moviegen.models import transformer_stages as stages


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3)])
@pytest.mark.parametrize("channels_first", [True, False])
def test_patches_are_in_the_order_of_einops(patch, channels_first):
    latents, sizes = draw(0, 2, 3, 2, 4, 6), dict(zip(("p", "q", "r"), patch, strict=True))
    order = "c p q r" if channels_first else "p q r c"
    expected = rearrange(latents, f"b c (t p) (h q) (w r) -> b (t h w) ({order})", **sizes)
    np.testing.assert_array_equal(stages.patchify(ms.Tensor(latents), patch, channels_first).asnumpy(), expected)


def test_unpatchify_is_the_inverse():
    latents = draw(1, 2, 3, 2, 4, 6)
    tokens = stages.patchify(ms.Tensor(latents), (1, 2, 2), False)
    np.testing.assert_array_equal(stages.unpatchify(tokens, (1, 2, 2), (2, 2, 3)).asnumpy(), latents)


def test_a_token_s_position_is_the_sum_of_three_rows():
    tables = {f"position/{axis}": draw(i, n, 5) for i, (axis, n) in enumerate((("t", 3), ("h", 4), ("w", 6)))}
    found = stages.positions({path: ms.Tensor(table) for path, table in tables.items()}, 2, 3, 4).asnumpy()
    t, h, w = (tables[f"position/{axis}"] for axis in "thw")
    expected = [t[i] + h[j] + w[k] for i in range(2) for j in range(3) for k in range(4)]
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_modulation():
    x, shift, scale = draw(2, 2, 3, 4), draw(3, 2, 1, 4), draw(4, 2, 1, 4)
    found = stages.modulate(*map(ms.Tensor, (x, shift, scale))).asnumpy()
    np.testing.assert_allclose(found, x * (1 + scale) + shift, atol=1e-6)


def test_the_loss_is_that_of_the_velocity():
    """It compares patches in the order of the projection; the velocity is put together from the same."""
    p = {"modulation": draw(5, 2, 8), "norm": draw(6, 8), "proj": draw(7, 12, 8)}
    x, time, target = draw(8, 2, 6, 8), draw(9, 2, 8), draw(10, 2, 3, 1, 4, 6)
    velocity = layerwise.run(stages.make_epilogue((1, 2, 2), (1, 2, 3), 1e-5, "float32"), p, x, time).asnumpy()
    loss = layerwise.run(stages.make_loss((1, 2, 2), 1e-5, "float32"), p, x, time, target).asnumpy()
    assert velocity.shape == target.shape
    assert float(loss) == pytest.approx(((velocity - target) ** 2).mean(), rel=1e-5)


def test_equal_settings_give_the_same_function():
    """Else every layer would be compiled by itself."""
    assert stages.make_block(2, 1e-5, True, True, "float32") is stages.make_block(2, 1e-5, True, True, "float32")
