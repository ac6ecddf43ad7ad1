"""AdamW on float32 trees, in place: schedules, decoupled decay by regex, global-norm clipping, exponential averages.

State is a pair of trees like the parameters. MindSpore's fused Adam kernel updates its operands' memory, so weights and
moments exist once; plain functional updates would hold all three twice.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen import backend

Tree = dict[str, ms.Tensor]
_adam = ops.Adam()


def init_state(params: Mapping[str, Any]) -> dict[str, Tree]:
    """Zero moments {"m", "v"} for every parameter, float32."""
    return {name: {path: backend.tensor(np.zeros(p.shape, np.float32)) for path, p in params.items()} for name in "mv"}


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


@ms.jit
def _square_sum(x):
    return ops.sum(ops.square(x))


@ms.jit
def _decay(p, factor):
    return p * factor


@ms.jit
def _average(average, p, rate):
    return average + (p - average) * rate


@ms.jit
def _scaled(g, factor):
    return g * factor


def global_norm(grads: Mapping[str, ms.Tensor]) -> float:
    """Root of the sum of all squared gradients."""
    return math.sqrt(sum(float(_square_sum(g).asnumpy()) for g in grads.values()))


@functools.cache
def _decays(pattern: str, path: str) -> bool:
    return re.search(pattern, path) is None


def adamw_update(
    params: Tree, grads: Mapping[str, ms.Tensor], state: dict[str, Tree], step: int, lr: float, optim: Any, norm: float
) -> None:
    """One AdamW step in place on params and state; `step` counts from 0, `norm` is the gradients' global norm.

    Gradients are scaled to clip_norm where they exceed it (0 = never). Paths that match `no_decay` are not decayed.
    """
    scale = optim.clip_norm / norm if optim.clip_norm and norm > optim.clip_norm else 1.0
    beta1, beta2 = optim.betas
    b1, b2, power1, power2, rate, eps, factor = (
        backend.tensor(np.float32(x))
        for x in (beta1, beta2, beta1 ** (step + 1), beta2 ** (step + 1), lr, optim.eps, scale)
    )
    kept = backend.tensor(np.float32(1.0 - lr * optim.weight_decay))
    for path, p in params.items():
        if optim.weight_decay and _decays(optim.no_decay, path):
            p.assign_value(_decay(p, kept))
        grad = grads[path] if scale == 1.0 else _scaled(grads[path], factor)
        _adam(p, state["m"][path], state["v"][path], power1, power2, rate, b1, b2, eps, grad)


def ema_update(average: Tree, params: Tree, decay: float) -> None:
    """average <- decay * average + (1 - decay) * params, in place, float32."""
    rate = backend.tensor(np.float32(1.0 - decay))
    for path, p in params.items():
        average[path].assign_value(_average(average[path], p, rate))
