import pytest

from moviegen import config as configs
from moviegen.models.costs import cards, plan as plans, search, times, work

EIGHT = {"data": 1, "zero": 1, "sp": 8}
CARD = cards.CARDS["910B2"]


def made(file, axes=EIGHT, job="train", card=CARD, **values):
    overrides = {key.replace("__", "."): value for key, value in values.items()}
    return plans.of(configs.apply_overrides(configs.load(f"experiments/{file}"), overrides), job, axes, card)


def test_kinds_of_steps_are_weighed_by_how_many_there_are(state_alone):
    plan = made("30b_stage2.py")
    assert {kind: step.share for kind, step in plan.steps.items()} == {
        "a video": pytest.approx(10 / 11),
        "an image": pytest.approx(1 / 11),
    }
    mean = sum(plan.steps[kind].share * t.seconds for kind, t in plan.times.items())
    assert plan.mean.seconds == pytest.approx(mean) and plan.samples == pytest.approx(1)
    (only,) = made("30b_stage1.py", {"data": 1, "zero": 8, "sp": 1}).steps.values()
    assert only.share == 1 and only.tokens == 448


def test_memory_is_held_against_the_card_or_the_whole_machine(state_alone):
    plan = made("30b_stage2.py", train__offload_optimizer=False)
    assert plans.room(plan) == (pytest.approx(16 * 29.3e9 / 8, rel=0.01), CARD.usable) and plans.fits(plan)
    whole = made("30b_stage2.py", train__offload_optimizer=False, train__zero_stage=1)
    assert not plans.fits(whole)
    cpu = cards.Card("CPU", {}, 2e9, 2e9)
    two = made("1b_stage1.py:tiny", {"data": 2, "zero": 1, "sp": 1}, card=cpu)
    assert plans.room(two)[0] == pytest.approx(2 * sum(two.memory.total)) and plans.fits(two)
    assert two.times == {} and two.mean is None and plans.utilisation(two) is None


def test_utilisation_is_what_a_step_cannot_do_without(state_alone):
    plan = made("30b_stage2.py", data__image_fraction=0.0)
    once = work.training(plan.config, EIGHT, once=True)["a video"].flop
    assert plans.utilisation(plan) == pytest.approx(once / (354e12 * plan.mean.seconds))
    assert plan.flop > once


def test_the_course_of_a_run(state_alone, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text('video,caption\na.mp4,"two\nlines"\nb.mp4,one\n')
    values = dict(train__steps=100, train__batch_size=4, data__csv=str(table), data__image_fraction=0.0)
    plan = made("5b_stage2.py", {"data": 2, "zero": 2, "sp": 2}, **values)
    found = plans.course(plan)
    assert (found["steps"], found["samples"], found["tokens"], found["epochs"]) == (100, 400, 400 * 14_336, 200)
    assert found["hours"] == pytest.approx(100 * plan.mean.seconds / 3600)
    assert found["card_hours"] == pytest.approx(8 * found["hours"])
    assert "epochs" not in plans.course(made("5b_stage2.py"))


def test_sampling_calls_the_model_twice_a_step_with_guidance(state_alone):
    (guided,) = made("30b_stage2.py", job="sample").steps.values()
    (alone,) = made("30b_stage2.py", job="sample", sample__guidance_scale=1.0).steps.values()
    assert guided.parts[0][0].attention == pytest.approx(2 * alone.parts[0][0].attention)
    assert guided.parts[1] == alone.parts[1]
    halves = made("30b_stage2.py", {"data": 2, "zero": 1, "sp": 4}, job="sample")
    assert halves.steps["a batch of prompts"].parts[0][0].attention == pytest.approx(guided.parts[0][0].attention)


def test_the_autoencoders_step_is_predicted(state_alone):
    config = configs.load("experiments/tae.py:frames=32")
    steps = plans.steps(config, "train_tae", {"data": 1, "zero": 1, "sp": 1})
    assert {kind: step.share for kind, step in steps.items()} == {"a video": 0.8, "an image": 0.2}
    ((done, dtype),) = steps["a video"].parts
    assert done.convolutions > 50e12 and times.of(done, CARD, dtype).seconds > 1


def test_buckets_of_a_kind_are_weighed_as_if_each_had_as_many_samples(state_alone):
    """Where a bucket's batch is twice as large, it has half of the steps."""
    plan = made("30b_stage2.py:buckets", data__tokens_per_batch=8 * 14_336)
    assert sum(step.share for step in plan.steps.values()) == pytest.approx(1)
    assert sum(s.share for kind, s in plan.steps.items() if kind.startswith("an image")) == pytest.approx(1 / 11)
    wide, short = plan.steps["a video of 256x192x336"], plan.steps["a video of 128x192x336"]
    assert (wide.tokens, wide.samples, short.tokens, short.samples) == (8064, 14, 4032, 28)
    assert wide.share == pytest.approx(2 * short.share)
    assert plan.steps["a video of 256x336x192"].tokens == wide.tokens


def test_a_mesh_that_does_not_divide_a_bucket_s_batch_is_not_proposed(state_alone):
    plan = made("1b_stage2.py:buckets", data__buckets__batch_sizes=("256x.*=2",))
    assert search.best_of(plan.config, "train", 8, CARD).axes["sp"] >= 4
