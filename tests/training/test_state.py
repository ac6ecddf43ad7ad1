"""The state of a run on one rank, and how another mesh picks it up; all meshes train alike in tests/distributed."""

import math
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.errors import DataError
from moviegen.nn import backend, kernels
from moviegen.parallel import sharding
from moviegen.parallel.mesh import ONE, Group, Mesh
from moviegen.storage import checkpoint, safetensors_io, trained as weights
from moviegen.training import optim, state as states

SHAPES = {"blocks/0/q": (5, 4), "norm": (3,), "modulation": (6, 2)}
CONFIG = ConfigDict(
    dict(
        optim=dict(betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, no_decay="norm", clip_norm=1.0),
        ema=dict(decay=0.5),
        train=dict(keep_checkpoints=2, keep_every=0, keep_best=False),
    )
)


def trees(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.standard_normal(shape).astype(np.float32) for path, shape in SHAPES.items()}


@pytest.fixture
def trained():
    """Two steps on one rank."""
    layout = states.Layout(SHAPES, ONE, 3)
    state = states.fresh(backend.to_tensors(trees(0)), layout)
    for step in range(2):
        states.update(state, backend.to_tensors(trees(1 + step)), step, 0.1, CONFIG, layout)
    return layout, state


def test_update_is_adamw_and_the_average_follows(trained):
    _, state = trained
    params = backend.to_tensors(trees(0))
    average, moments = backend.to_tensors(trees(0)), optim.init_state(params)
    for step in range(2):
        grads = backend.to_tensors(trees(1 + step))
        norm = math.sqrt(sum(optim.means(optim.square_sums(grads))))
        optim.adamw_update(params, grads, moments, step, 0.1, CONFIG.optim, norm)
        optim.ema_update(average, params, min(0.5, (1 + step) / (10 + step)))
    for path in SHAPES:
        np.testing.assert_array_equal(state.params[path].asnumpy(), params[path].asnumpy())
        np.testing.assert_array_equal(state.ema[path].asnumpy(), average[path].asnumpy())


def test_a_network_that_starts_later_has_optimizer_steps_of_its_own():
    """As if it were trained alone from its first step on, and the others without it."""
    layout, starts = states.Layout(SHAPES, ONE, 3), {"blocks/": 1}
    state = states.fresh(backend.to_tensors(trees(0)), layout)
    norms = []
    for step in range(3):
        grads = backend.to_tensors(trees(1 + step))
        if step == 0:
            del grads["blocks/0/q"]
        norms.append(states.update(state, grads, step, 0.1, CONFIG, layout, starts).norm)
    for first, own in ((1, {"blocks/0/q"}), (0, SHAPES.keys() - {"blocks/0/q"})):

        def of(seed, own=own):
            return backend.to_tensors({path: value for path, value in trees(seed).items() if path in own})

        alone = states.fresh(of(0), layout)
        found = [states.update(alone, of(1 + step), step - first, 0.1, CONFIG, layout).norm for step in range(first, 3)]
        for mine, other in (
            (state.params, alone.params),
            (state.ema, alone.ema),
            (state.moments["v"], alone.moments["v"]),
        ):
            for path in own:
                np.testing.assert_array_equal(mine[path].asnumpy(), other[path].asnumpy())
    assert norms == found


def test_a_missing_gradient_is_an_error(trained):
    layout, state = trained
    grads = backend.to_tensors(trees(1))
    del grads["norm"]
    with pytest.raises(KeyError, match="norm"):
        states.update(state, grads, 2, 0.1, CONFIG, layout)


def test_moments_and_average_in_host_memory_change_nothing_else(trained, tmp_path):
    _, expected = trained
    layout = states.Layout(SHAPES, ONE, 3, offload=True)
    state = states.fresh(backend.to_tensors(trees(0)), layout)
    states.update(state, backend.to_tensors(trees(1)), 0, 0.1, CONFIG, layout)
    states.save(tmp_path, 1, state, {}, CONFIG, layout).result()
    state, _ = states.restore(tmp_path, 1, layout)
    states.update(state, backend.to_tensors(trees(2)), 1, 0.1, CONFIG, layout)
    for path in SHAPES:
        np.testing.assert_array_equal(state.params[path].asnumpy(), expected.params[path].asnumpy())
        for mine, other in ((state.ema, expected.ema), (state.moments["m"], expected.moments["m"])):
            assert isinstance(mine[path], np.ndarray)
            np.testing.assert_array_equal(mine[path], other[path].asnumpy())


@pytest.mark.parametrize("broken", ["norm", "blocks/0/q"])
@pytest.mark.parametrize("offload", [False, True])
def test_what_is_not_finite_in_one_network_leaves_all_as_they_are(broken, offload):
    layout, starts = states.Layout(SHAPES, ONE, 3, offload), {"blocks/": 0}
    state = states.fresh(backend.to_tensors(trees(0)), layout)

    def values():
        every = (state.params, state.master, state.ema, *state.moments.values())
        return [np.array(backend.to_numpy(tree)[path]) for tree in every for path in SHAPES]

    states.update(state, backend.to_tensors(trees(1)), 0, 0.1, CONFIG, layout, starts)
    before, grads = values(), trees(2)
    grads[broken].flat[1] = -np.inf
    outcome = states.update(state, backend.to_tensors(grads), 1, 0.1, CONFIG, layout, starts, {"loss": 0.5})
    assert outcome.broken == {"blocks/norm" if broken.startswith("blocks/") else "norm": np.inf}
    assert outcome.numbers == {"loss": 0.5}
    outcome = states.update(state, backend.to_tensors(trees(2)), 1, 0.1, CONFIG, layout, starts, {"loss": np.nan})
    assert list(outcome.broken) == ["loss"]
    for mine, other in zip(values(), before, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert not states.update(state, backend.to_tensors(trees(2)), 1, 0.1, CONFIG, layout, starts).broken
    assert all((mine != other).any() for mine, other in zip(values(), before, strict=True))


def test_the_device_is_waited_for_once_a_step(trained, monkeypatch):
    """Whatever is read of it is an array of its own."""
    layout, state = trained
    read, asnumpy = [], ms.Tensor.asnumpy
    monkeypatch.setattr(ms.Tensor, "asnumpy", lambda self: read.append(self.shape) or asnumpy(self))
    states.update(state, backend.to_tensors(trees(9)), 2, 0.1, CONFIG, layout, {"blocks/": 0}, {"loss": 1.0})
    assert len(read) == 1


def test_copies_to_host_memory_are_waited_for_once_a_step(trained, monkeypatch):
    layout, waited = states.Layout(SHAPES, ONE, 3, offload=True), []
    state = states.fresh(backend.to_tensors(trees(0)), layout)
    monkeypatch.setattr(kernels, "all_stored", lambda: waited.append(1))
    states.update(state, backend.to_tensors(trees(1)), 0, 0.1, CONFIG, layout, {"blocks/": 0})
    assert len(waited) == 1
    assert all(isinstance(x, ms.Tensor) for x in states.ema_weights(state).values())


@pytest.mark.parametrize("offload", [False, True])
def test_without_an_average_none_is_kept_saved_or_read(trained, tmp_path, offload):
    averaged, other = trained
    states.save(tmp_path / "other", 2, other, {}, CONFIG, averaged).result()
    layout = states.Layout(SHAPES, ONE, 3, offload, averaged=False)
    state = states.fresh(backend.to_tensors(trees(0)), layout)
    for step in range(2):
        states.update(state, backend.to_tensors(trees(1 + step)), step, 0.1, CONFIG, layout)
    assert state.ema == {} and states.ema_weights(state) is state.master
    states.save(tmp_path / "own", 2, state, {}, CONFIG, layout).result()
    assert checkpoint.load(tmp_path / "own")[0].keys() == {"params", "opt/m", "opt/v"}
    for folder in ("own", "other"):
        found, _ = states.restore(tmp_path / folder, 2, layout)
        assert found.ema == {}
        for path in SHAPES:
            np.testing.assert_array_equal(found.master[path].asnumpy(), other.master[path].asnumpy())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_matrices_are_cast_once_an_update_and_the_rest_is_the_masters_own(tmp_path, monkeypatch, stage):
    """On one rank no gather casts them. What is saved are the float32 weights, and a resume casts them anew."""
    cast, astype = [], ms.Tensor.astype
    monkeypatch.setattr(ms.Tensor, "astype", lambda self, kind: cast.append(self.shape) or astype(self, kind))
    layout = states.Layout(SHAPES, ONE, stage, dtypes={"blocks/0/q": "float16"})
    state = states.fresh(backend.to_tensors(trees(0)), layout)

    def check(state):
        assert cast == [(5, 4)]
        cast.clear()
        own, rounded = state.master["blocks/0/q"].asnumpy(), state.params["blocks/0/q"].asnumpy()
        assert own.dtype == np.float32 and rounded.dtype == np.float16
        np.testing.assert_array_equal(rounded, own.astype(np.float16))
        assert all(state.params[path] is state.master[path] for path in ("norm", "modulation"))

    check(state)
    states.update(state, backend.to_tensors(trees(1)), 0, 0.1, CONFIG, layout)
    check(state)
    states.save(tmp_path, 1, state, {}, CONFIG, layout).result()
    for path, array in checkpoint.load(tmp_path)[0]["params"].items():
        np.testing.assert_array_equal(array, state.master[path].asnumpy())
    check(states.restore(tmp_path, 1, layout)[0])
    loaded = states.load_ema(tmp_path, layout)[0]  # whose arrays are cast as they are read
    assert cast == [] and {path: str(x.dtype) for path, x in loaded.items()} == {
        "blocks/0/q": "Float16",
        "norm": "Float32",
        "modulation": "Float32",
    }


def test_in_float32_nothing_is_there_twice(trained):
    _, state = trained
    assert all(state.params[path] is state.master[path] for path in SHAPES)


def test_who_takes_the_average_takes_the_weights_where_there_is_none(trained, tmp_path):
    _, state = trained
    layout = states.Layout(SHAPES | {"position/t": (2, 2)}, ONE, 3)
    params = backend.to_numpy(state.master) | {"position/t": np.eye(2, dtype=np.float32)}
    checkpoint.save(tmp_path, 2, {"params": params}, {"note": 1})
    loaded, meta = states.load_ema(tmp_path, layout)
    started = states.grown(weights.find(tmp_path), layout, lambda tables: {p: 2 * x for p, x in tables.items()}, dict)
    assert meta == {"note": 1, "step": 2}
    for path, value in params.items():
        np.testing.assert_array_equal(loaded[path].asnumpy(), value)
        np.testing.assert_array_equal(started.ema[path].asnumpy(), value * (2 if path == "position/t" else 1))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", ["checkpoint", "export"])
def test_a_stage_starts_from_slices_and_says_what_is_loaded_grown_and_fresh(tmp_path, capsys, monkeypatch, kind, size):
    """An encoder that the weights do not know is drawn; each rank reads its part of the rest."""
    old = trees(0) | {"position/t": np.ones((2, 2), np.float32), "text/ul2/proj": np.ones((4, 2), np.float32)}
    if kind == "checkpoint":
        checkpoint.save(tmp_path, 2, {"params": old}, {})
    else:
        safetensors_io.write_shards(old, tmp_path, "float32", 50, {})
    shapes = SHAPES | {"position/t": (4, 2), "text/ul2/proj": (4, 2), "text/byt5/proj": (4, 6)}
    read, ask = [], safetensors_io._read_one
    monkeypatch.setattr(
        safetensors_io, "_read_one", lambda f, name, where=None: read.append((name, where)) or ask(f, name, where)
    )
    for rank in reversed(range(size)):
        group = Group("", size, rank)
        layout = states.Layout(shapes, Mesh(zero=size, world=group, shard=group), 2)
        draw = lambda paths: {path: layout.place(path, np.full(shapes[path], 7, np.float32)) for path in paths}  # noqa: B023, E731
        monkeypatch.setattr(states.zero, "whole", lambda group, tree, *rest: tree)
        state = states.grown(
            weights.find(tmp_path), layout, lambda x: {p: np.repeat(t, 2, 0) for p, t in x.items()}, draw
        )
        expected = old | {"position/t": np.ones((4, 2)), "text/byt5/proj": np.full((4, 6), 7)}
        for path, value in state.master.items():
            np.testing.assert_array_equal(value.asnumpy(), sharding.cut(expected[path], group), err_msg=path)
    (line,) = capsys.readouterr().out.splitlines()  # of rank 0
    assert line.endswith(": 4 arrays loaded; 1 grown: position/t 2 -> 4; 1 fresh: text/byt5/proj")
    if kind == "export" and size == 2:
        assert ("blocks/0/q", (slice(0, 5), slice(0, 2))) in read and ("blocks/0/q",) not in read


def test_a_parameter_that_is_missing_is_not_drawn(tmp_path):
    checkpoint.save(tmp_path, 2, {"params": trees(0) | {"text/ul2/proj": np.ones((4, 2), np.float32)}}, {})
    layout = states.Layout(SHAPES | {"text/ul2/proj": (4, 2), "text/ul2/norm": (4,), "position/t": (2, 2)}, ONE, 3)
    with pytest.raises(
        DataError, match=r"not of this model config: position/t, text/ul2/norm \(2 differ; position/t is missing"
    ):
        states.grown(weights.find(tmp_path), layout, dict, dict)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_mesh_picks_up_what_one_rank_saved(trained, tmp_path, size):
    layout, state = trained
    states.save(tmp_path, 2, state, {"note": 1}, CONFIG, layout).result()
    for rank in range(size):
        group = Group("", size, rank)
        other = states.Layout(SHAPES, Mesh(zero=size, world=group, shard=group), 3)
        found, meta = states.restore(tmp_path, 2, other)
        assert meta == {"note": 1, "step": 2}
        for mine, whole in (
            (found.params, state.params),
            (found.ema, state.ema),
            (found.moments["m"], state.moments["m"]),
            (found.moments["v"], state.moments["v"]),
        ):
            assert mine.keys() == SHAPES.keys()
            for path, value in mine.items():
                np.testing.assert_array_equal(value.asnumpy(), sharding.cut(whole[path].asnumpy(), group))


RESTORE = """
import re, sys
from moviegen.nn import backend, kernels
from moviegen.parallel.mesh import Group, Mesh
from moviegen.training import state
def peak():  # of this program: what getrusage says begins with the memory of the one that started it
    return int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
backend.device()
group = Group("", 2, 0)
layout = state.Layout({str(i): (1024, 2048) for i in range(24)}, Mesh(zero=2, world=group, shard=group), 3)
before = peak()
found, _ = state.restore(sys.argv[1], 1, layout)
print(peak() - before)
"""


def test_a_restored_state_is_not_in_memory_twice(tmp_path):
    """4 MB of each of 96 arrays: of that size malloc keeps what a thread frees, and the tensors would come on top."""
    arrays = {str(i): np.full((1024, 2048), i, np.float32) for i in range(24)}
    checkpoint.save(tmp_path, 1, {tree: arrays for tree in ("params", "ema", "opt/m", "opt/v")}, {})
    ended = subprocess.run([sys.executable, "-c", RESTORE, str(tmp_path)], capture_output=True, text=True, check=True)
    kilobytes = int(ended.stdout.split()[-1])
    assert 96 * 4096 < kilobytes < 1.3 * 96 * 4096, kilobytes


def test_what_is_saved_is_what_was_when_save_returned(trained, tmp_path):
    """On CPU a tensor's numpy array is its own memory, which the next update changes while the file is written."""
    layout, state = trained
    before = {path: value.asnumpy().copy() for path, value in state.params.items()}
    saving = states.save(tmp_path, 2, state, {}, CONFIG, layout)
    states.update(state, backend.to_tensors(trees(9)), 2, 0.1, CONFIG, layout)
    saving.result()
    found, _ = states.restore(tmp_path, 2, layout)
    for path, value in found.params.items():
        np.testing.assert_array_equal(value.asnumpy(), before[path])
        assert abs(state.params[path].asnumpy() - before[path]).max() > 0
