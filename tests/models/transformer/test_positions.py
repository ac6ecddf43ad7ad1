import mindspore as ms
import numpy as np
import pytest

from moviegen.models.transformer import model as transformer
from moviegen.models.transformer.positions import interpolate_positions, make_positions
from moviegen.models.transformer.shapes import SequenceShard
from moviegen.nn.positions import resize_table
from moviegen.parallel.mesh import Group
from tests.models.transformer.tiny_transformer import config, inputs, random_params


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
    found = [make_positions(shard, (3, 4, 6))(p).asnumpy()[0] for shard in shards]
    np.testing.assert_allclose(np.concatenate(found)[:24], expected, atol=1e-6)
    assert not np.concatenate(found)[24:].any() and len({len(each) for each in found}) == 1


def test_position_tables_grow_linearly_and_keep_their_ends():
    cfg = config()
    params = random_params(cfg)
    larger = config(position_lengths=(3, 7, 9))
    grown = interpolate_positions(params, larger)
    assert {path: tuple(value.shape) for path, value in grown.items()} == transformer.shapes(larger)
    for axis, old, new in (("h", 4, 7), ("w", 5, 9)):
        table, value = params[f"position/{axis}"], grown[f"position/{axis}"].asnumpy()
        np.testing.assert_allclose(value[:: (new - 1) // (old - 1)], table, atol=1e-6)
        np.testing.assert_allclose(value[1::2], (table[:-1] + table[1:]) / 2, atol=1e-6)
    for path in params:
        if path not in ("position/h", "position/w"):
            np.testing.assert_array_equal(grown[path].asnumpy(), params[path])
    assert np.isfinite(transformer.apply(grown, larger, *inputs()).asnumpy()).all()


def test_a_table_of_one_row_is_repeated():
    table = np.arange(4.0).reshape(1, 4)
    np.testing.assert_array_equal(resize_table(table, 3), np.repeat(table, 3, 0))
