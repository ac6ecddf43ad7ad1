"""Packing and unpacking of messages without other ranks; the exchange itself is in tests/distributed."""

import mindspore as ms
import numpy as np
import pytest

from moviegen.nn import backend
from moviegen.parallel import sharding, zero
from moviegen.parallel.mesh import ONE, Group

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
def test_parameters_are_gathered_in_few_messages(monkeypatch, dtype):
    """The other rank's shards come out of a table in place of a gather."""
    monkeypatch.setattr(zero, "BUCKET", 60)
    shapes = {"modulation": (2, 3), "norm": (5,), "q": (4, 6), "wide": (9, 9)}
    arrays = {path: array(shape) for path, shape in shapes.items()}
    groups = [Group("", 2, rank) for rank in range(2)]
    lower = {"q", "wide"} if dtype == "bfloat16" else set()
    messages = [
        bucket
        for paths in (sorted(lower), sorted(shapes.keys() - lower))
        for bucket in zero.buckets((path, shapes[path]) for path in paths)
    ]
    sent = []

    def pretend(group, axis=0):
        def gather(x):
            paths = messages[len(sent)]
            sent.append(str(x.dtype))
            shards = [np.concatenate([sharding.cut(arrays[p], g).ravel() for p in paths]) for g in groups]
            np.testing.assert_allclose(x.astype(ms.float32).asnumpy(), shards[0], rtol=2**-8)
            return ms.Tensor(np.concatenate(shards)).astype(x.dtype)

        return gather

    monkeypatch.setattr(zero.collectives, "all_gather", pretend)
    shards = {path: backend.tensor(sharding.cut(value, groups[0])) for path, value in arrays.items()}
    found = zero.whole(groups[0], shards, shapes, dict.fromkeys(lower, dtype))
    assert found.keys() == arrays.keys()
    for path, value in arrays.items():
        tolerance = 2**-8 if path in lower else 0
        np.testing.assert_allclose(found[path].astype(ms.float32).asnumpy(), value, rtol=tolerance, err_msg=path)
    assert len(sent) == len(messages) < len(shapes)
    assert sum("BFloat16" in kind for kind in sent) == len([m for m in messages if set(m) <= lower])


@pytest.mark.parametrize(("asynchronous", "begun"), [(False, [1, 2, 3, 4]), (True, [2, 3, 4, 4])])
def test_the_next_item_is_prefetched_where_the_device_is_asynchronous(asynchronous, begun):
    asked = []
    next_result = zero.prefetch(lambda item: asked.append(item) or item * 10, range(4), asynchronous)
    assert [(next_result(), len(asked)) for _ in range(4)] == list(zip([0, 10, 20, 30], begun, strict=True))
    assert asked == [0, 1, 2, 3]


def test_small_tensors_travel_together_and_a_large_one_alone(monkeypatch):
    monkeypatch.setattr(zero, "BUCKET", 10)
    found = zero.buckets([("a", (2, 2)), ("b", (6,)), ("c", (1,)), ("large", (30,)), ("d", (3, 3)), ("e", (1,))])
    assert found == [("a", "b"), ("c",), ("large",), ("d", "e")]


def test_small_gradients_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(zero, "BUCKET", 10)
    reduce = zero.reducer(ONE, 2)
    a, b, c = (backend.tensor(np.full(n, n, np.float32)) for n in (4, 7, 3))
    assert reduce({"a": a}) == {}
    assert reduce({"b": b.astype(ms.bfloat16)}).keys() == {"a", "b"}
    assert reduce({"c": c}) == {}
    (last,) = reduce({}, last=True).values()
    np.testing.assert_array_equal(last.asnumpy(), c.asnumpy())
    assert reduce({}, last=True) == {}
