import re

import numpy as np
import pytest

from moviegen.errors import ConfigError
from moviegen.models.transformer.shapes import SequenceShard, parameter_dtypes, recomputed, shapes
from moviegen.parallel.mesh import Group
from tests.models.transformer.tiny_transformer import config


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"num_heads": 3}, "num_heads is 3"),
        ({"text_norm": "batch"}, "text_norm is 'batch'"),
        ({"patch_size": (2, 2)}, "patch_size is"),
        ({"text_dims": {"t5": 4}}, "text_dims names t5=4"),
        ({"text_dims": {"ul2": 0}}, "text_dims names ul2=0: .*0 for those left out"),
    ],
)
def test_impossible_configs_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        shapes(config(**overrides))


def test_matrices_of_products_in_the_compute_dtype_are_the_only_ones_in_it():
    """The time embedding and modulation are multiplied in float32."""
    lower = r"(patch|final/proj|text/\w+/proj|blocks/\d/(attn|cross)/[qkvo]|blocks/\d/mlp/(gate|up|down))"
    for dtype in ("bfloat16", "float16"):
        for path, kind in parameter_dtypes(config(compute_dtype=dtype)).items():
            assert kind == (dtype if re.fullmatch(lower, path) else "float32"), path
    assert set(parameter_dtypes(config(compute_dtype="bfloat16_simulated")).values()) == {"float32"}
    assert set(parameter_dtypes(config()).values()) == {"float32"}


def test_an_encoder_of_width_0_has_no_parameters():
    whole, without = shapes(config()), shapes(config(text_dims={"ul2": 24, "metaclip": 0, "byt5": 12}))
    assert whole.keys() - without.keys() == {f"text/metaclip/{leaf}" for leaf in ("proj", "norm", "norm_bias")}


def test_the_shards_of_a_sequence_are_equal_and_in_order():
    found = [SequenceShard((2, 3, 4), Group("", 5, rank)) for rank in range(5)]
    assert {(shard.patches, shard.tokens, shard.padding) for shard in found} == {(24, 5, 1)}
    np.testing.assert_array_equal(np.concatenate([shard.indices() for shard in found]), np.arange(25))


@pytest.mark.parametrize("grid, size", [((2, 3, 4), 1), ((2, 3, 4), 2), ((3, 3, 4), 5), ((3, 5, 2), 4), ((1, 2, 2), 3)])
def test_a_shard_is_a_few_boxes_of_the_grid_in_order(grid, size):
    index = np.arange(np.prod(grid)).reshape(grid)
    for rank in range(size):
        shard = SequenceShard(grid, Group("", size, rank))
        found = [index[tuple(slice(*edges) for edges in box)].ravel() for box in shard.boxes()]
        own = shard.indices()
        np.testing.assert_array_equal(np.concatenate([[], *found]), own[own < shard.patches])
        assert len(found) <= 5


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("all", [0, 1, 2, 3, 4]), ("1", [0, 1, 2, 3, 4]), ("2", [0, 2, 4]), (3, [0, 3]), ("9", [0]), ("none", [])],
)
def test_which_blocks_are_computed_again(policy, expected):
    assert [*recomputed(policy, 5)] == expected
