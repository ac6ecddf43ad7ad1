"""Every way to differentiate, against finite differences of numpy and against MindSpore's autodiff by position."""

import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops
from mindspore.graph import api

from moviegen.nn import layerwise
from tests.numeric import assert_close, slopes


def array(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


PARAMS = {"b": array(4), "mlp/w": array(4, 3), "scale": array(4, seed=1)}
X, Y = array(2, 3), array(2, 4, seed=2)


def one(p, x, y):
    return ops.tanh(ops.matmul(x, ops.transpose(p["mlp/w"], (1, 0))) + p["b"]) * p["scale"] * y


def several(p, x, y):
    h = ops.tanh(ops.matmul(x, ops.transpose(p["mlp/w"], (1, 0))) + p["b"])
    return h * p["scale"], h * h * y


def scalar(p, x, y):
    return ops.mean(ops.square(one(p, x, y)))


def scalar_and_more(p, x, y):
    h = one(p, x, y)
    return ops.mean(ops.square(h)), h, ops.mean(h)


def numpy_several(w, b, scale, x, y):
    h = np.tanh(x @ w.T + b)
    return h * scale, h * h * y


def numpy_one(w, b, scale, x, y):
    return np.tanh(x @ w.T + b) * scale * y


def numpy_scalar(w, b, scale, x, y):
    return (numpy_one(w, b, scale, x, y) ** 2).mean()


ARRAYS = {"w": PARAMS["mlp/w"], "b": PARAMS["b"], "scale": PARAMS["scale"], "x": X, "y": Y}
NAMES = {"w": "mlp/w", "b": "b", "scale": "scale"}


def by_position(fn, weigh):
    """Gradients of weigh(fn(...)) by MindSpore's autodiff of positional tensors: right by all accounts."""
    paths = list(PARAMS)

    def flat(*values):
        return weigh(fn(dict(zip(paths, values[:3], strict=True)), *values[3:]))

    values = [ms.Tensor(v) for v in (*PARAMS.values(), X, Y)]
    return dict(zip([*paths, "x", "y"], ms.grad(flat, tuple(range(5)))(*values), strict=True))


def check(dparams, dinputs, numeric, plain, inputs=("x", "y")):
    assert set(dparams) == set(PARAMS) and len(dinputs) == len(inputs)
    found = dparams | dict(zip(inputs, dinputs, strict=True))
    for name, slope in numeric.items():
        path = NAMES.get(name, name)
        if path in found:
            assert_close(found[path], slope, path, 1e-4)  # which also refuses zeros
            assert_close(found[path], plain[path].asnumpy(), path, 1e-5)


def test_run_equals_numpy():
    expected = {name: value.astype(np.float64) for name, value in ARRAYS.items()}
    assert_close(layerwise.run(one, PARAMS, X, Y), numpy_one(**expected), tolerance=1e-5)
    for found, value in zip(layerwise.run(several, PARAMS, X, Y), numpy_several(**expected), strict=True):
        assert_close(found, value, tolerance=1e-5)


def test_order_and_kind_of_the_parameters_do_not_matter():
    tensors = {path: ms.Tensor(PARAMS[path]) for path in reversed(PARAMS)}
    found = layerwise.run(one, tensors, ms.Tensor(X), Y).asnumpy()
    np.testing.assert_array_equal(found, layerwise.run(one, PARAMS, X, Y).asnumpy())


def test_vjp_of_one_output():
    dout = array(2, 4, seed=3)
    out, pullback = layerwise.vjp(one, PARAMS, X, Y)
    np.testing.assert_array_equal(out.asnumpy(), layerwise.run(one, PARAMS, X, Y).asnumpy())
    numeric = slopes(lambda **a: (numpy_one(**a) * dout).sum(), ARRAYS)
    check(*pullback(dout), numeric, by_position(one, lambda h: ops.sum(h * ms.Tensor(dout))))


def test_vjp_of_several_outputs():
    douts = array(2, 4, seed=3), array(2, 4, seed=4)
    outs, pullback = layerwise.vjp(several, PARAMS, X, Y)
    assert isinstance(outs, tuple) and len(outs) == 2

    def numeric_sum(**a):
        return sum((out * dout).sum() for out, dout in zip(numpy_several(**a), douts, strict=True))

    def plain_sum(pair):
        return ops.sum(pair[0] * ms.Tensor(douts[0])) + ops.sum(pair[1] * ms.Tensor(douts[1]))

    check(*pullback(*douts), slopes(numeric_sum, ARRAYS), by_position(several, plain_sum))


@pytest.mark.parametrize("wrt", [0, 1])
def test_vjp_of_the_leading_inputs_alone(wrt):
    dout = array(2, 4, seed=3)
    _, pullback = layerwise.vjp(one, PARAMS, X, Y, wrt=wrt)
    numeric = slopes(lambda **a: (numpy_one(**a) * dout).sum(), ARRAYS)
    plain = by_position(one, lambda h: ops.sum(h * ms.Tensor(dout)))
    check(*pullback(dout), numeric, plain, ("x", "y")[:wrt])


def test_vjp_without_parameters():
    def square(p, x):
        return x * x * x

    _, pullback = layerwise.vjp(square, {}, X)
    dparams, (dx,) = pullback(np.ones_like(X))
    assert dparams == {}
    assert_close(dx, 3 * X.astype(np.float64) ** 2, tolerance=1e-5)


def test_a_pullback_is_linear_and_can_be_called_again():
    dout = array(2, 4, seed=3)
    _, pullback = layerwise.vjp(one, PARAMS, X, Y)
    first, second = pullback(dout), pullback(-2 * dout)
    for path in PARAMS:
        assert_close(second[0][path], -2 * first[0][path].asnumpy(), path, 1e-6)


@pytest.mark.parametrize("wrt", [0, 1, 2])
def test_value_and_grad(wrt):
    value, dparams, dinputs = layerwise.value_and_grad(scalar, PARAMS, X, Y, wrt=wrt)
    assert float(value) == pytest.approx(numpy_scalar(**ARRAYS), rel=1e-5)
    check(dparams, dinputs, slopes(numpy_scalar, ARRAYS), by_position(scalar, lambda v: v), ("x", "y")[:wrt])


@pytest.mark.parametrize("wrt", [0, 1, 2])
def test_value_and_grad_with_more_outputs(wrt):
    (value, h, mean), dparams, dinputs = layerwise.value_and_grad(scalar_and_more, PARAMS, X, Y, wrt=wrt, aux=True)
    expected = numpy_one(**{name: a.astype(np.float64) for name, a in ARRAYS.items()})
    assert_close(h, expected, tolerance=1e-5)
    assert float(mean) == pytest.approx(expected.mean(), rel=1e-4)
    assert float(value) == pytest.approx((expected**2).mean(), rel=1e-5)
    check(dparams, dinputs, slopes(numpy_scalar, ARRAYS), by_position(scalar, lambda v: v), ("x", "y")[:wrt])


@pytest.mark.parametrize("aux", [False, True])
def test_value_and_grad_of_a_single_tensor(aux):
    # MindSpore then returns the gradient itself in place of a tuple of one.
    def mean_square(p, x):
        loss = ops.mean(ops.square(p["w"] * x))
        return (loss, x) if aux else loss

    _, dparams, dinputs = layerwise.value_and_grad(mean_square, {"w": Y}, Y[::-1].copy(), aux=aux)
    assert dinputs == ()
    assert_close(dparams["w"], 2 * Y * Y[::-1].astype(np.float64) ** 2 / Y.size, tolerance=1e-5)


# ---- chain


@functools.lru_cache
def layer(exponent: int):
    def fn(p, x):
        return x + ops.tanh(ops.matmul(x, p["w"])) ** exponent * p["scale"]

    return fn


def power(p, x):
    return ops.tanh(ops.matmul(x, p["w"])) ** 2


def linear(p, x):
    return ops.matmul(x, p["w"])


def links():
    """The same three layers as segments, the second one a residual with a linear shortcut."""
    plain = [(layer(1), {"w": f"w{i}", "scale": f"s{i}"}) for i in (0, 2)]
    return [plain[0], layerwise.Residual([(power, {"w": "w1"})], [(linear, {"w": "a"})]), plain[1]]


@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("recompute", [True, False])
def test_chain(input_grad, first, recompute):
    """From the residual on, too: there it is what may have to leave the gradient of its input out."""
    names = ["w0", "s0", "w1", "a", "w2", "s2"][2 * first :]
    shapes = {name: (3,) if name[0] == "s" else (3, 3) for name in names}
    weights = {name: 0.5 * array(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    dout, parts = array(2, 3, seed=5), links()[first:]
    if recompute:
        parts = [*parts[: 1 - first], layerwise.Recomputed(parts[1 - first :])]
    out, pullback = layerwise.chain(weights, parts, X, input_grad=input_grad)

    def flat(x, xp=np, **w):
        if first == 0:
            x = x + xp.tanh(xp.matmul(x, w["w0"])) * w["s0"]
        x = xp.matmul(x, w["a"]) + xp.tanh(xp.matmul(x, w["w1"])) ** 2
        return x + xp.tanh(xp.matmul(x, w["w2"])) * w["s2"]

    assert_close(out, flat(X.astype(np.float64), **weights), tolerance=1e-5)
    assert_close(layerwise.run_chain(weights, parts, X), out.asnumpy(), tolerance=1e-6)
    grads, dx = pullback(dout)
    assert set(grads) == set(names)
    numeric = slopes(lambda **a: (flat(**a) * dout).sum(), weights | {"x": X})

    def by_place(x, *values):
        return ops.sum(flat(x, ops, **dict(zip(names, values, strict=True))) * ms.Tensor(dout))

    plain = ms.grad(by_place, tuple(range(len(names) + 1)))(*[ms.Tensor(v) for v in (X, *weights.values())])
    for name, value in zip(names, plain[1:], strict=True):
        assert_close(grads[name], numeric[name], name)
        assert_close(grads[name], value.asnumpy(), name, 1e-5)
    if input_grad:
        assert_close(dx, numeric["x"], "dx")
        assert_close(dx, plain[0].asnumpy(), "dx", 1e-5)
    else:
        assert dx is None


# ---- composition


def halves(p, x, mask):
    y = ops.tanh(ops.matmul(x, p["w"])) * mask
    return y, y * y


def scaled(p, y):
    return y * p["scale"]


def added(p, x, y):
    return x + ops.tanh(y)


PARTS = (
    layerwise.Part(halves, ("w",), wrt=1),
    layerwise.Part(scaled, ("scale",)),
    layerwise.Part(added, (), adds=True),
)


def compose(halves, scaled, added):
    """Values that are used twice, a function that is called twice, and one that gives two tensors."""

    def whole(p, x, mask):
        y, square = halves(p, x, mask)
        z = added(p, x, scaled(p, y))
        return added(p, z, square)

    return whole


def test_a_composition_of_parts_is_that_of_its_functions(monkeypatch):
    """Twice, with other numbers: what one call keeps is not the other's; and of what is only added nothing is kept."""
    whole = compose(*(part.fn for part in PARTS))
    mask, held = array(2, 3, seed=7), []
    monkeypatch.setattr(
        layerwise, "pull", lambda *args, was=layerwise.pull: held.append((args[0], args[2])) or was(*args)
    )
    for seed in range(2):
        weights = {"w": 0.3 * array(3, 3, seed=seed), "scale": array(3, seed=seed)}
        x, dout = array(2, 3, seed=seed), ms.Tensor(array(2, 3, seed=5))
        expected, pullback = layerwise.vjp(whole, weights, x, mask, wrt=1)
        out, pull = layerwise.compose(compose, PARTS, weights, x, mask, wrt=1)
        assert_close(out, expected.asnumpy(), tolerance=1e-6)
        dparams, (dx,) = pull(weights, dout)
        assert [fn for fn, _ in held] == [added, added, scaled, halves] and held[0][1][0] is dout
        assert dparams.keys() == weights.keys()
        held.clear()
        numeric = slopes(functools.partial(numpy_sum, mask, dout.asnumpy()), weights | {"x": x})
        (plain, (plain_dx,)), found = pullback(dout), dparams | {"x": dx}
        for name, value in (plain | {"x": plain_dx}).items():
            assert_close(found[name], value.asnumpy(), name, 1e-6)
            assert_close(found[name], numeric[name], name)
        held.clear()


def numpy_sum(mask, dout, w, scale, x):
    y = np.tanh(x @ w) * mask
    return ((x + np.tanh(y * scale) + np.tanh(y * y)) * dout).sum()


def test_equal_blocks_share_one_graph():
    def compiled(depth):
        @functools.lru_cache
        def make():
            def block(p, x):
                return x + ops.tanh(x * p["w"])

            return block

        before = len(api.ms_compile_cache)
        weights = {f"blocks/{i}/w": array(5, seed=i) for i in range(depth)}
        out, pullback = layerwise.chain(weights, [(make(), {"w": path}) for path in weights], array(3, 5))
        assert len(pullback(out)[0]) == depth
        return len(api.ms_compile_cache) - before

    assert compiled(2) == compiled(12) == 2  # one forward, one backward


def test_another_shape_compiles_again_and_stays_right():
    for rows in (1, 2, 3):
        x, y = array(rows, 3), array(rows, 4)
        given = {name: value.astype(np.float64) for name, value in ARRAYS.items()} | {"x": x, "y": y}
        assert_close(layerwise.run(one, PARAMS, x, y), numpy_one(**given), tolerance=1e-5)
