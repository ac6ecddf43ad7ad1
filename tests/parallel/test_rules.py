import pytest

from experiments import common, tae
from moviegen.parallel import rules


def test_every_broken_rule_is_named_at_once():
    config = common.stage("1b", 2)
    config.train.update(batch_size=6, zero_stage=4, rank_timeout=0.0, keep_checkpoints=0)
    wrong = " | ".join(rules.violations({"data": 2, "zero": 2, "sp": 3}, 8, config, "train"))
    for words in (
        "it has 12 ranks, but there are 8: change the mesh or start --workers=12",
        "sp=3 does not divide model.num_heads = 16",
        "batch_size is 6",
        "zero_stage is 4",
        "rank_timeout is 0.0",
        "keep_checkpoints is 0",
    ):
        assert words in wrong
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
    assert not rules.notes({"data": 8, "zero": 1, "sp": 1}, config, "train")
    assert not rules.notes({"data": 8, "zero": 1, "sp": 1}, common.stage("30b", 2), "sample")
