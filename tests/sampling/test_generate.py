"""Euler steps, guidance and noise with a velocity that is known."""

import re
from collections import Counter

import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.models import flow
from moviegen.models.transformer import model as transformer
from moviegen.parallel.mesh import ONE, Group, Mesh
from moviegen.sampling import generate as generation
from moviegen.sampling.assignment import assign
from tests.models.transformer import tiny_transformer
from tests.sampling import stand_ins
from tests.sampling.stand_ins import SHAPE, answer_with

ALONE = assign(ONE, True)


@pytest.fixture
def four_steps():
    config = stand_ins.config()
    config.sample.update(guidance_scale=3.0, schedule="linear", steps=4)
    return config


def generate(config, texts, empty, indices, by=ALONE):
    """With text whose only content is one number for each sample."""
    values = np.array([*texts, empty], np.float32).reshape(-1, 1, 1)
    text = {"ul2": (values, np.ones(values.shape[:2], bool))}
    return generation.generate({}, config, text, generation.noise(config.seed, indices, SHAPE), by)


def test_guidance_meets_the_text_and_the_empty_text(monkeypatch, four_steps):
    """A constant velocity v adds exactly v: conditional 5 and 7, unconditional 1, guided 1 + 3 (v - 1)."""
    answer_with(monkeypatch, lambda x, t, number: number + 0 * x)
    four_steps.sample.guidance_scale = 0.0
    plain = generate(four_steps, [5, 7], 0, [0, 1])
    four_steps.sample.guidance_scale = 3.0
    made = generate(four_steps, [5, 7], 1, [0, 1])
    np.testing.assert_allclose(made - plain, np.reshape([13.0, 19.0], (2, 1, 1, 1, 1)) + 0 * made, atol=1e-5)


def test_without_guidance_the_empty_text_is_not_asked(monkeypatch, four_steps):
    batches = []
    answer_with(monkeypatch, lambda x, t, number: batches.append(len(x)) or number + 0 * x)
    four_steps.sample.guidance_scale = 1.0
    generate(four_steps, [5, 7], 1, [0, 1])
    assert set(batches) == {2} and len(batches) == four_steps.sample.steps


def test_the_text_is_seen_once_for_all_steps(monkeypatch):
    """Its parameters are gathered once, all others once a step; what is made is what steps by `apply` make."""
    config, seen = ConfigDict({"model": tiny_transformer.config(), "sample": {"guidance_scale": 3.0}}), Counter()
    config.sample.update(schedule="linear", steps=3)
    params, (start, _, text) = tiny_transformer.random_params(config.model), tiny_transformer.inputs(batch=3)

    def by_layer(own, *args, real=transformer.zero.by_layer):
        seen.update(own.keys())
        return real(own, *args)

    monkeypatch.setattr(transformer.zero, "by_layer", by_layer)
    made = generation.generate(params, config, text, start[:2], ALONE)
    assert seen == {path: 1 if re.search(r"^text/|cross/[kv]$", path) else 3 for path in params}
    rows = [0, 1, 2, 2]
    text = {name: (values[rows], mask[rows]) for name, (values, mask) in text.items()}
    x = start[:2]
    for t in flow.schedule("linear", 3)[:-1]:
        given = np.concatenate([x, x]), np.full(4, t, np.float32)
        found = transformer.apply(params, config.model, *given, text).asnumpy()
        x = x + (found[2:] + 3 * (found[:2] - found[2:])) / 3
    np.testing.assert_allclose(made, x, atol=1e-5)


def test_two_ranks_on_the_data_axis_take_a_branch_each(monkeypatch, four_steps):
    """What the two compute without the sum over them adds up to what one rank computes."""
    answer_with(monkeypatch, lambda x, t, number: number + 0 * x)
    whole = generate(four_steps, [5, 7], 1, [0, 1])
    monkeypatch.setattr(generation.collectives, "all_reduce", lambda group: lambda x: x)
    noise, parts = None, []
    for rank in (0, 1):
        by = assign(Mesh(data=2, world=Group("", 2, rank), replicas=Group("pair", 2, rank)), True)
        assert by[1:6] == (0, 1, rank, rank, 2)
        parts.append(generate(four_steps, [5, 7], 1, [0, 1], by))
    four_steps.sample.guidance_scale = 0.0
    noise = generate(four_steps, [0, 0], 0, [0, 1])
    np.testing.assert_allclose(sum(parts) - 2 * noise, whole - noise, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "linear_quadratic"])
def test_euler_follows_the_schedule(monkeypatch, four_steps, schedule):
    """dx/dt = x (1 + t): each step multiplies by 1 + dt (1 + t)."""
    four_steps.sample.update(schedule=schedule, guidance_scale=1.0)
    answer_with(monkeypatch, lambda x, t, number: x * (1 + t))
    made = generate(four_steps, [0], 0, [3])
    times = flow.schedule(schedule, four_steps.sample.steps).astype(np.float64)
    factor = np.prod(1 + np.diff(times) * (1 + times[:-1]))
    answer_with(monkeypatch, lambda x, t, number: 0 * x)
    noise = generate(four_steps, [0], 0, [3])
    np.testing.assert_allclose(made, noise * factor, rtol=1e-5)
    assert made.dtype == np.float32


def test_noise_depends_on_seed_and_index_alone(monkeypatch, four_steps):
    answer_with(monkeypatch, lambda x, t, number: 0 * x)

    def noise(seed, indices):
        four_steps.seed = seed
        return generate(four_steps, [0] * len(indices), 0, indices)

    together = noise(0, [0, 1, 2])
    np.testing.assert_array_equal(noise(0, [2, 0]), together[[2, 0]])
    assert not np.allclose(noise(1, [0]), together[:1]) and not np.allclose(together[0], together[1])
    training, _ = flow.draw(0, 1, 0, SHAPE)
    assert not np.allclose(together[1], training)
