"""The graphs of a run with buckets and texts of three lengths are all compiled before its first step."""

import numpy as np
import pytest

from experiments import common
from moviegen.models import flow
from moviegen.models.transformer import model as transformer, shapes, step as transformer_step
from moviegen.nn import backend
from moviegen.parallel import buckets
from moviegen.parallel.comm import LOCAL
from moviegen.parallel.mesh import ONE, Group, Mesh
from moviegen.text import source
from moviegen.training import warmup

BUDGETS = dict(ul2=64, metaclip=31, byt5=20)  # 128 places: contexts of 128, 64 and 32 tokens


@pytest.fixture
def config():
    made = common.stage("1b", 2, in_buckets=True)
    made.model = common.transformer("tiny", hidden_size=24, num_layers=3, num_heads=2, ffn_size=32, norm_eps=1e-5)
    made.model.update(position_lengths=(2, 4, 4), latent_channels=4, text_dims=dict(ul2=8, metaclip=8, byt5=8))
    made.data.buckets.update(resolution=32, aspect_ratios=("2:1", "1:2"), frames=(16,), max_fps=(24.0,))
    made.text.budgets = BUDGETS
    made.train.batch_size = 2
    return made


def batch_of(bucket, longest):
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((2, 2, 4, *bucket.latents)).astype(np.float32)
    found = {name: [np.ones((n, 8), np.float32), np.ones((1, 8), np.float32)] for name, n in longest.items()}
    return latents, noise, np.float32([0.3, 0.6]), source.pad_text(found, BUDGETS)


LONGEST = [(1, 1, 1), (30, 10, 2), (40, 1, 1), (64, 31, 20)]


@pytest.mark.parametrize("recompute, images", [("all", 0.0), pytest.param("2", 0.5, marks=pytest.mark.slow)])
def test_no_graph_is_left_to_a_step(config, recompute, images):
    config.train.recompute, config.data.image_fraction = recompute, images
    params = transformer.init(config.model, 0)
    warmup.compile_all(config, ONE, LOCAL, buckets.table(config), True, "train", params, 1000)
    before = backend.compiled()
    assert before > 0
    for bucket in buckets.table(config):
        for longest in LONGEST:
            latents, noise, t, text = batch_of(bucket, dict(zip(BUDGETS, longest, strict=True)))
            transformer_step.loss_and_grads(params, config.model, latents, noise, t, text, LOCAL, recompute)
            transformer.apply(params, config.model, flow.interpolate(latents, noise, t), t, text, LOCAL)
    assert backend.compiled() == before


def test_what_is_compiled_is_told(config, monkeypatch, capsys):
    """Of a wide and a tall picture the blocks are the same, so the second one is taken once."""
    monkeypatch.setattr(transformer_step, "loss_and_grads", lambda *args: None)
    params = dict.fromkeys(shapes.shapes(config.model))
    warmup.compile_all(config, ONE, LOCAL, buckets.table(config), False, "train", params, 1000)
    first, *rest, last = capsys.readouterr().out.splitlines()
    assert first == (
        "train: 4 shapes (2 of 16x16x48, 2 of 16x48x16, 2 of 1x16x48, 2 of 1x48x16; on each rank), texts of 32, 64, "
        "128 tokens: a block has 6 graphs each way, to be compiled before the first step"
    )
    assert rest[0] == "train: compiling 1 of 9: 16x16x48, text of 32 tokens" and len(rest) == 9
    assert last == "train: 0 graphs compiled in 0 s"


def test_what_a_run_cannot_gain_by_is_left_out(config, monkeypatch):
    """One shape and one length, or few steps for nine cases."""
    monkeypatch.setattr(transformer_step, "loss_and_grads", None)
    warmup.compile_all(config, ONE, LOCAL, buckets.table(config), True, "train", {}, 89)
    toy = common.shrink(common.stage("1b", 1))
    assert len(warmup.cases(toy, ONE, buckets.table(toy))) == 1
    warmup.compile_all(toy, ONE, LOCAL, buckets.table(toy), True, "train", {}, 1000)


def test_samples_are_those_of_a_micro_batch_of_a_rank(config):
    config.data.buckets.batch_sizes = ("16x.*=8", "1x.*=16")
    config.optim.accumulate = 2
    two = Mesh(data=2, world=Group("", 2, 1), replicas=Group("", 2, 1))
    assert {(case.bucket.frames, case.samples) for case in warmup.cases(config, two, buckets.table(config, 4))} == {
        (16, 2),
        (1, 4),
    }
