"""Products may be in bfloat16; times and the average of the weights may not: what each does to a training of 200 steps."""

import ml_dtypes
import numpy as np
import pytest

from moviegen import config as configs
from moviegen.models import flow
from moviegen.nn import backend
from moviegen.runner import Run
from moviegen.training import generator, optim
from tests.training.logs import lines

CLOSE = 0.02


def rounded(x):
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def average_in_bfloat16(monkeypatch):
    update = optim.ema_update

    def ema_update(ema, params, decay):
        update(ema, params, decay)
        for value in ema.values():
            value.assign_value(backend.tensor(rounded(value.asnumpy())))

    monkeypatch.setattr(optim, "ema_update", ema_update)


def test_an_average_in_bfloat16_does_not_move(monkeypatch):
    ends = []
    for change in (lambda patch: None, average_in_bfloat16):
        change(monkeypatch)
        average = {"w": backend.tensor(rounded(np.linspace(-1, 1, 64)))}
        start, weights = average["w"].asnumpy(), {"w": backend.tensor(np.float32(np.linspace(-1, 1, 64) + 0.5))}
        for _ in range(50):
            optim.ema_update(average, weights, 0.9999)
        ends.append(np.abs(average["w"].asnumpy() - start).mean())
    assert ends[0] == pytest.approx(50 * 0.5e-4, rel=CLOSE) and ends[1] < 0.1 * ends[0]


@pytest.mark.parametrize("of", [lambda t: t, lambda t: 1 - t], ids=["from noise", "to noise"])
def test_steps_between_times_in_bfloat16_are_not_those_of_the_schedule(of):
    exact = np.diff(of(flow.schedule("linear_quadratic", 50)))
    assert np.abs(np.diff(rounded(of(flow.schedule("linear_quadratic", 50)))) / exact - 1).max() > 4 * CLOSE


@pytest.fixture
def curves(tmp_path, monkeypatch):
    """(dtype) -> losses of 200 steps of the tiny stage 1, and those of the average on held-out samples."""
    update = optim.ema_update
    # As late in a run: at its beginning the decay is lower, so that what there is to add to the average is larger.
    monkeypatch.setattr(optim, "ema_update", lambda ema, params, decay: update(ema, params, 0.99))

    def run(name, dtype):
        config = configs.load("experiments/1b_stage1.py:tiny").unlock()
        config.model.compute_dtype = dtype
        config.train.update(steps=200, batch_size=8, validate_every=100, checkpoint_every=200)
        config.optim.learning_rate = 3e-4
        config.data.latent_folder = str(tmp_path / "latents")
        generator.train(Run(config, tmp_path / name))
        told = lines(tmp_path / name)
        losses, heldout = (
            np.array([line[key] for line in told if key in line]) for key in ("train/image_loss", "train/heldout_loss")
        )
        assert len(losses) == 200 and len(heldout) == 2
        return losses, heldout

    return run


@pytest.mark.slow
def test_bfloat16_stays_within_two_percent_and_times_or_an_average_in_it_would_not(curves, monkeypatch):
    def off(name):
        found = [float(np.abs(a / b - 1).max()) for a, b in zip(curves(name, "bfloat16_simulated"), exact, strict=True)]
        print(f"{name} in bfloat16: the loss is off by {found[0]:.2%}, that of the average by {found[1]:.2%}")
        return found

    exact = curves("exact", "float32")
    assert np.mean(exact[0][-20:]) < 0.8 * np.mean(exact[0][:20])
    assert max(off("products")) < CLOSE
    with monkeypatch.context() as patch:
        sample_times = flow.sample_times
        patch.setattr(flow, "sample_times", lambda *args: rounded(sample_times(*args)))
        assert off("times")[0] > CLOSE
    average_in_bfloat16(monkeypatch)
    assert off("average")[1] > CLOSE
