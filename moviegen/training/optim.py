"""AdamW on float32 trees, in place: schedules, decoupled decay by regex, global-norm clipping; the EMA of the weights.

State is a pair of trees like the parameters. MindSpore's fused Adam kernel updates its operands' memory, so weights and
moments exist once; plain functional updates would hold all three twice. Moments and EMA may be kept in host memory
(`kernels.to_host`): a chunk at a time is fetched, updated and taken back.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.nn import backend, kernels
from moviegen.parallel import collectives
from moviegen.parallel.mesh import ALONE, Group

Tree = dict[str, ms.Tensor]
_adam = ops.Adam()


def init_state(params: Mapping[str, Any], host: bool = False) -> dict[str, Tree]:
    """Zero moments {"m", "v"} for every parameter, float32, on the device or in `host` memory."""
    place = kernels.to_host if host else backend.tensor
    return {name: {path: place(np.zeros(p.shape, np.float32)) for path, p in params.items()} for name in "mv"}


def learning_rate(optim: Any, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (0 is the first): linear warm-up, then "constant" or "cosine".

    The cosine falls from learning_rate at the end of warm-up to final_learning_rate at the last step.
    """
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.learning_rate
    done = (step - optim.warmup_steps) / max(1, total_steps - 1 - optim.warmup_steps)
    wave = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return optim.final_learning_rate + (optim.learning_rate - optim.final_learning_rate) * wave


def plateau(state: dict[str, float], value: float, rule: Any) -> dict[str, float]:
    """State {"best", "bad", "factor"} after one more validation loss.

    After `patience` validations in a row that are not `min_delta` below the best, factor is multiplied by rule.factor and
    the count starts anew; the learning rate is multiplied by factor, with rule.min_learning_rate as its floor.
    """
    if value < state["best"] - rule.min_delta:
        return state | {"best": value, "bad": 0}
    if state["bad"] + 1 < rule.patience:
        return state | {"bad": state["bad"] + 1}
    return state | {"bad": 0, "factor": state["factor"] * rule.factor}


# Updates run compiled, a chunk of the model at a time: a call for every tensor would take as long as the backward pass
# of a small model. Chunks of equal shapes, such as a transformer's blocks, share one graph.
_CHUNK = 24


def _chunks(params: Mapping[str, Any]) -> list[list[str]]:
    """Paths that share their first two components, at most _CHUNK of them together."""
    groups: dict[str, list[str]] = {}
    for path in params:
        groups.setdefault("/".join(path.split("/")[:2]) if "/" in path else "", []).append(path)
    return [paths[i : i + _CHUNK] for paths in groups.values() for i in range(0, len(paths), _CHUNK)]


@functools.cache
def _square_sum(n: int):
    def square_sum(*grads):
        total = ops.sum(ops.square(grads[0]))
        for i in range(1, n):
            total = total + ops.sum(ops.square(grads[i]))
        return total

    return ms.jit(square_sum)


@functools.cache
def _adam_step(n: int):
    def adam_step(power1, power2, rate, beta1, beta2, eps, factor, *tensors):
        for i in range(n):
            p, m, v, grad = tensors[i], tensors[n + i], tensors[2 * n + i], tensors[3 * n + i]
            _adam(p, m, v, power1, power2, rate, beta1, beta2, eps, grad * factor)
        return rate

    return ms.jit(adam_step)


@functools.cache
def _moved(n: int):
    def moved(rate, *tensors):
        out = ()
        for i in range(n):
            out = out + (tensors[i] + (tensors[n + i] - tensors[i]) * rate,)
        return out

    return ms.jit(moved)


@functools.cache
def _scaled(n: int):
    def scaled(factor, *tensors):
        out = ()
        for i in range(n):
            out = out + (tensors[i] * factor,)
        return out

    return ms.jit(scaled)


def square_sums(grads: Mapping[str, ms.Tensor]) -> list[ms.Tensor]:
    """Sums of squares, scalars on the device, of all gradients a chunk at a time; the global norm is the root of their sum."""
    return [_square_sum(len(chunk))(*[grads[path] for path in chunk]) for chunk in _chunks(grads)]


def means(values: Sequence[Any], group: Group = ALONE) -> list[Any]:
    """Means over the group of numbers and vectors on the device: one message, and the one time that a step waits for it."""
    parts = [ops.reshape(backend.tensor(x), (-1,)) for x in values]
    found = collectives.all_reduce(group)(ops.concat(parts)).asnumpy().astype(np.float64) / group.size
    found = np.split(found, np.cumsum([part.shape[0] for part in parts])[:-1])
    return [vector if len(vector) > 1 else float(vector[0]) for vector in found]


def adamw_update(
    params: Tree, grads: Mapping[str, ms.Tensor], state: dict[str, Tree], step: int, lr: float, optim: Any, norm: float
) -> None:
    """One AdamW step in place on params and state; `step` counts from 0, `norm` is the gradients' global norm.

    Gradients are scaled to clip_norm where they exceed it (0 = never). Paths that match `no_decay` are not decayed.
    """
    scale = optim.clip_norm / norm if optim.clip_norm and norm > optim.clip_norm else 1.0
    beta1, beta2 = optim.betas
    # The kernel adds eps to the root of v as it is; AdamW adds it to that of v with its bias corrected.
    eps = optim.eps * math.sqrt(1.0 - beta2 ** (step + 1))
    numbers = (beta1 ** (step + 1), beta2 ** (step + 1), lr, beta1, beta2, eps, scale)
    numbers = [backend.tensor(np.float32(x)) for x in numbers]
    if optim.weight_decay:
        kept = backend.tensor(np.float32(1.0 - lr * optim.weight_decay))
        for chunk in _chunks({path: p for path, p in params.items() if not re.search(optim.no_decay, path)}):
            for path, value in zip(chunk, _scaled(len(chunk))(kept, *[params[path] for path in chunk]), strict=True):
                params[path].assign_value(value)
    for chunk, moments in _fetched((state["m"], state["v"]), _chunks(params)):
        weights, slopes = ([tree[path] for path in chunk] for tree in (params, grads))
        _adam_step(len(chunk))(*numbers, *weights, *moments, *slopes)
        del moments


def ema_update(ema: Tree, params: Tree, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * params, in place, float32."""
    rate = backend.tensor(np.float32(1.0 - decay))
    for chunk, old in _fetched((ema,), _chunks(params)):
        moved = _moved(len(chunk))(rate, *old, *[params[path] for path in chunk])
        for tensor, value in zip(old, moved, strict=True):
            tensor.assign_value(value)
        del old, tensor


def on_device(tree: Tree) -> Tree:
    """The tree with what is kept in host memory fetched from there."""
    if not any(map(kernels.in_host, tree.values())):
        return tree
    fetched = kernels.fetch(list(tree.values()))
    kernels.meet()
    return dict(zip(tree, fetched, strict=True))


def _fetched(trees: Sequence[Tree], chunks: list[list[str]]) -> Iterator[tuple[list[str], list[ms.Tensor]]]:
    """Each chunk with its tensors on the device, one tree's after the other's, to be updated in place.

    Of trees in host memory the next chunk is fetched and the last one taken back while one is updated; the caller lets go
    of a chunk's tensors before it asks for the next, so that two are on the device. `kernels.all_stored` ends it.
    """
    kept = [[tree[path] for tree in trees for path in chunk] for chunk in chunks]
    if not any(kernels.in_host(x) for xs in kept for x in xs):
        yield from zip(chunks, kept, strict=True)
        return
    following = kernels.fetch(kept[0])
    for i, chunk in enumerate(chunks):
        kernels.meet()  # this chunk is here, and the one before is where it is kept: its tensors may go
        tensors, following = following, []
        if i + 1 < len(kept):
            following = kernels.fetch(kept[i + 1])
        yield chunk, tensors
        kernels.store(kept[i], tensors)
    kernels.meet()
