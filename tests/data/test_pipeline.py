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
from moviegen.models.text import toy
from moviegen.parallel.mesh import Group
from moviegen.text import source
from tests.data import made_up

DIMS = {"ul2": 8, "metaclip": 4, "byt5": 4}
COUNTS = {"video": 10, "image": 7, "heldout": 6}


def config(**overrides):
    data = (
        dict(source="synthetic", num_frames=8, height=16, width=16, image_fraction=0.0, text_drop_prob=0.0) | overrides
    )
    model = dict(text_dims=DIMS, patch_size=(1, 2, 2))
    return ConfigDict(dict(seed=3, data=data, train=dict(batch_size=4, time_logit_mean=0.0), model=model))


@pytest.fixture
def opened(monkeypatch):
    """config -> its data."""
    arrays = {
        k: np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1, 1) + np.zeros((n, 2, 1, 2, 2)) for k, n in COUNTS.items()
    }
    captions = {k: [f"{k} {i}" for i in range(n)] for k, n in COUNTS.items()}
    made = made_up.tables(arrays, captions, DIMS, [0.0, 1.0], [1.0, 2.0])
    monkeypatch.setattr(sources, "open_tables", lambda config, workdir, world: made)
    return lambda config, **how: pipeline.open_data(config, "unused", **how)


@pytest.fixture
def data(opened):
    return opened(config())


def encoded(prompts, widths):
    found = {name: [toy.encode(prompt, name, width) for prompt in prompts] for name, width in widths.items()}
    return source.pad_text(found, dict.fromkeys(widths, source.TOY_BUDGET))


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
def test_the_same_batch_however_it_is_cut(opened, parts):
    for cfg in (config(text_drop_prob=0.5), config(image_fraction=1.0)):
        data = opened(cfg)
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
        expected = encoded([f"video {index}"], DIMS)
        for name, (embedding, mask) in expected.items():
            np.testing.assert_array_equal(batch.text[name][0][row], embedding[0])
            np.testing.assert_array_equal(batch.text[name][1][row], mask[0])


def test_noise_and_times_are_those_of_flow_matching(data):
    batch = pipeline.batch(data, config(), 5, range(1, 3))
    noise, t = flow.draw_batch(3, 5, range(1, 3), (2, 1, 2, 2))
    np.testing.assert_array_equal(batch.noise, noise)
    np.testing.assert_array_equal(batch.t, t)


def test_share_of_dropped_prompts(data):
    empty = encoded([""], DIMS)["ul2"][0][0]
    for probability, low, high in ((0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 1, 1)):
        cfg = config(text_drop_prob=probability)
        made = [pipeline.batch(data, cfg, step, range(4)) for step in range(60)]
        dropped = np.mean([np.array_equal(e, empty) for batch in made for e in batch.text["ul2"][0]])
        assert low <= dropped <= high
        # What is dropped is the prompt alone.
        counts = collections.Counter(i for batch in made for i in indices(batch))
        assert set(counts.values()) == {24}


def test_encoders_are_dropped_each_by_itself_and_all_together(data):
    empty = encoded([""], DIMS)
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


def test_share_of_image_steps(opened):
    def image_steps(**overrides):
        cfg = config(**overrides)
        data = opened(cfg)
        return [step for step in range(50) if pipeline.bucket_of(data, step).kind == "image"]

    assert image_steps() == [] and image_steps(image_fraction=1.0) == image_steps(num_frames=1) == list(range(50))
    assert image_steps(image_fraction=0.3) == [n // 3 * 10 + (3, 6, 9)[n % 3] for n in range(15)]
    assert image_steps(image_fraction=1 / 11) == [10, 21, 32, 43]
    cfg = config(image_fraction=1.0)
    drawn = {i for step in range(20) for i in indices(pipeline.batch(opened(cfg), cfg, step, range(4)))}
    assert drawn == set(range(COUNTS["image"]))


def test_validation_is_the_same_every_time(data):
    data = in_batches_of(data, 3)
    made = [[batch for batch, _ in pipeline.heldout_batches(data, (0.2, 0.7))] for _ in range(2)]
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
    whole, data = in_batches_of(data, 6), in_batches_of(data, 4 * ranks)
    alone = {i: batch.noise[k] for batch, n in pipeline.heldout_batches(whole, (0.5,)) for k, i in counted(batch, n)}
    found = [list(pipeline.heldout_batches(data, (0.5,), 2, Group("", ranks, rank))) for rank in range(ranks)]
    assert {len(batch.t) for batches in found for batch, _ in batches} == {2}  # one size is compiled
    assert {len(batches) for batches in found} == {-(-6 // (2 * ranks))}  # ranks compute together
    seen = [(i, batch.noise[k]) for batches in found for batch, n in batches for k, i in counted(batch, n)]
    assert sorted(i for i, _ in seen) == list(range(6)) == sorted(alone)
    for i, noise in seen:
        np.testing.assert_array_equal(noise, alone[i])


def in_batches_of(data, size):
    """The data with batches of all ranks of this size."""
    return data._replace(buckets=tuple(each._replace(batch_size=size) for each in data.buckets))


def counted(batch, count):
    """Places in a validation batch, and numbers, of the samples that count."""
    return list(enumerate(indices(batch)[:count]))


def seen(data, cfg, steps):
    """What is drawn in these steps, by kind."""
    found = {"video": [], "image": []}
    for step in steps:
        bucket = pipeline.bucket_of(data, step)
        found[bucket.kind] += indices(pipeline.batch(data, cfg, step, range(bucket.batch_size)))
    return found


def went_on(opened, data, cfg, step, batch_size):
    """Data and config of a run that was stopped before `step` and goes on with another batch."""
    other = cfg.copy_and_resolve_references()
    other.train.batch_size = batch_size
    return pipeline.resumed(opened(other), step, json.loads(json.dumps(pipeline.position(data, step)))), other


@pytest.mark.parametrize("sizes", [(4, 2), (2, 4), (4, 4)])
def test_another_batch_after_a_resume_repeats_and_skips_nothing(opened, sizes):
    cfg = config()
    cfg.train.batch_size = sizes[0]
    data = opened(cfg)
    after, other = went_on(opened, data, cfg, 2, sizes[1])
    drawn = seen(data, cfg, range(2))["video"] + seen(after, other, range(2, 30))["video"]
    assert all(sorted(drawn[k : k + 10]) == list(range(10)) for k in range(0, len(drawn) - 9, 10))
    if sizes == (4, 4):
        assert drawn == seen(data, cfg, range(30))["video"]


def test_an_epoch_of_videos_is_one_whatever_images_are_between(opened):
    """With one count for both, a sample of 10 was drawn 13 to 27 times where 20 is even."""
    cfg = config(image_fraction=0.4)
    data = opened(cfg)
    drawn = seen(data, cfg, range(80))
    for kind, rows in (("video", 10), ("image", 7)):
        epochs = [drawn[kind][k : k + rows] for k in range(0, len(drawn[kind]) - rows + 1, rows)]
        assert len(epochs) > 10 and all(sorted(epoch) == list(range(rows)) for epoch in epochs)
    after, same = went_on(opened, data, cfg, 37, 4)
    assert seen(after, same, range(37, 80)) == {k: v[len(seen(data, cfg, range(37))[k]) :] for k, v in drawn.items()}
    twice, same = went_on(opened, after, same, 50, 4)
    assert pipeline.position(twice, 80) == pipeline.position(data, 80)


def test_steps_are_counted_fast(opened):
    cfg, start = config(image_fraction=0.1), time.monotonic()
    data = opened(cfg)
    for step in range(2000):
        pipeline.drawn(data, step, range(4))
    pipeline.position(data._replace(begun=185_000), 185_001)
    assert time.monotonic() - start < 2  # 0.1 s on a quiet core


def test_a_changed_table_is_told_by_names(data, tmp_path):
    noted, names = pipeline.position(data, 2), tmp_path / "rows.json"
    pipeline.note_names(data, names)
    assert pipeline.changes(data, noted, names) == []
    ((name, rows),) = data.rows.items()
    videos = [*rows[:3], *rows[4:], *(rows[0]._replace(video=f"new/{i}") for i in range(7))]
    other = data._replace(rows={name: videos}, orders={name: Order(3, [r.video for r in videos])})
    told = "videos to train on are others than those of the checkpoint: 10 then, 16 now"
    (line,) = pipeline.changes(other, noted, names)
    assert f"{told}; 7 new: new/0, new/1, new/2, new/3, new/4; 1 gone: video/3;" in line
    (line,) = pipeline.changes(other, noted, tmp_path / "gone.json")
    assert f"{told}; the epoch goes on" in line


def test_data_without_a_sample_of_a_kind_are_refused(opened, monkeypatch):
    made = sources.open_tables(config(), None, None)
    monkeypatch.setattr(sources, "open_tables", lambda *args: made._replace(rows={}))
    with pytest.raises(ConfigError, match="data.image_fraction is 0.0, but there are no videos to train on"):
        opened(config())


# ---- several buckets

ROWS = {"16x32x32": 5, "16x16x48": 3, "8x32x32": 12, "8x16x48": 2, "1x32x32": 4, "1x16x48": 6}


def in_buckets(fraction=0.25, **overrides):
    cfg = config(image_fraction=fraction)
    shapes = dict(resolution=32, aspect_ratios=("1:1", "2:1"), frames=(16, 8), max_fps=(16.0, 16.0), rates=())
    cfg.data.buckets = shapes | dict(weights=(), batch_sizes=("1x.*=4", "8x32x32=3")) | overrides
    cfg.train.batch_size = 2
    return cfg


@pytest.fixture
def shapes(monkeypatch):
    """config -> its data, of made-up rows in six buckets; in three of them some are held out."""

    def make(cfg, rows=ROWS, **how):
        arrays, numbers = {}, {name: tuple(map(int, name.split("x"))) for name in rows}
        for name, (frames, height, width) in numbers.items():
            kind, size = "image" if frames == 1 else "video", (2, -(-frames // 8), height // 8, width // 8)
            array = np.broadcast_to(
                np.arange(rows[name], dtype=np.float32).reshape(-1, 1, 1, 1, 1), (rows[name], *size)
            )
            arrays |= {f"{kind}/{name}": array}
            if name in ("16x32x32", "8x16x48", "1x32x32"):
                arrays |= {f"heldout/{name}": array}
        captions = {split: [""] * len(array) for split, array in arrays.items()}
        made = made_up.tables(arrays, captions, DIMS, [0.0, 0.0], [1.0, 1.0])
        # An image's latents have one frame, as have those of 8 frames of a video.
        heldout = {f"1{k[1:]}" if k == "8x32x32" else k: v for k, v in made.heldout.items()}
        made = made._replace(heldout=heldout)
        monkeypatch.setattr(sources, "open_tables", lambda config, workdir, world: made)
        return pipeline.open_data(cfg, "unused", **how)

    return make


def epochs_by_bucket(data, cfg, steps):
    """Names of the samples of these steps, in the order in which they are drawn, by bucket."""
    found = {}
    for step in steps:
        bucket = pipeline.bucket_of(data, step)
        found.setdefault(bucket.name, [])
        found[bucket.name] += [row.video for row in pipeline.drawn(data, step, range(bucket.batch_size))]
    return found


def test_a_step_is_of_one_bucket_and_each_has_epochs_of_its_own(shapes, capsys):
    cfg = in_buckets()
    data = shapes(cfg)
    for step in range(12):
        bucket = pipeline.bucket_of(data, step)
        batch = pipeline.batch(data, cfg, step, range(bucket.batch_size))
        assert batch.bucket is bucket and batch.latents.shape == (bucket.batch_size, 2, *bucket.latents)
        half = [pipeline.batch(data, cfg, step, range(i, i + 1)) for i in range(2)]
        np.testing.assert_array_equal(np.concatenate([each.noise for each in half]), batch.noise[:2])
    drawn = epochs_by_bucket(data, cfg, range(400))
    assert {name: len(set(found)) for name, found in drawn.items()} == ROWS
    for name, found in drawn.items():
        for k in range(0, len(found) - ROWS[name] + 1, ROWS[name]):
            assert len(set(found[k : k + ROWS[name]])) == ROWS[name]
    videos = {name: len(found) / ROWS[name] for name, found in drawn.items() if not name.startswith("1x")}
    assert max(videos.values()) - min(videos.values()) < 2  # epochs
    printed = capsys.readouterr().out
    assert ["8x32x32", "12", "3", "1", "4", "4", "33.3%"] in [line.split() for line in printed.splitlines()]


def test_a_place_in_each_bucket_outlasts_other_batches_weights_and_buckets(shapes):
    before = in_buckets()
    data = shapes(before)
    first = epochs_by_bucket(data, before, range(57))
    noted = json.loads(json.dumps(pipeline.position(data, 57)))
    assert noted.keys() == ROWS.keys()
    changed = in_buckets(weights=("8x.*=2.5",), batch_sizes=("8x32x32=6", "16x.*=1", "1x.*=4"))
    fewer = {name: count for name, count in ROWS.items() if name != "16x16x48"}
    for cfg, rows in (
        (before, ROWS),
        (changed, ROWS),
        (in_buckets(), fewer),
        (in_buckets(aspect_ratios=("1:1",)), ROWS),
    ):
        after = pipeline.resumed(shapes(cfg, rows), 57, noted)
        then = epochs_by_bucket(after, cfg, range(57, 200))
        for name, found in then.items():
            both = first[name] + found
            for k in range(0, len(both) - ROWS[name] + 1, ROWS[name]):
                assert len(set(both[k : k + ROWS[name]])) == ROWS[name], name
        if cfg is before:
            whole = epochs_by_bucket(data, cfg, range(200))
            assert {name: first[name] + found for name, found in then.items()} == whole
            assert pipeline.position(after, 200) == pipeline.position(data, 200)


def test_the_position_of_one_shape_of_each_kind_is_that_of_its_bucket(opened, tmp_path):
    cfg = config(image_fraction=0.25)
    data = opened(cfg)
    new = pipeline.position(data, 9)
    old = {"video": new["8x16x16"], "image": new["1x16x16"]}
    assert pipeline.resumed(data, 9, old).places == pipeline.resumed(data, 9, new).places
    assert new["8x16x16"]["index"] == 28 - 20 and new["1x16x16"]["index"] == 8 - 7
    (tmp_path / "names.json").write_text(json.dumps({"video": ["gone"], "image": []}))
    assert pipeline.changes(data, old, tmp_path / "names.json") == []
    never = pipeline.position(data, 0)["1x16x16"]
    alone = opened(config())
    assert pipeline.changes(alone, {"video": old["video"], "image": never}, tmp_path / "none") == []


def test_buckets_that_are_new_or_gone_are_told(shapes, tmp_path):
    cfg = in_buckets()
    data = shapes(cfg)
    noted = pipeline.position(data, 40)
    del noted["8x16x48"]
    other = shapes(cfg, {name: count for name, count in ROWS.items() if name != "16x16x48"})
    gone, new = pipeline.changes(other, noted, tmp_path / "none")
    assert "the samples of 16x16x48 to train on are others than those of the checkpoint: 3 then, 0 now" in gone
    assert new == "an epoch begins in buckets that the checkpoint has not drawn from: 8x16x48"


def test_the_next_stage_goes_on_in_buckets_of_the_very_same_rows(shapes):
    cfg = in_buckets()
    data = shapes(cfg)
    noted = json.loads(json.dumps(pipeline.position(data, 41)))
    same = pipeline.resumed(data, 41, noted).places
    assert pipeline.taken_over(data, noted).places == same and pipeline.taken_over(data, noted).begun == 0
    more = shapes(cfg, ROWS | {"16x32x32": 6})
    assert pipeline.taken_over(more, noted).places == {k: v for k, v in same.items() if k != "16x32x32"}
    other = in_buckets()
    other.seed = 4
    assert not any(place.index for place in pipeline.taken_over(shapes(other), noted).places.values())


def test_buckets_that_cannot_fill_a_batch_are_named_with_the_mend(shapes, capsys):
    cfg = in_buckets(batch_sizes=("8x.*=8", "1x.*=4", "16x32x32=4"))
    with pytest.raises(ConfigError) as caught:
        shapes(cfg, ROWS | {"1x16x48": 1}, unit=2)
    assert str(caught.value) == (
        "buckets that cannot fill one batch: 8x16x48 has 2 rows, a batch of it 8; 1x16x48 has 1 rows, a batch of it 4: set "
        "data.buckets.batch_sizes=('8x16x48=2', '8x.*=8', '1x.*=4', '16x32x32=4') and data.buckets.weights=('1x16x48=0',), "
        "or data.buckets.weights=('8x16x48=0', '1x16x48=0') to leave their rows out"
    )
    mended = in_buckets(batch_sizes=("8x16x48=2", "8x.*=8", "1x.*=4", "16x32x32=4"), weights=("1x16x48=0",))
    data = shapes(mended, ROWS | {"1x16x48": 1}, unit=2)
    assert "1x16x48" not in data.rows and data.rows.keys() | {"1x16x48"} == ROWS.keys()
    shapes(in_buckets(), {name: count for name, count in ROWS.items() if name != "16x16x48"})
    assert "buckets without a row, which are left out: 16x16x48\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="data.image_fraction is 0.25, but there are no images to train on"):
        shapes(in_buckets(weights=("1x.*=0",)))


@pytest.mark.parametrize("ranks", [1, 2])
def test_samples_held_out_of_any_bucket_are_counted_once_and_ranks_see_the_same_shapes(shapes, ranks):
    cfg = in_buckets(batch_sizes=("16x32x32=4",))
    data = shapes(cfg)
    found = [list(pipeline.heldout_batches(data, (0.2, 0.7), 1, Group("", ranks, rank))) for rank in range(ranks)]
    order = [[(batch.bucket.name, len(batch.t)) for batch, _ in batches] for batches in found]
    assert all(each == order[0] for each in order)
    assert list(dict.fromkeys(name for name, _ in order[0])) == ["16x32x32", "8x16x48", "1x32x32"]
    assert {size * ranks for name, size in order[0] if name == "16x32x32"} == {4}
    seen = collections.Counter()
    for batch, count in (each for batches in found for each in batches):
        assert batch.latents.shape[1:] == (2, *batch.bucket.latents)
        seen.update((batch.bucket.name, float(batch.t[0]), i) for i in indices(batch)[:count])
    assert set(seen.values()) == {1}
    assert collections.Counter(name for name, _, _ in seen) == {"16x32x32": 10, "8x16x48": 4, "1x32x32": 8}
