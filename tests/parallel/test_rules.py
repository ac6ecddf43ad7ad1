import pytest

from experiments import common, tae
from moviegen.parallel import rules


def test_every_broken_rule_is_named_at_once():
    config = common.stage("1b", 2)
    config.train.batch_size = 6
    wrong = " | ".join(rules.violations({"data": 2, "zero": 2, "sp": 3}, 8, config, "train"))
    for words in (
        "it has 12 ranks, but there are 8: change the mesh or start --workers=12",
        "sp=3 does not divide model.num_heads = 16",
        "batch_size is 6",
    ):
        assert words in wrong
    config.optim.accumulate = config.model.num_heads = (
        0  # said to be wrong elsewhere: no division by it, no second word
    )
    assert not rules.violations(
        {"data": 1, "zero": 1, "sp": 1}, 1, config, "train", {"optim.accumulate", "model.num_heads"}
    )
    assert not rules.violations({"data": 2, "zero": 1, "sp": 4}, 8, common.stage("1b", 2), "train")


def test_the_autoencoder_has_no_sequence_and_two_batches():
    (many, sp, one, images) = rules.violations({"data": 2, "zero": 1, "sp": 2}, 1, tae.get_config(), "train_tae")
    assert "it has 4 ranks, but there is 1" in many and "sp=2" in sp
    assert "train.batch_size is 1, not a multiple of 2" in one and "data.image_batch_size is 1" in images


@pytest.mark.parametrize(
    ("number", "counts"),
    [(1, {"an image": 448}), (2, {"a video": 14336, "an image": 448}), (3, {"a video": 73728, "an image": 2304})],
)
def test_token_counts_of_the_stages(number, counts):
    assert rules.token_counts(common.stage("30b", number)) == counts


def test_a_note_tells_what_large_padding_costs():
    config = common.stage("30b", 2)
    assert not rules.notes({"data": 1, "zero": 1, "sp": 8}, config, "train")
    config.data.update(height=48, width=48)  # 3 x 3 patches
    (note,) = rules.notes({"data": 1, "zero": 1, "sp": 8}, config, "train")
    assert "the 9 tokens of an image: each rank takes 2" in note and "78% more work" in note
    assert not rules.notes({"data": 1, "zero": 8, "sp": 1}, config, "train")
    assert not rules.notes({"data": 1, "zero": 1, "sp": 8}, config, "sample")


def test_a_note_tells_of_a_state_that_nothing_shards():
    config = common.stage("30b", 2)
    for job in ("train", "sample"):
        (note,) = rules.notes({"data": 8, "zero": 1, "sp": 1}, config, job)
        assert "train.zero_stage=3 shards over zero x sp, which is 1" in note and "--mesh=zero=8" in note
    for axes in ({"data": 1, "zero": 1, "sp": 1}, {"data": 4, "zero": 2, "sp": 1}):
        assert not rules.notes(axes, config, "train")
    config.train.zero_stage = 0
    assert not rules.notes({"data": 8, "zero": 1, "sp": 1}, config, "train")
