"""Run and differentiate functions of parameter trees, each compiled once: the only place that differentiates models.

MindSpore silently returns empty or zero gradients when parameters cross a `jit` or `grad` border inside a dict, so here
every tensor crosses one by one, by position, and the tree is rebuilt inside. A function is compiled for each pair of
(function, parameter paths) and each set of input shapes: N equal blocks share one graph, so compile time does not grow
with depth. `vjp` keeps the function's inputs alone and recomputes the rest in the backward graph.

A function takes `(p, *inputs)`, p a flat dict, and returns a tensor or a tuple of tensors. It must be the same object
whenever it means the same thing (builders are lru_cached on their static settings).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mindspore as ms
from mindspore import ops

from moviegen import backend

Fn = Callable[..., Any]
_make_dict = ops.functional.make_dict
_grad_with_sens = ops.GradOperation(get_all=True, sens_param=True)


def _positional(fn: Fn, paths: tuple[str, ...]) -> Fn:
    """`fn` with the tree's tensors as its first positional arguments, in the order of `paths`."""
    n = len(paths)

    def flat(*args):
        return fn(_make_dict(paths, args[:n]), *args[n:])  # filling a dict in a loop compiles two to four times as long

    return flat


@functools.cache
def _forward(fn: Fn, paths: tuple[str, ...]) -> Fn:
    return ms.jit(_positional(fn, paths))


@functools.cache
def _backward(fn: Fn, paths: tuple[str, ...], outputs: int, wrt: int) -> Fn:
    flat = _positional(fn, paths)
    wanted = len(paths) + wrt

    if outputs == 1:

        def pull(dout, *args):
            return _grad_with_sens(flat)(*args, dout)[:wanted]
    else:

        def pull(*args):
            return _grad_with_sens(flat)(*args[outputs:], args[:outputs])[:wanted]

    return ms.jit(pull)


@functools.cache
def _value_and_grad(fn: Fn, paths: tuple[str, ...], wrt: int, aux: bool) -> Fn:
    positions = tuple(range(len(paths) + wrt))
    return ms.jit(ms.value_and_grad(_positional(fn, paths), positions, has_aux=aux))


def _split(params: Mapping[str, Any]) -> tuple[tuple[str, ...], list[ms.Tensor]]:
    paths = tuple(sorted(params))
    return paths, [backend.tensor(params[path]) for path in paths]


def run(fn: Fn, params: Mapping[str, Any], *inputs: Any) -> Any:
    """fn(params, *inputs), compiled."""
    paths, flat = _split(params)
    return _forward(fn, paths)(*flat, *[backend.tensor(x) for x in inputs])


def vjp(fn: Fn, params: Mapping[str, Any], *inputs: Any, wrt: int | None = None) -> tuple[Any, Callable]:
    """fn's output and its pullback: `pullback(*douts) -> (dparams, dinputs)`.

    The pullback recomputes fn inside its own compiled graph. `wrt`: how many of the leading inputs to differentiate
    (default all); data, noise and masks go last.
    """
    paths, flat = _split(params)
    inputs = [backend.tensor(x) for x in inputs]
    out = _forward(fn, paths)(*flat, *inputs)
    outputs = len(out) if isinstance(out, tuple) else 1
    wrt = len(inputs) if wrt is None else wrt

    def pullback(*douts):
        grads = _backward(fn, paths, outputs, wrt)(*[backend.tensor(d) for d in douts], *flat, *inputs)
        return dict(zip(paths, grads, strict=False)), tuple(grads[len(paths) :])

    return out, pullback


def value_and_grad(fn: Fn, params: Mapping[str, Any], *inputs: Any, wrt: int = 0, aux: bool = False) -> tuple:
    """(loss, dparams, dinputs) of a scalar function, in one graph without recomputation.

    `wrt`: how many of the leading inputs to differentiate. With `aux`, fn returns (loss, more...) and the first result is
    that whole tuple; only the loss is differentiated.
    """
    paths, flat = _split(params)
    value, grads = _value_and_grad(fn, paths, wrt, aux)(*flat, *[backend.tensor(x) for x in inputs])
    if not isinstance(grads, (tuple, list)):  # MindSpore unpacks the tuple of a single position
        grads = (grads,)
    return value, dict(zip(paths, grads, strict=False)), tuple(grads[len(paths) :])


def chain(
    segments: Sequence[tuple[Fn, Mapping[str, Any], str]], x: Any, input_grad: bool = True
) -> tuple[Any, Callable]:
    """Run `x` through segments (fn, parameters, prefix), one compiled graph per distinct fn and shape.

    Returns the output and `pullback(dout) -> (gradients by full path, dx)`; only the segments' inputs are kept. dx is None
    without `input_grad`.
    """
    pulls = []
    for fn, params, prefix in segments:
        x, pull = vjp(fn, params, x, wrt=1 if pulls or input_grad else 0)
        pulls.append((prefix, pull))

    def pullback(dout):
        grads = {}
        while pulls:
            prefix, pull = pulls.pop()
            dparams, dinputs = pull(dout)
            dout = dinputs[0] if dinputs else None
            grads.update({f"{prefix}/{path}": g for path, g in dparams.items()})
        return grads, dout

    return x, pullback
