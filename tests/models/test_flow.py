import math

import numpy as np
import pytest

from moviegen.errors import ConfigError
from moviegen.models import flow

# Knots of the 50-step schedule worked out by hand from the four conditions that fix its parabola.
KNOTS = {
    250: {25: 0.10000, 26: 0.10528, 27: 0.11312, 30: 0.15200, 40: 0.44800, 49: 0.93328, 50: 1.0},
    500: {25: 0.05000, 26: 0.05344, 27: 0.05976, 30: 0.09600, 40: 0.40400, 49: 0.92744, 50: 1.0},
    1000: {25: 0.02500, 26: 0.02752, 27: 0.03308, 30: 0.06800, 40: 0.38200, 49: 0.92452, 50: 1.0},
}


@pytest.mark.parametrize("linear_equivalent", KNOTS)
def test_linear_quadratic_knots(linear_equivalent):
    times = flow.schedule("linear_quadratic", 50, linear_equivalent)
    assert times.dtype == np.float32 and times.shape == (51,)
    for index, value in KNOTS[linear_equivalent].items():
        assert times[index] == pytest.approx(value, abs=6e-6)
    np.testing.assert_allclose(times[:26], np.arange(26) / linear_equivalent, atol=1e-7)


@pytest.mark.parametrize("linear_equivalent", KNOTS)
def test_linear_quadratic_equals_the_closed_form_of_public_samplers(linear_equivalent):
    steps, linear = 50, 25
    tau = linear / linear_equivalent
    d = linear - tau * steps
    a, b, c = d / (linear * 25**2), tau / linear - 2 * d / 25**2, d / (linear * 25**2) * linear**2
    expected = [i * tau / linear if i < linear else a * i * i + b * i + c for i in range(steps + 1)]
    np.testing.assert_allclose(flow.schedule("linear_quadratic", steps, linear_equivalent), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["linear", "linear_quadratic"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 250])
def test_times_never_fall_together(name, steps):
    times = flow.schedule(name, steps)
    assert times[0] == 0 and times[-1] == 1 and len(times) == steps + 1
    assert (np.diff(times) > 0).all()


def test_linear_schedule():
    np.testing.assert_allclose(flow.schedule("linear", 4), [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("arguments", [("cosine", 50), ("linear", 0), ("linear_quadratic", 300)])
def test_bad_schedules_are_named(arguments):
    with pytest.raises(ConfigError, match="sample.s"):
        flow.schedule(*arguments)


@pytest.mark.parametrize("mean", [0.0, -1.5])
def test_logit_normal_times(mean):
    times = flow.sample_times(np.random.default_rng(0), 200_000, mean)
    assert times.dtype == np.float32 and times.min() > 0 and times.max() < 1
    logits = np.log(times.astype(np.float64) / (1 - times.astype(np.float64)))
    assert logits.mean() == pytest.approx(mean, abs=0.01)
    assert logits.std() == pytest.approx(1, abs=0.01)
    # A standard normal is below 1 with probability Phi(1), so t is below sigmoid(mean + 1) as often.
    assert (times < 1 / (1 + math.exp(-1 - mean))).mean() == pytest.approx(0.5 * (1 + math.erf(2**-0.5)), abs=0.005)


def test_draw_depends_on_seed_step_and_sample_alone():
    noise, time = flow.draw(1, 2, 3, (4, 5))
    again, time_again = flow.draw(1, 2, 3, (4, 5))
    np.testing.assert_array_equal(noise, again)
    assert time == time_again and noise.dtype == np.float32 and time.dtype == np.float32
    for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4)]:
        other_noise, other_time = flow.draw(*other, (4, 5))
        assert abs(other_noise - noise).max() > 0.1 and other_time != time


def test_draws_of_a_batch_do_not_depend_on_how_it_is_split():
    noise, times = flow.draw_batch(0, 5, range(4), (2, 3))
    for rank in range(2):
        part_noise, part_times = flow.draw_batch(0, 5, range(2 * rank, 2 * rank + 2), (2, 3))
        np.testing.assert_array_equal(part_noise, noise[2 * rank : 2 * rank + 2])
        np.testing.assert_array_equal(part_times, times[2 * rank : 2 * rank + 2])


def test_noise_is_gaussian():
    noise, _ = flow.draw(0, 0, 0, (200_000,))
    assert noise.mean() == pytest.approx(0, abs=0.01) and noise.var() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean() == pytest.approx(3, abs=0.1)  # 1.8 for a uniform, 3 for a gaussian


def test_path_ends_and_slope():
    rng = np.random.default_rng(0)
    x1, noise = rng.standard_normal((2, 3, 4, 5, 6, 7))
    np.testing.assert_array_equal(flow.interpolate(x1, noise, np.zeros(3)), noise)
    np.testing.assert_allclose(flow.interpolate(x1, noise, np.ones(3)), x1 + 1e-5 * noise, atol=1e-12)
    t, h = np.array([0.1, 0.4, 0.8]), 1e-3
    slope = (flow.interpolate(x1, noise, t + h) - flow.interpolate(x1, noise, t - h)) / (2 * h)
    np.testing.assert_allclose(flow.target(x1, noise), slope, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "linear_quadratic"])
def test_euler_follows_a_constant_velocity_exactly(name):
    rng = np.random.default_rng(0)
    x0, x1 = rng.standard_normal((2, 2, 3)).astype(np.float32)
    seen = []

    def velocity(x, t):
        np.testing.assert_allclose(x, x0 + t * (x1 - x0), atol=1e-5)
        seen.append(t)
        return (x1 - x0).astype(np.float64)

    times = flow.schedule(name, 50)
    end = flow.euler(velocity, x0, times)
    assert end.dtype == np.float32 and seen == [float(t) for t in times[:-1]]
    np.testing.assert_allclose(end, x1, atol=1e-5)


def test_euler_on_exponential_growth():
    end = flow.euler(lambda x, t: x, np.ones(1), flow.schedule("linear", 10))
    assert end[0] == pytest.approx(1.1**10, rel=1e-6)


def test_euler_on_tensors():
    import mindspore as ms

    x0 = ms.Tensor(np.array([1.0, -2.0], np.float32))
    end = flow.euler(lambda x, t: (2 * t * ms.ops.ones_like(x)).astype(ms.bfloat16), x0, flow.schedule("linear", 4))
    assert end.dtype == ms.float32
    np.testing.assert_allclose(end.asnumpy(), [1.75, -1.25])


def test_guidance():
    conditional, unconditional = np.array([3.0, 1.0]), np.array([1.0, 2.0])
    np.testing.assert_allclose(flow.guide(conditional, unconditional, 7.5), [16.0, -5.5])
    np.testing.assert_allclose(flow.guide(conditional, unconditional, 1.0), conditional)
    np.testing.assert_allclose(flow.guide(conditional, unconditional, 0.0), unconditional)
