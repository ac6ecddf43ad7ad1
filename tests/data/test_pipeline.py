"""Batches of made-up data: latents that say which sample they are, captions that say it too."""

import collections
import json
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.data import pipeline, sources
from moviegen.data.order import Order
from moviegen.errors import ConfigError
from moviegen.models import flow
from moviegen.models.text import toy as toy_text
from moviegen.parallel.mesh import Group
from tests.data import made_up

DIMS = {"ul2": 8, "metaclip": 4, "byt5": 4}
COUNTS = {"video": 10, "image": 7, "heldout": 6}


def config(**overrides):
    data = dict(source="synthetic", num_frames=8, image_fraction=0.0, text_drop_prob=0.0) | overrides
    return ConfigDict(
        dict(seed=3, data=data, train=dict(batch_size=4, time_logit_mean=0.0), model=dict(text_dims=DIMS))
    )


@pytest.fixture
def data(monkeypatch):
    arrays = {
        k: np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1, 1) + np.zeros((n, 2, 1, 2, 2)) for k, n in COUNTS.items()
    }
    captions = {k: [f"{k} {i}" for i in range(n)] for k, n in COUNTS.items()}
    made = made_up.tables(arrays, captions, DIMS, [0.0, 1.0], [1.0, 2.0])
    monkeypatch.setattr(sources, "open_tables", lambda config, workdir, world: made)
    return pipeline.open_data(config(), "unused")


def indices(batch):
    """Which samples a batch holds: the first channel's shift is 0 and its scale 1."""
    return [int(i) for i in batch.latents[:, 0, 0, 0, 0]]


def test_a_batch_is_a_pure_function_of_seed_and_step(data):
    made = [pipeline.batch(data, config(), step, range(4)) for step in (2, 2, 3)]
    for field in ("latents", "noise", "t"):
        np.testing.assert_array_equal(getattr(made[0], field), getattr(made[1], field))
        assert not np.array_equal(getattr(made[0], field), getattr(made[2], field))
    np.testing.assert_array_equal(made[0].text["ul2"][0], made[1].text["ul2"][0])
    other = config()
    other.seed = 4
    assert not np.array_equal(pipeline.batch(data, other, 2, range(4)).noise, made[0].noise)


@pytest.mark.parametrize("parts", [[range(0, 2), range(2, 4)], [range(i, i + 1) for i in range(4)]])
def test_the_same_batch_however_it_is_cut(data, parts):
    for cfg in (config(text_drop_prob=0.5), config(image_fraction=1.0)):
        for step in range(4):
            whole = pipeline.batch(data, cfg, step, range(4))
            cut = [pipeline.batch(data, cfg, step, part) for part in parts]
            for field in ("latents", "noise", "t"):
                np.testing.assert_array_equal(np.concatenate([getattr(c, field) for c in cut]), getattr(whole, field))
            for name in DIMS:
                for i in range(2):
                    np.testing.assert_array_equal(np.concatenate([c.text[name][i] for c in cut]), whole.text[name][i])


def test_every_epoch_holds_every_sample_once_in_a_new_order(data):
    seen = [i for step in range(10) for i in indices(pipeline.batch(data, config(), step, range(4)))]
    epochs = [seen[k : k + 10] for k in range(0, 40, 10)]  # an epoch ends in the middle of a batch
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_latents_are_normalized_and_text_belongs_to_them(data):
    batch = pipeline.batch(data, config(), 0, range(4))
    for row, index in enumerate(indices(batch)):
        assert (batch.latents[row, 1] == (index - 1) * 2).all()
        expected = toy_text.encode([f"video {index}"], DIMS)
        for name, (embedding, mask) in expected.items():
            np.testing.assert_array_equal(batch.text[name][0][row], embedding[0])
            np.testing.assert_array_equal(batch.text[name][1][row], mask[0])


def test_noise_and_times_are_those_of_flow_matching(data):
    batch = pipeline.batch(data, config(), 5, range(1, 3))
    noise, t = flow.draw_batch(3, 5, range(1, 3), (2, 1, 2, 2))
    np.testing.assert_array_equal(batch.noise, noise)
    np.testing.assert_array_equal(batch.t, t)


def test_share_of_dropped_prompts(data):
    empty = toy_text.encode([""], DIMS)["ul2"][0][0]
    for probability, low, high in ((0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 1, 1)):
        cfg = config(text_drop_prob=probability)
        made = [pipeline.batch(data, cfg, step, range(4)) for step in range(60)]
        dropped = np.mean([np.array_equal(e, empty) for batch in made for e in batch.text["ul2"][0]])
        assert low <= dropped <= high
        # What is dropped is the prompt alone.
        counts = collections.Counter(i for batch in made for i in indices(batch))
        assert set(counts.values()) == {24}


def test_encoders_are_dropped_each_by_itself_and_all_together(data):
    empty = toy_text.encode([""], DIMS)
    cfg = config(text_drop_prob=0.2, text_drop_each={"ul2": 0.5, "metaclip": 0.0, "byt5": 0.25})
    seen = []
    for step in range(100):
        text = pipeline.batch(data, cfg, step, range(4)).text
        for row in range(4):
            # ByT5 sees no captions here, nothing being quoted: what is drawn for it is looked at below.
            seen.append([np.array_equal(text[name][0][row], empty[name][0][0]) for name in ("ul2", "metaclip")])
    ul2, metaclip = np.mean(seen, 0)
    assert metaclip == pytest.approx(0.2, abs=0.06) and ul2 == pytest.approx(0.2 + 0.8 * 0.5, abs=0.08)
    assert all(ul2 for ul2, metaclip in seen if metaclip)

    drawn = collections.Counter(pipeline.draw_dropped(cfg, np.random.default_rng(i)) for i in range(4000))
    expected = {"metaclip ul2 byt5": 0.2, "": 0.3, "ul2": 0.3, "byt5": 0.1, "ul2 byt5": 0.1}
    assert drawn.keys() == {frozenset(names.split()) for names in expected}
    for names, share in expected.items():
        assert drawn[frozenset(names.split())] / 4000 == pytest.approx(share, abs=0.03)


def test_share_of_image_steps(data):
    assert not any(pipeline.is_image_step(config(), step) for step in range(50))
    assert all(pipeline.is_image_step(config(image_fraction=1.0), step) for step in range(50))
    share = np.mean([pipeline.is_image_step(config(image_fraction=0.3), step) for step in range(400)])
    assert share == pytest.approx(0.3, abs=0.07)
    assert all(pipeline.is_image_step(config(num_frames=1), step) for step in range(50))
    drawn = {i for step in range(20) for i in indices(pipeline.batch(data, config(image_fraction=1.0), step, range(4)))}
    assert drawn == set(range(COUNTS["image"]))


def test_validation_is_the_same_every_time(data):
    made = [[batch for batch, _ in pipeline.heldout_batches(data, (0.2, 0.7), 3)] for _ in range(2)]
    assert [[b.t.tolist() for b in batches] for batches in made] == [[[np.float32(t)] * 3 for t in (0.2, 0.7) * 2]] * 2
    for one, two in zip(*made, strict=True):
        np.testing.assert_array_equal(one.noise, two.noise)
        np.testing.assert_array_equal(one.latents, two.latents)
        np.testing.assert_array_equal(one.text["ul2"][0], two.text["ul2"][0])
    np.testing.assert_array_equal(made[0][0].noise, made[0][1].noise)  # the same at both times
    assert not np.array_equal(made[0][0].noise, made[0][2].noise)  # but not for other samples
    assert [indices(b) for b in made[0]] == [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_share_the_validation_and_count_every_sample_once(data, ranks):
    alone = {i: batch.noise[k] for batch, n in pipeline.heldout_batches(data, (0.5,), 6) for k, i in counted(batch, n)}
    found = [list(pipeline.heldout_batches(data, (0.5,), 2, Group("", ranks, rank))) for rank in range(ranks)]
    assert {len(batch.t) for batches in found for batch, _ in batches} == {2}  # one size is compiled
    assert {len(batches) for batches in found} == {-(-6 // (2 * ranks))}  # ranks compute together
    seen = [(i, batch.noise[k]) for batches in found for batch, n in batches for k, i in counted(batch, n)]
    assert sorted(i for i, _ in seen) == list(range(6)) == sorted(alone)
    for i, noise in seen:
        np.testing.assert_array_equal(noise, alone[i])


def counted(batch, count):
    """Places in a validation batch, and numbers, of the samples that count."""
    return list(enumerate(indices(batch)[:count]))


def seen(data, cfg, steps):
    """What is drawn in these steps, by kind."""
    found = {"video": [], "image": []}
    for step in steps:
        kind = "image" if pipeline.is_image_step(cfg, step) else "video"
        found[kind] += indices(pipeline.batch(data, cfg, step, range(cfg.train.batch_size)))
    return found


def went_on(data, cfg, step, batch_size):
    """Data and config of a run that was stopped before `step` and goes on with another batch."""
    other = cfg.copy_and_resolve_references()
    other.train.batch_size = batch_size
    return pipeline.resumed(data, step, json.loads(json.dumps(pipeline.position(data, cfg, step)))), other


@pytest.mark.parametrize("sizes", [(4, 2), (2, 4), (4, 4)])
def test_another_batch_after_a_resume_repeats_and_skips_nothing(data, sizes):
    cfg = config()
    cfg.train.batch_size = sizes[0]
    after, other = went_on(data, cfg, 2, sizes[1])
    drawn = seen(data, cfg, range(2))["video"] + seen(after, other, range(2, 30))["video"]
    assert all(sorted(drawn[k : k + 10]) == list(range(10)) for k in range(0, len(drawn) - 9, 10))
    if sizes == (4, 4):
        assert drawn == seen(data, cfg, range(30))["video"]


def test_an_epoch_of_videos_is_one_whatever_images_are_between(data):
    """With one count for both, a sample of 10 was drawn 13 to 27 times where 20 is even."""
    cfg = config(image_fraction=0.4)
    drawn = seen(data, cfg, range(80))
    for kind, rows in (("video", 10), ("image", 7)):
        epochs = [drawn[kind][k : k + rows] for k in range(0, len(drawn[kind]) - rows + 1, rows)]
        assert len(epochs) > 10 and all(sorted(epoch) == list(range(rows)) for epoch in epochs)
    after, same = went_on(data, cfg, 37, 4)
    assert seen(after, same, range(37, 80)) == {k: v[len(seen(data, cfg, range(37))[k]) :] for k, v in drawn.items()}
    twice, same = went_on(after, same, 50, 4)
    assert pipeline.position(twice, same, 80) == pipeline.position(data, cfg, 80)


def test_steps_are_counted_once_and_fast(data):
    cfg, start = config(image_fraction=0.1), time.monotonic()
    pipeline.position(data, cfg, 2000)
    pipeline.position(data._replace(begun=185_000), cfg, 185_001)
    assert time.monotonic() - start < 2  # 0.04 s on a quiet core
    assert pipeline._image_steps(cfg, 0, 2000) == sum(pipeline.is_image_step(cfg, step) for step in range(2000))


def test_a_changed_table_is_told_by_names(data, tmp_path):
    cfg = config()
    noted, names = pipeline.position(data, cfg, 2), tmp_path / "rows.json"
    pipeline.note_names(data, names)
    assert pipeline.changes(data, noted, names) == []
    row = data.rows["video"][0]
    videos = [*data.rows["video"][:3], *data.rows["video"][4:], *(row._replace(video=f"new/{i}") for i in range(7))]
    other = data._replace(
        rows=data.rows | {"video": videos}, orders=data.orders | {"video": Order(3, [r.video for r in videos])}
    )
    told = "videos to train on are others than those of the checkpoint: 10 then, 16 now"
    (line,) = pipeline.changes(other, noted, names)
    assert f"{told}; 7 new: new/0, new/1, new/2, new/3, new/4; 1 gone: video/3;" in line
    (line,) = pipeline.changes(other, noted, tmp_path / "gone.json")
    assert f"{told}; the epoch goes on" in line


def test_no_samples_are_refused(data):
    empty = data._replace(rows={"video": []})
    with pytest.raises(ConfigError, match="no samples"):
        pipeline.batch(empty, config(), 0, range(1))
