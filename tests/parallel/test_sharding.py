"""Cutting and putting together without other ranks; the exchange itself is in tests/distributed."""

import numpy as np
import pytest

from moviegen.parallel import sharding
from moviegen.parallel.mesh import Group

SHAPES = [(8, 3), (3, 8), (6, 24), (5, 7), (2, 3), (7,), (1,), (4, 4, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shards_are_equal_and_hold_everything_once(shape, size):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 10
    groups = [Group("", size, rank) for rank in range(size)]
    shards = [sharding.cut(array, group) for group in groups]
    assert {shard.shape for shard in shards} == {sharding.shard_shape(shape, size)}
    joined = np.concatenate(shards, sharding.axis(shape, size))
    inside = tuple(slice(0, n) for n in shape)
    np.testing.assert_array_equal(joined[inside], array)
    joined[inside] = 0
    assert not joined.any()  # the rest is padding
    seen = np.zeros(shape, int)
    for group, shard in zip(groups, shards, strict=True):
        where = sharding.bounds(shape, group)
        seen[where] += 1
        np.testing.assert_array_equal(sharding.pad(array[where], shape, group), shard)
        np.testing.assert_array_equal(sharding.part(shape, shard, group).array, array[where])
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("shape", "size", "axis"), [((8, 8), 4, 0), ((6, 8), 4, 1), ((5, 4, 8), 8, 2), ((7, 9), 2, 1), ((3,), 8, 0)]
)
def test_the_axis_with_the_least_padding_is_cut(shape, size, axis):
    assert sharding.axis(shape, size) == axis
