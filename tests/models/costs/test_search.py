import pytest

from moviegen import config as configs
from moviegen.models.costs import cards, memory, plan as plans, search
from moviegen.parallel import rules

CARD = cards.CARDS["910B2"]


@pytest.fixture
def config():
    return configs.load("experiments/30b_stage2.py")


def test_meshes_keep_the_rules_and_sequences_inside_a_machine(config):
    found = list(search.meshes(16, search.with_keys(config, {"train.batch_size": 16}), "train", CARD))
    assert {"data": 1, "zero": 2, "sp": 8} in found and {"data": 16, "zero": 1, "sp": 1} in found
    assert all(axes["data"] * axes["zero"] * axes["sp"] == 16 and axes["sp"] <= 8 for axes in found)
    assert len(found) == len({tuple(axes.values()) for axes in found}) == 14
    assert list(search.meshes(8, config, "train", CARD)) == [{"data": 1, "zero": 1, "sp": 8}]  # a batch of one
    tae = configs.load("experiments/tae.py")
    assert all(axes["sp"] == 1 for axes in search.meshes(1, tae, "train_tae", CARD))


def test_what_does_not_fit_is_told_what_would(state_alone, config):
    """16 bytes of 29.3 G weights on each of 8 cards do not fit; shared out, or offloaded too, they do."""
    config = search.with_keys(config, {"train.batch_size": 8, "train.offload_optimizer": False, "train.zero_stage": 2})
    plan = plans.of(config, "train", {"data": 8, "zero": 1, "sp": 1}, CARD)
    assert not plans.fits(plan)
    found = search.changes(plan)
    assert found and all(plans.fits(change.plan) for change in found)
    assert all(not rules.violations(c.plan.axes, c.plan.ranks, c.plan.config, "train") for c in found)
    assert "mesh" not in {change.what for change in found}  # alone it does not help at stage 2
    first = found[0]
    assert first.plan.ranks == 8 and "--config.train.zero_stage=3" in first.flags and "--mesh=zero=8" in first.flags
    assert [c.plan.ranks for c in found] == sorted(c.plan.ranks for c in found) and found[-1].what == "16 cards"


def test_what_is_told_leads_there(state_alone, config):
    """The flags, given to the launcher, are the plan beside them."""
    plan = plans.of(config, "train", {"data": 1, "zero": 1, "sp": 8}, CARD)
    change = search.changes(plan)[0]
    overrides = dict(flag.removeprefix("--config.").split("=", 1) for flag in change.flags if "--config." in flag)
    again = plans.of(configs.apply_overrides(config, overrides), "train", change.plan.axes, CARD)
    assert again.mean == change.plan.mean and again.memory == change.plan.memory


def test_recomputing_is_left_out_where_memory_is_left_and_taken_where_it_lacks():
    """1B with a video of 14 336 tokens a card has memory to spare, with one of 73 728 it has not."""
    for stage, policy, other in ((2, "all", "none"), (3, "none", "all")):
        config = search.with_keys(
            configs.load(f"experiments/1b_stage{stage}.py"), {"train.batch_size": 8, "train.recompute": policy}
        )
        plan = plans.of(config, "train", {"data": 1, "zero": 8, "sp": 1}, CARD)
        assert plans.fits(plan) == (policy == "all")
        (change,) = [c for c in search.changes(plan) if c.what == "recomputing"]
        assert change.flags == (f"--config.train.recompute={other}",) and plans.fits(change.plan)
        assert (change.plan.mean.seconds < plan.mean.seconds) == (other == "none")


def test_the_cheapest_plan_fits_and_no_other_mesh_is_cheaper(state_alone, config):
    best = search.best_of(config, "train", 16, CARD)
    assert plans.fits(best) and best.config.train.batch_size % (best.axes["data"] * best.axes["zero"]) == 0
    for sp in (1, 2, 4, 8):
        axes = {"data": 1, "zero": 16 // sp, "sp": sp}
        other = search.with_keys(config, {"train.batch_size": 16 // sp, "train.offload_optimizer": False})
        assert search.price(best) <= (1 + search.EQUAL) * search.price(plans.of(other, "train", axes, CARD))
    assert search.best_of(config, "train", 2, CARD) is None


def test_on_a_cpu_what_fits_is_left_alone(state_alone):
    config = configs.load("experiments/1b_stage1.py:tiny")
    plan = plans.of(config, "train", {"data": 1, "zero": 1, "sp": 1}, cards.Card("CPU", {}, 1e12, 1e12))
    assert search.changes(plan) == []


def test_only_where_nothing_fits_the_batch_is_halved(monkeypatch, config):
    """A memory that grows with the samples of a part: 10 GB of each, and 30 GB more where there are parts."""

    def of(config, job, axes, card):
        optim, pieces = config.optim, axes["data"] * axes["zero"]
        parts = config.train.batch_size // (pieces * optim.accumulate)
        return memory.Memory({"working set": 10**10 * parts + 3 * 10**10 * (optim.accumulate > 1)}, {})

    monkeypatch.setattr(memory, "of", of)
    whole = search.with_keys(config, {"train.batch_size": 8 * 4})
    fits = search.best_of(whole, "train", 8, CARD)
    assert fits.config.train.batch_size >= 32 and fits.config.optim.accumulate == 1  # 4 samples a card are 40 GB
    more = search.best_of(search.with_keys(config, {"train.batch_size": 8 * 12}), "train", 8, CARD)
    assert (
        more.config.train.batch_size == 96 and more.config.optim.accumulate > 1
    )  # 3 parts or more: 30 + 40 GB do not fit
    monkeypatch.setattr(memory, "of", lambda *given: memory.Memory({"working set": of(*given).total[0] * 5}, {}))
    assert search.best_of(whole, "train", 8, CARD).config.train.batch_size <= 8
