"""Formulas against counts over graphs that MindSpore compiled for a block of 30B, and against the seed's own numbers."""

import pytest

from experiments import common
from moviegen import config as configs
from moviegen.models.costs import work

SEED = dict(position_lengths=(128, 64, 64))
# One block on one of 8 ranks with 868 tokens of text, counted over its graphs on the Ascend branch: TFLOP of products and of
# attention, forward and back, and GB that operations read and write which are no products (docs/ascend.md).
COUNTED = {14_336: ((2.03, 0.67), (6.08, 2.34)), 73_728: ((9.87, 16.9), (29.6, 59.1))}
TRAFFIC = 4.39 - 1.92, 11.97 - 5.76


@pytest.mark.parametrize(("size", "values"), [("1b", 934_290_432), ("5b", 4_921_706_496), ("30b", 29_303_672_832)])
def test_parameters_of_the_seeds_layout(size, values):
    assert work.weights(common.transformer(size, "seed", **SEED)).values == values


@pytest.mark.parametrize("tokens", COUNTED)
def test_operations_of_a_block(tokens):
    cfg = common.transformer("30b")
    done = [way(cfg, 1, tokens, 868, 8) for way in (work.block, work.pull)]
    for found, (products, attention) in zip(done, COUNTED[tokens], strict=True):
        assert found.products / 1e12 == pytest.approx(products, rel=0.005)
        assert found.attention / 1e12 == pytest.approx(attention, rel=0.005)


def test_traffic_of_a_block():
    cfg = common.transformer("30b")
    found = [way(cfg, 1, 14_336, 868, 8).traffic / 1e9 for way in (work.block, work.pull)]
    assert found == pytest.approx(TRAFFIC, rel=0.01)


def test_of_what_is_kept_attention_alone_is_computed_again():
    """Counted over the parts' graphs, with three sums of gradients between them of 12 bytes an element."""
    cfg = common.transformer("30b")
    there, kept = work.block(cfg, 1, 14_336, 868, 8), work.pull(cfg, 1, 14_336, 868, 8, again=0.0)
    assert (kept.products / 1e12, kept.attention / 1e12) == pytest.approx((4.06, 2.35), rel=0.005)
    assert kept.traffic / 1e9 == pytest.approx(4.82 + 3 * 12 * 1792 * 6144 / 1e9, rel=0.02)
    assert kept.messages[0].count == pytest.approx(5 / 4 * there.messages[0].count)
    every, half = work.pull(cfg, 2, 448, 868), work.pull(cfg, 2, 448, 868, again=0.5)
    assert every.flop == work.block(cfg, 2, 448, 868).flop + work.back(cfg, 2, 448, 868).flop
    assert half.flop == pytest.approx((every.flop + work.pull(cfg, 2, 448, 868, again=0.0).flop) / 2)


def test_messages_of_a_step_on_eight_cards():
    """103 GB gathered, 103 GB of gradients and 11 GB between the ranks of a sequence: docs/ascend.md."""
    config = configs.load("experiments/30b_stage2.py:compat=seed")
    video = work.training(config, {"data": 1, "zero": 1, "sp": 8})["a video"]
    found = {m.what: m.received / 1e9 for m in video.messages}
    assert found == pytest.approx({"gathers": 103, "gradients": 103, "sequence": 11}, rel=0.02)
    assert video.host == pytest.approx(16 * work.weights(config.model).values / 8)  # no average: two moments, both ways


def test_a_step_in_parts_gathers_for_each():
    config = configs.load("experiments/30b_stage1.py")
    axes = {"data": 1, "zero": 8, "sp": 1}
    whole = configs.apply_overrides(config, {"optim.accumulate": 1})
    parts, one = (work.training(c, axes)["an image"] for c in (config, whole))
    assert parts.products == pytest.approx(one.products, rel=1e-3)
    gathered = [sum(m.size for m in w.messages if m.what == "gathers") for w in (parts, one)]
    assert gathered[0] == config.optim.accumulate * gathered[1] and not [m for m in one.messages if m.ranks == 1]


def test_stages_move_what_they_must():
    config, axes = configs.load("experiments/5b_stage2.py"), {"data": 2, "zero": 4, "sp": 1}
    values = work.weights(config.model).values
    found = {}
    for stage in range(4):
        staged = configs.apply_overrides(config, {"train.zero_stage": stage})
        found[stage] = {m.what: m for m in work.training(staged, axes)["a video"].messages if m.ranks > 2}
    assert found[0]["gradients"].received == pytest.approx(8 * values * 7 / 8)
    assert found[1]["weights"].ranks == 4 and "weights" not in found[0]
    assert found[2]["gradients"].received == pytest.approx(4 * values * 3 / 4)
    assert found[3].keys() == {"gathers", "gradients"}
