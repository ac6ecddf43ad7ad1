"""Tables of buckets against the paper's, and what is wrong with one."""

import pytest

from experiments import common
from moviegen import runner
from moviegen.errors import ConfigError
from moviegen.parallel import buckets

ALONE = {"data": 1, "zero": 1, "sp": 1}


def stage(number=2, size="1b", **settings):
    config = common.stage(size, number, in_buckets=True)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return config


def test_shapes_of_the_paper():
    found = buckets.table(stage(3))
    assert {(b.height, b.width) for b in found} >= {(576, 1024), (1024, 576), (768, 768)}  # paper: both of them
    assert {b.frames for b in found} == {256, 192, 128, 1} and len(found) == 20
    # Table 5.2: seconds from which each length is filled.
    assert {b.frames: round(b.frames / b.rates[-1], 2) for b in found if b.rates} == {256: 10.67, 192: 8, 128: 4}
    assert {b.rates[0] for b in found if b.rates} == {16}
    assert {b.rates for b in buckets.table(stage(data__buckets__rates=(24.0, 16.0)))} == {(16, 24), ()}
    for b in found:
        assert b.height % 16 == b.width % 16 == 0 and abs(b.height * b.width / 768**2 - 1) < 0.01


def test_equal_shapes_are_there_once():
    assert [b.name for b in buckets.table(common.shrink(stage(1)))] == ["1x32x48", "1x32x32", "1x48x32"]


def test_without_buckets_there_is_one_shape_of_each_kind():
    assert [b.name for b in buckets.table(common.stage("1b", 2))] == ["256x256x448", "1x256x448"]
    assert [b.kind for b in buckets.table(common.stage("1b", 1))] == ["image"]


def test_batches_by_tokens_and_by_pattern():
    config = stage(data__tokens_per_batch=20_000, data__buckets__batch_sizes=("192x.*=6",))
    sizes = {b.frames: b.batch_size for b in buckets.table(config, 2) if b.height == b.width}
    assert sizes == {256: 2, 192: 6, 128: 4, 1: 78}  # 8192, 6144, 4096 and 256 tokens
    config = stage(data__buckets__weights=("1x.*=0.5", ".*x256x.*=2"))
    assert {b.name: b.weight for b in buckets.table(config) if b.height == 256} == {
        **{f"{frames}x256x256": 2.0 for frames in (256, 192, 128)},
        "1x256x256": 0.5,
    }


def test_images_come_in_the_ratio_exactly():
    steps = [buckets.image_steps(1 / 11, n + 1) - buckets.image_steps(1 / 11, n) for n in range(110_000)]
    assert all(sum(steps[n : n + 11]) == 1 for n in range(0, 110_000, 11))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data__buckets__max_fps": (24.0,)}, "data.buckets.max_fps has 1 rates for 3 data.buckets.frames"),
        ({"data__buckets__rates": (30.0,)}, "data.buckets.rates has none up to data.buckets.max_fps of 256 frames"),
        (
            {"data__buckets__weights": ("64x.*=2",)},
            "data.buckets.weights has '64x.*=2', which matches no bucket: 256x",
        ),
        ({"data__buckets__weights": ("64x.*",)}, "data.buckets.weights is ('64x.*',), expected a tuple"),
        ({"data__buckets__aspect_ratios": ("16/9",)}, "width:height such as '16:9'"),
        (
            {"data__tokens_per_batch": 8000},
            "is 8000, expected at least 8064: 1 samples of bucket 256x192x336",
        ),
        ({"data__fps": 24.0}, "data.fps is 24, expected 0"),
        (
            {"model__position_lengths": (32, 16, 32)},
            "256x288x224 has 36 latents along h: expected a multiple of 2, up to 32",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(settings, words):
    with pytest.raises(ConfigError) as error:
        runner.check(stage(**settings), "train", ALONE, 1)
    assert words in str(error.value)


def test_each_batch_must_divide_over_the_ranks():
    config = stage(data__buckets__batch_sizes=("128x192x336=3",))
    with pytest.raises(ConfigError, match="the batch of bucket 128x192x336 is 3, not a multiple of 2"):
        runner.check(config, "train", ALONE | {"data": 2}, 2)
