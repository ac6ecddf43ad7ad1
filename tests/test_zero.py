"""Packing and unpacking of messages without other ranks; the exchange itself is in tests/distributed."""

import mindspore as ms
import numpy as np
import pytest

from moviegen import backend, sharding, zero
from moviegen.mesh import Group

SHAPES = [(8, 3), (3, 8), (6, 24), (5, 7), (2, 3), (7,), (1,), (4, 4, 3), (3, 3, 5)]


def array(shape):
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_row_is_a_shard_and_joining_gives_the_tensor_back(shape, size):
    x = array(shape)
    found = zero.rows(backend.tensor(x), size)
    for rank in range(size):
        group = Group("", size, rank)
        expected = sharding.cut(x, group)
        np.testing.assert_array_equal(found.asnumpy()[rank], expected.ravel())
        np.testing.assert_array_equal(zero.own({"x": backend.tensor(x)}, group)["x"].asnumpy(), expected)
    np.testing.assert_array_equal(zero.join(found, shape).asnumpy(), x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stage_on_shards_is_given_the_whole_parameters(monkeypatch, dtype):
    """The other rank's shards come out of a table in place of a gather."""
    monkeypatch.setattr(zero, "BUCKET", 60)
    tree = {"norm": (5,), "q": (4, 6), "modulation": (2, 3), "wide": (9, 9)}
    whole = {path: array(shape) for path, shape in tree.items()}
    groups = [Group("", 2, rank) for rank in range(2)]
    sent = []

    def pretend(group, axis=0):
        def gather(x):
            sent.append((x.shape, str(x.dtype)))
            paths = next(b for b in all_buckets if sum(np.prod(sharding.shard_shape(tree[p], 2)) for p in b) == x.size)
            shards = [np.concatenate([sharding.cut(whole[p], g).ravel() for p in paths]) for g in groups]
            return ms.Tensor(np.concatenate(shards)).astype(x.dtype)

        return gather

    monkeypatch.setattr(zero.collectives, "all_gather", pretend)
    monkeypatch.setattr(zero, "_make_dict", lambda paths, values: dict(zip(paths, values, strict=True)))  # of graphs
    zero._gather.cache_clear()
    lower = [item for item in tree.items() if dtype == "bfloat16" and item[0] in ("q", "wide")]
    all_buckets = [*zero.buckets(lower), *zero.buckets(item for item in tree.items() if item not in lower)]

    def stage(p, x):
        return {path: value.astype(ms.float32) for path, value in p.items()} | {"x": x}

    fn = zero.gathered(stage, groups[0], tuple(tree.items()), dtype)
    found = fn({path: backend.tensor(sharding.cut(value, groups[0])) for path, value in whole.items()}, 7)
    assert found.pop("x") == 7 and found.keys() == whole.keys()
    for path, value in whole.items():
        tolerance = 2**-8 if path in dict(lower) else 0
        np.testing.assert_allclose(found[path].asnumpy(), value, rtol=tolerance, err_msg=path)
    assert len(sent) == len(all_buckets) < len(tree)
    assert sum("BFloat16" in kind for _, kind in sent) == len(zero.buckets(lower))
    zero._gather.cache_clear()
    zero.gathered.cache_clear()


def test_small_tensors_travel_together_and_a_large_one_alone(monkeypatch):
    monkeypatch.setattr(zero, "BUCKET", 10)
    found = zero.buckets([("a", (2, 2)), ("b", (6,)), ("c", (1,)), ("large", (30,)), ("d", (3, 3)), ("e", (1,))])
    assert found == [("a", "b"), ("c",), ("large",), ("d", "e")]


def test_only_matrices_travel_in_the_compute_dtype():
    kept = ["blocks/0/attn/norm", "blocks/0/modulation", "modulation", "position/t"]
    assert [zero._is_matrix(path, (4, 4) if "norm" not in path else (4,)) for path in kept] == [False] * 4
    assert zero._is_matrix("blocks/0/attn/q", (4, 4)) and zero._is_matrix("text/ul2/proj", (4, 8))
