"""The pieces that reorder and modulate, against einops and numpy; the whole is held in test_model.py and test_step.py."""

import mindspore as ms
import numpy as np
import pytest
from einops import rearrange

from moviegen.models.transformer import stages
from moviegen.models.transformer.shapes import SequenceShard
from moviegen.nn import layerwise
from moviegen.parallel.comm import LOCAL
from moviegen.parallel.mesh import Group
from tests.models.transformer.tiny_transformer import config


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shards(grid, size):
    """Every rank's shard of a sequence."""
    return [SequenceShard(grid, Group("", size, rank)) for rank in range(size)]


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


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_take_the_sequence_in_order(size):
    tokens = draw(0, 2, 24, 3)
    found = np.concatenate(
        [stages.make_take(shard)(ms.Tensor(tokens)).asnumpy() for shard in shards((2, 3, 4), size)], 1
    )
    np.testing.assert_array_equal(found[:, :24], tokens)
    assert not found[:, 24:].any()


def test_modulation():
    x, shift, scale = draw(2, 2, 3, 4), draw(3, 2, 1, 4), draw(4, 2, 1, 4)
    found = stages.modulate(*map(ms.Tensor, (x, shift, scale))).asnumpy()
    np.testing.assert_allclose(found, x * (1 + scale) + shift, atol=1e-6)


def test_the_loss_is_that_of_the_velocity():
    """It compares patches in the order of the projection; the velocity is put together from the same."""
    p = {"modulation": draw(5, 2, 8), "norm": draw(6, 8), "proj": draw(7, 12, 8)}
    x, time, target = draw(8, 2, 6, 8), draw(9, 2, 8), draw(10, 2, 3, 1, 4, 6)
    shard = SequenceShard((1, 2, 3))
    velocity = layerwise.run(stages.make_epilogue((1, 2, 2), shard, 1e-5, "float32"), p, x, time).asnumpy()
    loss, each = layerwise.run(stages.make_loss((1, 2, 2), shard, 1, 1e-5, "float32"), p, x, time, target)
    assert velocity.shape == target.shape
    assert float(loss) == pytest.approx(((velocity - target) ** 2).mean(), rel=1e-5)
    np.testing.assert_allclose(each.asnumpy(), ((velocity - target) ** 2).mean((1, 2, 3, 4)) / 2, rtol=1e-5)


def test_shares_of_the_loss_add_up_to_it():
    p = {"modulation": draw(5, 2, 8), "norm": draw(6, 8), "proj": draw(7, 12, 8)}
    x, time, target = draw(8, 2, 6, 8), draw(9, 2, 8), draw(10, 2, 3, 1, 4, 6)

    def share(shard, batches, x):
        loss = stages.make_loss((1, 2, 2), shard, batches, 1e-5, "float32")
        found, each = layerwise.run(loss, p, x, time, target)
        assert float(found) == pytest.approx(each.asnumpy().sum(), rel=1e-5)
        return each.asnumpy()

    whole = share(SequenceShard((1, 2, 3)), 1, x)
    np.testing.assert_allclose(share(SequenceShard((1, 2, 3)), 3, x), whole / 3, rtol=1e-5)
    for size in (2, 4):  # with 4 ranks the last two tokens are padding
        each = shards((1, 2, 3), size)
        shares = [share(shard, 1, stages.make_take(shard)(ms.Tensor(x))) for shard in each]
        np.testing.assert_allclose(sum(shares), whole, rtol=1e-5)


def test_equal_settings_give_the_same_function():
    """Else every layer would be compiled by itself, and a tall picture besides the wide one."""
    made = [stages.build(config(), (1, 3, 2, *sides), True, LOCAL) for sides in ((4, 6), (4, 6), (6, 4))]
    assert made[0] == made[1] and made[0].block is made[2].block and made[0].parts == made[2].parts


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_token_s_position_is_the_sum_of_three_rows(size):
    rng = np.random.default_rng(0)
    tables = {
        f"position/{axis}": rng.standard_normal((n, 5), dtype=np.float32) for axis, n in (("t", 3), ("h", 4), ("w", 6))
    }
    t, h, w = (tables[f"position/{axis}"] for axis in "thw")
    expected = np.array([t[i] + h[j] + w[k] for i in range(2) for j in range(3) for k in range(4)])
    p = {path: ms.Tensor(table) for path, table in tables.items()}
    shards = [SequenceShard((2, 3, 4), Group("", size, rank)) for rank in range(size)]
    found = [stages.make_positions(shard)(p).asnumpy()[0] for shard in shards]
    np.testing.assert_allclose(np.concatenate(found)[:24], expected, atol=1e-6)
    assert not np.concatenate(found)[24:].any() and len({len(each) for each in found}) == 1
