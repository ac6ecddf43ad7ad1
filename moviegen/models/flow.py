"""Flow matching as in Movie Gen (arXiv 2410.13720): path, target, times, sampling schedules, Euler steps and guidance.

Flow time t runs from 0 (gaussian noise) to 1 (data). Times and schedules stay in float32 whatever the model computes
in: in bfloat16 the steps of a 50-step schedule are off by up to a tenth, or by their own length where time runs from 1 to 0.
"""

from collections.abc import Callable, Sequence

import numpy as np

from moviegen import streams
from moviegen.errors import ConfigError
from moviegen.streams import Stream

SIGMA_MIN = 1e-5


def sample_times(rng: np.random.Generator, n: int, logit_mean: float = 0.0) -> np.ndarray:
    """Draw n logit-normal times: sigmoid of a normal of deviation 1, float32 (n,) strictly inside (0, 1)."""
    return (1 / (1 + np.exp(-(logit_mean + rng.standard_normal(n))))).astype(np.float32)


def draw(
    seed: int, step: int, index: int, shape: Sequence[int], logit_mean: float = 0.0, stream: Stream = Stream.NOISE
) -> tuple[np.ndarray, np.float32]:
    """Noise and time of one training sample, a pure function of its arguments: gaussian, float32 of `shape`; logit-normal.

    `index` is the sample's position in the global batch, so any split of the batch over ranks draws the same.
    """
    rng = streams.rng(stream, seed, step, index)
    time = sample_times(rng, 1, logit_mean)[0]
    return rng.standard_normal(tuple(shape), dtype=np.float32), time


def draw_batch(
    seed: int,
    step: int,
    sample_indices: Sequence[int],
    shape: Sequence[int],
    logit_mean: float = 0.0,
    stream: Stream = Stream.NOISE,
):
    """`draw` for several samples: noise (b, *shape) and times (b,), both float32."""
    draws = [draw(seed, step, index, shape, logit_mean, stream) for index in sample_indices]
    return np.stack([noise for noise, _ in draws]), np.stack([time for _, time in draws])


def interpolate(x1, noise, t):
    """Point of the path at time t: t * x1 + (1 - (1 - sigma_min) * t) * noise; x1, noise (b ...), t (b,)."""
    t = t.reshape((-1,) + (1,) * (len(x1.shape) - 1))
    return t * x1 + (1 - (1 - SIGMA_MIN) * t) * noise


def target(x1, noise):
    """Velocity of the path, the same at every time: x1 - (1 - sigma_min) * noise."""
    return x1 - (1 - SIGMA_MIN) * noise


def schedule(name: str, steps: int, linear_equivalent: int = 250) -> np.ndarray:
    """Times of a sampling run, float32 (steps + 1,), rising from 0 to 1.

    "linear" is uniform. "linear_quadratic" walks its first half as a uniform schedule of `linear_equivalent` steps
    would, then widens its steps along a parabola that leaves the line with the same slope and ends at 1 (the paper
    gives the idea and not the formula; this is the parabola of the public samplers).
    """
    if steps < 1:
        raise ConfigError(f"sample.steps is {steps}: a schedule needs at least 1 step")
    if name == "linear":
        return np.linspace(0, 1, steps + 1).astype(np.float32)
    if name != "linear_quadratic":
        raise ConfigError(f'sample.schedule is "{name}": expected "linear" or "linear_quadratic"')
    if steps > linear_equivalent:
        raise ConfigError(
            f"sample.steps is {steps}: linear_quadratic stands for {linear_equivalent} linear steps and takes at most "
            f'as many itself; take fewer or set sample.schedule to "linear"'
        )
    linear = steps // 2
    knots = np.arange(steps + 1, dtype=np.float64)
    # The parabola through (linear, linear / N) with slope 1 / N and through (steps, 1).
    curvature = (1 - steps / linear_equivalent) / (steps - linear) ** 2
    times = knots / linear_equivalent + curvature * np.maximum(knots - linear, 0) ** 2
    return times.astype(np.float32)


def euler(velocity: Callable, x0, times: np.ndarray):
    """Integrate dx/dt = velocity(x, t) from x0 over `times` by Euler steps in float32; x0 numpy or Tensor, t a python float."""
    x = x0.astype("float32")
    for t, following in zip(times[:-1], times[1:], strict=True):
        x = x + (float(following) - float(t)) * velocity(x, float(t)).astype("float32")
    return x


def guide(conditional, unconditional, scale: float):
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)
