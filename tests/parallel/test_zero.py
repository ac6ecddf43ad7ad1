"""Packing and unpacking of messages without other ranks; the exchange itself is in tests/distributed."""

import mindspore as ms
import numpy as np
import pytest

from moviegen.nn import backend, kernels
from moviegen.parallel import collectives, sharding, zero
from moviegen.parallel.comm import AllGather
from moviegen.parallel.mesh import ONE, Group, Mesh

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
    monkeypatch.setattr(sharding, "BUCKET", 60)
    shapes = {"modulation": (2, 3), "norm": (5,), "q": (4, 6), "wide": (9, 9)}
    arrays = {path: array(shape) for path, shape in shapes.items()}
    groups = [Group("", 2, rank) for rank in range(2)]
    lower = {"q", "wide"} if dtype == "bfloat16" else set()
    messages = [
        bucket
        for paths in (sorted(lower), sorted(shapes.keys() - lower))
        for bucket in sharding.buckets((path, shapes[path]) for path in paths)
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


@pytest.fixture
def links(monkeypatch):
    """Exchanges that overlap, with another rank that has the same: a list of what happens, and none is read too early."""
    monkeypatch.setattr(kernels, "overlaps", lambda: True)
    events = []

    class Handle:
        def __init__(self, out, value):
            self.out, self.value, self.name = out, value, f"{int(value.ravel()[0])}"
            out.copy_(ms.Tensor(np.full(out.shape, np.nan, np.float32)))
            events.append(f"start {self.name}")

        def wait(self):
            events.append(f"wait {self.name}")
            self.out.copy_(ms.Tensor(self.value))

    monkeypatch.setattr(collectives, "_under_way", {})
    for name, fn in {
        "all_gather_into_tensor": lambda out, x, **_: Handle(out, np.tile(x.asnumpy(), 2)),
        "reduce_scatter_tensor": lambda out, x, **_: Handle(out, 2 * np.split(x.asnumpy(), 2)[0]),
        "all_reduce": lambda x, **_: Handle(x, 2 * x.asnumpy()),
    }.items():
        monkeypatch.setattr(collectives.communication, name, fn)
    return events


LAYERS = ["", "blocks/0", "blocks/1", "blocks/2", "final"]


def walk(events, run=lambda layer: None):
    """All layers there and back; each has one weight, its number, on both ranks."""
    params = {f"{layer}/w".lstrip("/"): backend.tensor(np.float32([i])) for i, layer in enumerate(LAYERS)}

    def start(shards):
        return zero.start_whole(Group("pair", 2, 0), shards, {path: (2,) for path in shards})

    next_layer = zero.by_layer(params, AllGather(start), 3, back=True)
    for layer in [0, 1, 2, 3, 4, 3, 2, 1, 0]:
        (w,) = next_layer().values()
        np.testing.assert_array_equal(w.asnumpy(), [layer, layer])
        events.append(f"run {layer}")
        run(layer)


def test_the_next_layer_is_gathered_while_one_is_computed(links):
    walk(links)
    order = [0, 1, 2, 3, 4, 3, 2, 1, 0]
    expected = ["start 0"]
    for i, layer in enumerate(order):
        expected += [f"start {after}" for after in order[i + 1 : i + 2]] + [f"wait {layer}", f"run {layer}"]
    assert links == expected
    at_hand = np.cumsum([{"start": 1, "wait": 0, "run": -1}[event.split()[0]] for event in links])
    assert max(at_hand) == 2


def test_nothing_that_an_error_left_is_under_way_in_the_next_step(links):
    def fail(layer):
        if layer == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        walk(links, fail)
    assert collectives._under_way
    begun = len(links)
    walk(links)
    assert links[begun : begun + 2] == ["wait 3", "start 0"] and not collectives._under_way
    assert sum(event.startswith("start") for event in links) == sum(event.startswith("wait") for event in links)


def test_on_a_cpu_one_layer_is_gathered_at_a_time():
    asked = []
    next_result = zero.prefetch(lambda item: asked.append(item) or (lambda: item * 10), range(3))
    assert [(next_result(), len(asked)) for _ in range(3)] == [(0, 1), (10, 2), (20, 3)]


PAIR, OTHER = Group("pair", 2, 0), Group("other", 2, 0)
ZERO, DATA = Mesh(zero=2, world=PAIR, shard=PAIR), Mesh(data=2, world=PAIR, replicas=PAIR)
# Each exchange by the sum that it gives. Those over a shard group are summed over its replicas while others are under way.
ONCE = "start 2, wait 2, start 4, wait 4, start 6, wait 6"
TWICE = "start 2, wait 2, start 4, start 4, wait 4, start 6, wait 4, start 8, wait 6, wait 8, start 12, wait 12"


@pytest.mark.parametrize(
    ("mesh", "stage", "times", "rows"),
    [
        (ZERO, 3, 2, 1),
        (ZERO, 2, 2, 1),
        (ZERO, 1, 2, 2),
        (DATA, 0, 2, 2),
        (Mesh(data=2, zero=2, world=PAIR, shard=PAIR, replicas=OTHER), 2, 4, 1),
    ],
)
def test_gradients_are_exchanged_while_the_next_are_computed(links, monkeypatch, mesh, stage, times, rows):
    """Each call waits for what the one before has started, before it starts its own; the last waits for all."""
    monkeypatch.setattr(sharding, "BUCKET", 4)
    reduce = zero.reducer(mesh, stage)
    found, returned = {}, []
    for i in (1, 2, 3):
        more = reduce({str(i): backend.tensor(np.full((2, 2), i, np.float16))}, last=i == 3)
        returned.append([*more])
        found |= more
        assert len(collectives._under_way) <= (1 if times == 2 else 2)
    assert returned == ([[], ["1"], ["2", "3"]] if times == 2 else [[], [], ["1", "2", "3"]])
    assert ", ".join(links) == (ONCE if times == 2 else TWICE) and not collectives._under_way
    for name, x in found.items():
        assert x.dtype == ms.float32
        np.testing.assert_array_equal(x.asnumpy(), np.full((rows, 2), times * int(name)))


def test_small_tensors_travel_together_and_a_large_one_alone(monkeypatch):
    monkeypatch.setattr(sharding, "BUCKET", 10)
    found = sharding.buckets([("a", (2, 2)), ("b", (6,)), ("c", (1,)), ("large", (30,)), ("d", (3, 3)), ("e", (1,))])
    assert found == [("a", "b"), ("c",), ("large",), ("d", "e")]


def test_small_gradients_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(sharding, "BUCKET", 10)
    reduce = zero.reducer(ONE, 2)
    a, b, c = (backend.tensor(np.full(n, n, np.float32)) for n in (4, 7, 3))
    assert reduce({"a": a}) == {}
    assert reduce({"b": b.astype(ms.bfloat16)}).keys() == {"a", "b"}
    assert reduce({"c": c}) == {}
    (last,) = reduce({}, last=True).values()
    np.testing.assert_array_equal(last.asnumpy(), c.asnumpy())
    assert reduce({}, last=True) == {}
