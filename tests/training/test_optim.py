import math

import mindspore as ms
import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.nn import backend, kernels
from moviegen.training import optim


def settings(**overrides):
    values = dict(
        learning_rate=1e-2,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.1,
        no_decay="norm|bias",
        warmup_steps=0,
        schedule="constant",
        final_learning_rate=1e-4,
        clip_norm=1.0,
    )
    return ConfigDict(values | overrides)


SHAPES = {"w": (5, 3), "norm/scale": (3,), "mlp/bias": (4,), "kernel": (2, 3, 3)}


def trees(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {path: (scale * rng.standard_normal(shape)).astype(np.float32) for path, shape in SHAPES.items()}


def norm_of(grads):
    return math.sqrt(sum(optim.means(optim.square_sums(grads))))


class NumpyAdamW:
    """Loshchilov and Hutter's algorithm 2, in float64."""

    def __init__(self, params, cfg):
        self.p = {path: value.astype(np.float64) for path, value in params.items()}
        self.m = {path: np.zeros(value.shape) for path, value in params.items()}
        self.v = {path: np.zeros(value.shape) for path, value in params.items()}
        self.cfg, self.t = cfg, 0

    def step(self, grads, lr):
        cfg, (b1, b2) = self.cfg, self.cfg.betas
        self.t += 1
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        clip = min(1, cfg.clip_norm / norm) if cfg.clip_norm else 1
        for path, g in grads.items():
            g = g.astype(np.float64) * clip
            self.m[path] = b1 * self.m[path] + (1 - b1) * g
            self.v[path] = b2 * self.v[path] + (1 - b2) * g**2
            m, v = self.m[path] / (1 - b1**self.t), self.v[path] / (1 - b2**self.t)
            decay = 0 if "norm" in path or "bias" in path else cfg.weight_decay
            self.p[path] = self.p[path] - lr * (m / (np.sqrt(v) + cfg.eps) + decay * self.p[path])


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"clip_norm": 0.0},
        {"weight_decay": 0.0},
        {"eps": 0.1, "betas": (0.5, 0.999)},
        {"no_decay": "norm|bias|none"},
    ],
    ids=str,
)
def test_adamw_equals_numpy(overrides):
    cfg = settings(**overrides)
    params = backend.to_tensors(trees(0))
    state, reference = optim.init_state(params), NumpyAdamW(trees(0), cfg)
    for step in range(6):
        grads = trees(10 + step, scale=0.05 if step % 2 else 3.0)  # below and above the norm of clipping
        lr = cfg.learning_rate / (step + 1)
        tensors = backend.to_tensors(grads)
        optim.adamw_update(params, tensors, state, step, lr, cfg, norm_of(tensors))
        reference.step(grads, lr)
    for path in SHAPES:
        np.testing.assert_allclose(params[path].asnumpy(), reference.p[path], rtol=1e-5, atol=1e-6, err_msg=path)
        np.testing.assert_allclose(state["m"][path].asnumpy(), reference.m[path], rtol=1e-4, atol=1e-7, err_msg=path)
        np.testing.assert_allclose(state["v"][path].asnumpy(), reference.v[path], rtol=1e-4, atol=1e-9, err_msg=path)
        for step in range(6):
            grads = trees(10 + step, scale=0.05 if step % 2 else 3.0)
        np.testing.assert_array_equal(tensors[path].asnumpy(), grads[path])  # gradients are left alone


def test_decay_and_the_regex_it_leaves_out():
    cfg = settings(weight_decay=0.5)
    params = backend.to_tensors(trees(0))
    zeros = {path: ms.Tensor(np.zeros(shape, np.float32)) for path, shape in SHAPES.items()}
    optim.adamw_update(params, zeros, optim.init_state(params), 0, 0.1, cfg, 0.0)
    for path, before in trees(0).items():
        factor = 1 if path in ("norm/scale", "mlp/bias") else 0.95
        np.testing.assert_allclose(params[path].asnumpy(), factor * before, rtol=1e-6, err_msg=path)


def test_update_is_in_place():
    cfg = settings()
    params = backend.to_tensors(trees(0))
    state = optim.init_state(params)
    objects = [*params.values(), *state["m"].values(), *state["v"].values()]
    grads = backend.to_tensors(trees(1))
    optim.adamw_update(params, grads, state, 0, 0.1, cfg, norm_of(grads))
    after = [*params.values(), *state["m"].values(), *state["v"].values()]
    assert all(a is b for a, b in zip(objects, after, strict=True))
    changed = [not np.array_equal(a.asnumpy(), b) for a, b in zip(params.values(), trees(0).values(), strict=True)]
    assert all(changed) and all(value.asnumpy().any() for value in after)


def test_init_state_is_zero_and_not_shared():
    params = backend.to_tensors(trees(0))
    state = optim.init_state(params)
    assert state.keys() == {"m", "v"}
    for moment in state.values():
        assert {path: value.shape for path, value in moment.items()} == SHAPES
        assert not any(value.asnumpy().any() for value in moment.values())
    assert all(state["m"][path] is not state["v"][path] for path in SHAPES)


def test_global_norm():
    grads = trees(3)
    expected = np.linalg.norm(np.concatenate([g.ravel().astype(np.float64) for g in grads.values()]))
    assert norm_of(backend.to_tensors(grads)) == pytest.approx(expected, rel=1e-6)


# ---- host memory


def test_moments_and_average_in_host_memory_are_copied_beside_the_update(monkeypatch):
    """A stand-in for copies that do not block: what was fetched is not there, and what is stored not taken, before `meet`."""
    shapes = {"blocks/0/w": (2, 3), "blocks/1/w": (2, 3), "scale": (4,)}
    events, open_, moved, names = [], [], 0, {}
    store, adam = kernels.store, optim._adam_step

    def fetch(kept):
        nonlocal moved
        moved += sum(x.nbytes for x in kept)
        found = [ms.Tensor(np.full(x.shape, np.nan, np.float32)) for x in kept]
        open_.append(lambda: [tensor.copy_(ms.Tensor(x)) for tensor, x in zip(found, kept, strict=True)])
        events.append(f"fetch {names[id(kept[0])]}")
        return found

    def take_back(kept, tensors):
        nonlocal moved
        moved += sum(x.nbytes for x in kept)
        open_.append(lambda: store(kept, tensors))
        events.append(f"store {names[id(kept[0])]}")

    def meet():
        while open_:
            open_.pop(0)()

    def adam_step(n):
        events.append("update")
        return adam(n)

    found = []
    for host in (False, True):
        params = {path: backend.tensor(np.full(shape, 2.0, np.float32)) for path, shape in shapes.items()}
        state = optim.init_state(params, host)
        average = {path: np.ones(shape, np.float32) for path, shape in shapes.items()}
        if host:
            names = {id(x): i for tree in (state["m"], average) for i, x in enumerate(tree.values())}
            for name, stand_in in (("fetch", fetch), ("store", take_back), ("meet", meet)):
                monkeypatch.setattr(kernels, name, stand_in)
            monkeypatch.setattr(optim, "_adam_step", adam_step)
        else:
            average = backend.to_tensors(average)
        weights = sum(p.size for p in params.values())
        for step in range(2):
            moved = 0
            grads = {path: backend.tensor(np.full(shape, 0.1 + step, np.float32)) for path, shape in shapes.items()}
            optim.adamw_update(params, grads, state, step, 0.1, settings(), 1.0)
            assert moved == host * 16 * weights
            optim.ema_update(average, params, 0.9)
            assert moved == host * 24 * weights
        found.append([backend.to_numpy(tree) for tree in (params, *state.values(), average)])
    for mine, other in zip(*found, strict=True):
        for path in shapes:
            np.testing.assert_array_equal(mine[path], other[path])
    assert not open_ and events[:9] == [
        *("fetch 0", "fetch 1", "update", "store 0", "fetch 2", "update", "store 1", "update", "store 2")
    ]
    assert events[9:15] == ["fetch 0", "fetch 1", "store 0", "fetch 2", "store 1", "store 2"]  # of the average


# ---- schedules


def test_warm_up_is_linear_and_reaches_the_rate():
    cfg = settings(warmup_steps=4)
    assert [optim.learning_rate(cfg, step, 100) for step in range(6)] == pytest.approx(
        [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01]
    )


def test_cosine():
    cfg = settings(schedule="cosine", warmup_steps=10)
    rates = [optim.learning_rate(cfg, step, 111) for step in range(111)]
    assert rates[10] == pytest.approx(1e-2) and rates[110] == pytest.approx(1e-4)
    assert rates[60] == pytest.approx((1e-2 + 1e-4) / 2)
    assert rates[35] == pytest.approx(1e-4 + 0.0099 * (1 + math.cos(math.pi / 4)) / 2)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert optim.learning_rate(cfg, 500, 111) == pytest.approx(1e-4)  # and never below


def test_cosine_without_room_for_it():
    for total in (1, 2):
        rate = optim.learning_rate(settings(schedule="cosine", warmup_steps=1), 1, total)
        assert 1e-4 <= rate <= 1e-2


def test_plateau():
    rule = ConfigDict(dict(factor=0.5, patience=2, min_delta=0.1, min_learning_rate=1e-6))
    state = {"best": float("inf"), "bad": 0, "factor": 1.0}
    seen = []
    for value in (5.0, 4.0, 3.95, 3.0, 2.95, 2.91, 2.905, 2.5, 2.5, 2.5, 2.5, 2.5):
        state = optim.plateau(state, value, rule)
        seen.append((state["best"], state["bad"], state["factor"]))
    assert seen == [
        (5.0, 0, 1.0),
        (4.0, 0, 1.0),
        (4.0, 1, 1.0),  # not 0.1 better
        (3.0, 0, 1.0),
        (3.0, 1, 1.0),
        (3.0, 0, 0.5),  # the second in a row
        (3.0, 1, 0.5),
        (2.5, 0, 0.5),
        (2.5, 1, 0.5),
        (2.5, 0, 0.25),
        (2.5, 1, 0.25),
        (2.5, 0, 0.125),
    ]


def test_plateau_does_not_change_what_it_is_given():
    state = {"best": 1.0, "bad": 0, "factor": 1.0}
    optim.plateau(state, 2.0, ConfigDict(dict(factor=0.5, patience=5, min_delta=0.0)))
    assert state == {"best": 1.0, "bad": 0, "factor": 1.0}


# ---- averages


def test_ema_closed_form_in_place():
    average, params = backend.to_tensors(trees(0)), backend.to_tensors(trees(1))
    objects = list(average.values())
    for _ in range(5):
        optim.ema_update(average, params, 0.9)
    assert all(a is b for a, b in zip(objects, average.values(), strict=True))
    for path in SHAPES:
        expected = 0.9**5 * trees(0)[path] + (1 - 0.9**5) * trees(1)[path]
        np.testing.assert_allclose(average[path].asnumpy(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(params[path].asnumpy(), trees(1)[path])


def test_ema_moves_at_the_paper_s_decay():
    # In bfloat16 a step of 1e-4 of the distance rounds away and the average never moves.
    average, params = {"w": ms.Tensor([1.0])}, {"w": ms.Tensor([1.5])}
    for _ in range(100):
        optim.ema_update(average, params, 0.9999)
    assert float(average["w"]) == pytest.approx(1.5 - 0.5 * 0.9999**100, abs=1e-6)
