"""Run and differentiate functions of parameter trees, each compiled once: the only place that differentiates models.

MindSpore silently returns empty or zero gradients when parameters cross a `jit` or `grad` border inside a dict, so here
every tensor crosses by position, and the tree is rebuilt inside. A function is compiled for each pair of (function,
parameter paths) and each set of input shapes: N equal blocks share one graph. A function takes `(p, *inputs)`, p a flat
dict, and returns a tensor or a tuple of tensors. It must be the same object whenever it means the same thing (builders are
lru_cached on their static settings).
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import mindspore as ms
from mindspore import ops

from moviegen.nn import backend

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

    def pull(*args):
        douts = args[0] if outputs == 1 else args[:outputs]
        return _grad_with_sens(flat)(*args[outputs:], douts)[:wanted]

    return ms.jit(pull)


@functools.cache
def _value_and_grad(fn: Fn, paths: tuple[str, ...], wrt: int, aux: bool) -> Fn:
    positions = tuple(range(len(paths) + wrt))
    return ms.jit(ms.value_and_grad(_positional(fn, paths), positions, has_aux=aux))


def _flat(params: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[tuple[str, ...], list[ms.Tensor]]:
    paths = tuple(sorted(params))
    return paths, [backend.tensor(x) for x in (*(params[path] for path in paths), *inputs)]


def run(fn: Fn, params: Mapping[str, Any], *inputs: Any) -> Any:
    """fn(params, *inputs), compiled."""
    paths, args = _flat(params, inputs)
    return _forward(fn, paths)(*args)


def pull(
    fn: Fn, params: Mapping[str, Any], inputs: Sequence[Any], douts: Sequence[Any], wrt: int | None = None
) -> tuple:
    """Gradients (dparams, dinputs) of fn(params, *inputs), given those of its outputs; recomputes fn in the same graph.

    `wrt`: how many of the leading inputs to differentiate (default all); data, noise and masks go last.
    """
    paths, args = _flat(params, inputs)
    wrt = len(inputs) if wrt is None else wrt
    grads = _backward(fn, paths, len(douts), wrt)(*[backend.tensor(x) for x in douts], *args)
    return dict(zip(paths, grads, strict=False)), tuple(grads[len(paths) :])


def vjp(fn: Fn, params: Mapping[str, Any], *inputs: Any, wrt: int | None = None) -> tuple[Any, Callable]:
    """fn's output and its pullback: `pullback(*douts) -> (dparams, dinputs)`, which keeps parameters and inputs."""
    return run(fn, params, *inputs), lambda *douts: pull(fn, params, inputs, douts, wrt)


class Part(NamedTuple):
    """A function that others are composed of.

    Args:
        fn: takes (p, *inputs), p with the parameters `names` at least, and returns a tensor or a tuple of tensors.
        names: of the parameters that it uses.
        adds: whether it only adds its first input to its first output, so that no gradient needs its value.
        wrt: how many of the leading inputs to differentiate (default all).
    """

    fn: Fn
    names: tuple[str, ...]
    adds: bool = False
    wrt: int | None = None


class _Value(NamedTuple):
    number: int
    tensor: ms.Tensor


def compose(
    make: Callable[..., Fn], parts: Sequence[Part], params: Mapping[str, Any], *inputs: Any, wrt: int
) -> tuple[Any, Callable]:
    """`make(*functions)(params, *inputs)` with each part's function compiled by itself, and its pullback.

    `pullback(params, dout) -> (dparams, dinputs)` is to be called once. The parts' inputs are kept, parameters are not. What
    `make` makes calls its functions and does nothing else; each parameter belongs to one part.
    """
    given = [_Value(i, backend.tensor(x)) for i, x in enumerate(inputs)]
    links, count = [], itertools.count(len(given))

    def linked(part):
        def call(p, *values):
            found = run(part.fn, {name: p[name] for name in part.names}, *(value.tensor for value in values))
            made = [_Value(next(count), x) for x in (found if isinstance(found, tuple) else (found,))]
            kept = [value.tensor for value in values[part.adds :]]
            links.append((part, [value.number for value in values], kept, [value.number for value in made]))
            return tuple(made) if isinstance(found, tuple) else made[0]

        return call

    out = make(*map(linked, parts))(params, *given)

    def pullback(params, dout):
        grads, found = {out.number: dout}, {}
        while links:  # what a part kept is let go as soon as it is used
            part, numbers, kept, made = links.pop()
            douts = [grads.pop(number) for number in made]
            own = {name: params[name] for name in part.names}
            dparams, dinputs = pull(part.fn, own, [*douts[: part.adds], *kept], douts, part.wrt)
            found |= dparams
            for number, dinput in zip(numbers, dinputs, strict=False):
                grads[number] = grads[number] + dinput if number in grads else dinput
        return found, tuple(grads[number] for number in range(wrt))

    return out.tensor, pullback


def value_and_grad(fn: Fn, params: Mapping[str, Any], *inputs: Any, wrt: int = 0, aux: bool = False) -> tuple:
    """(loss, dparams, dinputs) of a scalar function, in one graph; `wrt` leading inputs are differentiated.

    With `aux`, fn returns (loss, more...) and the first result is that whole tuple; only the loss is differentiated.
    """
    paths, args = _flat(params, inputs)
    value, grads = _value_and_grad(fn, paths, wrt, aux)(*args)
    if not isinstance(grads, (tuple, list)):  # MindSpore unpacks the tuple of a single position
        grads = (grads,)
    return value, dict(zip(paths, grads, strict=False)), tuple(grads[len(paths) :])


class Residual(NamedTuple):
    """shortcut(x) + branch(x), each a sequence of segments; an empty shortcut is x itself."""

    branch: Sequence[Any]
    shortcut: Sequence[Any] = ()


class Recomputed(NamedTuple):
    """Segments of which `chain` keeps the first one's input alone, and which it runs once more on the way back."""

    segments: Sequence[Any]


def weights(params: Mapping[str, Any], names: Mapping[str, str], gather: Callable[[dict], dict] = dict) -> dict:
    """The gathered parameters of a segment, by its function's names."""
    found = gather({path: params[path] for path in names.values()})
    return {name: found[path] for name, path in names.items()}


def run_chain(params: Mapping[str, Any], segments: Sequence[Any], x: Any, gather: Callable[[dict], dict] = dict) -> Any:
    """`x` through segments, each (fn, {fn's name of a parameter: its path in params}), a `Residual` or `Recomputed`."""
    for segment in segments:
        if isinstance(segment, Residual):
            across = run_chain(params, segment.shortcut, x, gather)
            x = across + run_chain(params, segment.branch, x, gather)
        elif isinstance(segment, Recomputed):
            x = run_chain(params, segment.segments, x, gather)
        else:
            fn, names = segment
            x = run(fn, weights(params, names, gather), x)
    return x


def chain(
    params: Mapping[str, Any],
    segments: Sequence[Any],
    x: Any,
    input_grad: bool = True,
    gather: Callable[[dict], dict] = dict,
    reduce: Callable[[dict], dict] = dict,
) -> tuple[Any, Callable]:
    """`run_chain` to be differentiated: one compiled graph per distinct fn and shape, only the segments' inputs are kept.

    Returns the output and `pullback(dout) -> (gradients by path, dx)`. dx is None without `input_grad`. `gather` turns what
    params hold for a segment into what it computes with, each time it is run; `reduce` is given each segment's gradients
    as soon as they exist, and what it returns is part of the result.
    """
    pulls = []
    for segment in segments:
        needed = bool(pulls) or input_grad
        if isinstance(segment, Residual):
            x, pull = _residual(params, segment, x, needed, gather, reduce)
        elif isinstance(segment, Recomputed):
            x, pull = _recomputed(params, segment.segments, x, needed, gather, reduce)
        else:
            x, pull = _link(params, *segment, x, needed, gather, reduce)
        pulls.append(pull)

    def pullback(dout):
        grads = {}
        while pulls:  # what a segment kept is let go as soon as it is used
            found, dout = pulls.pop()(dout)
            grads.update(found)
        return grads, dout

    return x, pullback


def _link(params, fn, names, x, input_grad, gather, reduce):
    def pullback(dout):
        found, dx = pull(fn, weights(params, names, gather), (x,), (dout,), int(input_grad))
        return reduce({names[name]: g for name, g in found.items()}), dx[0] if dx else None

    return run(fn, weights(params, names, gather), x), pullback


def _recomputed(params, segments, x, input_grad, gather, reduce):
    def pullback(dout):
        return chain(params, segments, x, input_grad, gather, reduce)[1](dout)

    return run_chain(params, segments, x, gather), pullback


def _residual(params, segment, x, input_grad, gather, reduce):
    out, pull_branch = chain(params, segment.branch, x, input_grad, gather, reduce)
    across, pull_shortcut = chain(params, segment.shortcut, x, input_grad, gather, reduce)

    def pullback(dout):
        grads, dx = pull_branch(dout)
        more, dacross = pull_shortcut(dout)
        return grads | more, dx + dacross if input_grad else None

    return across + out, pullback
