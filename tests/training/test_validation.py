"""The held-out loss on made-up latents and a model that is one line."""

import numpy as np
import pytest

from experiments import common
from moviegen.data import pipeline
from moviegen.models import flow
from moviegen.nn import backend
from moviegen.parallel import buckets
from moviegen.parallel.comm import LOCAL
from moviegen.parallel.mesh import Group
from moviegen.training import validation
from tests.data import made_up


def data_of(config, heldout):
    captions = {"heldout": [f"number {i}" for i in range(len(heldout))]}
    found = made_up.tables({"heldout": heldout}, captions, config.model.text_dims, [0.0] * 4, [1.0] * 4)
    text, shapes = pipeline.open_text(config), buckets.table(config)
    heldout = {shapes[len(heldout) == 2].name: rows for rows in found.heldout.values()}
    return pipeline.Data(shapes, {}, heldout, text, *found.statistics, None, None, {})


@pytest.fixture
def config():
    config = common.shrink(common.stage("1b", 2))
    config.model.update(latent_channels=4, text_dims=dict(ul2=8, metaclip=8, byt5=8))
    config.data.update(num_frames=16, height=16, width=16, image_fraction=0.5)
    config.train.batch_size = 12
    return config


@pytest.fixture
def data(config):
    return data_of(config, np.random.default_rng(0).standard_normal((5, 4, 2, 2, 2)).astype(np.float32))


def velocity(latents, t):
    return latents * np.float32(0.3) + t.reshape(-1, 1, 1, 1, 1)


@pytest.fixture
def sizes(monkeypatch):
    """A model, and the batches it was called with."""
    found = set()

    def apply(params, cfg, latents, t, text, exchange):
        found.add(len(t))
        return backend.tensor(velocity(latents, t))

    monkeypatch.setattr(validation.transformer, "apply", apply)
    return found


def errors(batches):
    """Losses of single samples by time."""
    found = {}
    for batch, counted in batches:
        error = velocity(flow.interpolate(batch.latents, batch.noise, batch.t), batch.t)
        error -= flow.target(batch.latents, batch.noise)
        found.setdefault(f"{batch.t[0]:.2f}", []).extend((error[:counted] ** 2).mean((1, 2, 3, 4)))
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_samples_each_of_which_counts_once(config, data, sizes, ranks):
    parts = []

    def validate(rank, ranks, accumulate, all_reduce):
        config.optim.accumulate = accumulate
        piece = Group("", ranks, rank)
        return validation.heldout_loss({}, config, data, LOCAL._replace(all_reduce=all_reduce), piece)

    for rank in range(ranks):
        validate(rank, ranks, 2, lambda x: parts.append(x.asnumpy()) or x)
    assert sizes == {12 // (2 * ranks)}  # of a micro-batch, for which the graphs are there
    shared = validate(0, ranks, 2, lambda x: backend.tensor(sum(parts)))
    assert shared == pytest.approx(validate(0, 1, 1, lambda x: x), rel=1e-6)
    by_time = errors(pipeline.heldout_batches(data, validation.TIMES))
    assert len(by_time) == 10 and {len(each) for each in by_time.values()} == {5}
    expected = {f"heldout_loss/t{t}": np.mean(each) for t, each in by_time.items()}
    expected["heldout_loss"] = np.mean([*by_time.values()])
    assert shared == pytest.approx(expected, rel=1e-5)


def test_buckets_are_told_apart_and_the_score_is_the_mean_over_samples(config, data, sizes):
    images = data_of(config, np.random.default_rng(1).standard_normal((2, 4, 1, 2, 2)).astype(np.float32))
    kinds = [list(pipeline.heldout_batches(each, validation.TIMES)) for each in (data, images)]
    both = data._replace(heldout=data.heldout | images.heldout)
    found = validation.heldout_loss({}, config, both, LOCAL, Group("", 1, 0))
    videos, pictures = (np.concatenate([*errors(kind).values()]) for kind in kinds)
    assert found["heldout_loss/16x16x16"] == pytest.approx(videos.mean(), rel=1e-5)
    assert found["heldout_loss/1x16x16"] == pytest.approx(pictures.mean(), rel=1e-5)
    assert found["heldout_loss"] == pytest.approx(np.concatenate([videos, pictures]).mean(), rel=1e-5)
    assert len(found) == 1 + 10 + 2 and found["heldout_loss/t0.27"] > 0
