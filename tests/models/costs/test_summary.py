import json

from moviegen import config as configs
from moviegen.models.costs import cards, plan as plans, summary

CARD = cards.CARDS["910B2"]
EIGHT = {"data": 1, "zero": 1, "sp": 8}


def test_three_lines(state_alone):
    config = configs.load("experiments/30b_stage2.py")
    memory, step, course = summary.lines(plans.of(config, "train", EIGHT, CARD))
    assert memory == "plan: 8 x 910B2, sp=8: 29.3 of 63.4 GB a card, 29.3 GB a card in the host (weights 29.3)"
    assert step.startswith("plan: a step ") and "products" in step and "measured" in step
    assert course.startswith("plan: to the end: 20,000 steps, 20,000 samples, ") and course.endswith(" card-hours")


def test_a_cpu_has_memory_but_no_time(state_alone):
    config = configs.load("experiments/1b_stage1.py:tiny")
    plan = plans.of(config, "train", {"data": 2, "zero": 1, "sp": 1}, cards.Card("CPU", {}, 16e9, 16e9))
    memory, step, course = summary.lines(plan)
    assert memory.startswith("plan: 2 x on this CPU, data=2: 0.0 of 16.0 GB in this machine")
    assert "not predicted" in step and "hours" not in course and "epochs" in course


def test_a_refusal_says_why_and_what_would_do(state_alone):
    config = configs.load("experiments/30b_stage2.py")
    plan = plans.of(config, "train", EIGHT, cards.CARDS["910B4"])._replace(card=CARD._replace(usable=20e9))
    words = summary.refusal(plan)
    assert words.startswith(
        "this run cannot fit: it needs 29.3 GB of the 20.0 GB of a 910B2 (weights 29.3); these would"
    )
    assert "--mesh=" in words and "16 cards" in words and "--config.plan.check=false" in words


def test_everything_is_json(state_alone):
    found = summary.as_json(plans.of(configs.load("experiments/30b_stage2.py"), "train", EIGHT, CARD))
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found)) and found["parameters"] > 29e9
    video = found["steps"]["a video"]
    assert video["seconds"]["all"] > 1 and {m["what"] for m in video["messages"]} == {
        "gathers",
        "gradients",
        "sequence",
    }
