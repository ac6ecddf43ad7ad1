"""Memory by kind: numbers that follow from the settings, and what real runs take on this CPU beside what was said."""

import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import memory as measured
from moviegen import config as configs
from moviegen.data import encode
from moviegen.models import lpips
from moviegen.models.costs import activations, memory
from moviegen.models.tae import tiles
from moviegen.models.transformer import shapes
from moviegen.nn import composed
from moviegen.storage import safetensors_io
from moviegen.text import source

CARD, CPU = SimpleNamespace(name="910B2"), SimpleNamespace(name="CPU")


def axes(**sizes: int) -> dict[str, int]:
    return {"data": 1, "zero": 1, "sp": 1} | sizes


def load(name: str, **changes):
    config = configs.load(f"experiments/{name}.py")
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def of(config, job="train", card=CARD, **sizes):
    return memory.of(config, job, axes(**sizes), card)


def test_numbers_of_other_files_are_theirs():
    assert activations.SCORES == composed._SCORE_BYTES
    assert (activations.TEXT_STEP, memory.FRAMES) == (2 * source.HALF_STEP, 8 * tiles.TILE)
    assert sum(map(math.prod, lpips.shapes().values())) == activations.LPIPS_VALUES
    assert activations.LPIPS_FRAMES == lpips.FRAMES and [n for _, n in activations.LPIPS] == list(lpips.STAGES)
    assert (memory.CLIPS, memory.CLIP_PIXELS) == (encode.BATCH, encode.BATCH_PIXELS)


def test_the_state_of_30b_is_that_of_its_parameters():
    config = load("30b_stage3", ema__decay=0.9999)
    table = shapes.shapes(config.model)
    own = 4 * sum(map(math.prod, table.values())) / 8
    layer = sum(math.prod(shape) for path, shape in table.items() if path.startswith("blocks/0/"))
    found = of(config, sp=8)
    assert found.device["weights"] == pytest.approx(own, rel=1e-3)
    # The shards; a layer's gradients in bfloat16 and float32; two copies of the largest message on its way to shards.
    in_flight = (2 + 4) * layer + 2 * 4 * math.prod(table["modulation"])
    assert found.device["gradients"] == pytest.approx(own + in_flight, rel=1e-3)
    assert found.host["moments"] == pytest.approx(2 * own, rel=1e-3)
    assert found.host["average"] == pytest.approx(own, rel=1e-3)
    # What a checkpoint writes is copied first: weights, two moments and the average.
    assert found.host["checkpoint"] == pytest.approx(4 * own, rel=1e-3)
    assert "moments" not in found.device


def test_the_state_by_stage():
    config = load("1b_stage2")
    whole = 4 * sum(map(math.prod, shapes.shapes(config.model).values()))
    by_stage, near = [], functools.partial(pytest.approx, abs=0.01)
    for stage in range(4):
        config.train.zero_stage = stage
        by_stage.append(of(config, zero=8).device)
    # Beside float32 weights there is a whole copy in bfloat16; of stage 3 there are shards alone.
    assert [found["weights"] / whole for found in by_stage] == near([1.5, 0.625, 0.625, 0.125])
    assert [found["moments"] / whole for found in by_stage] == near([2, 0.25, 0.25, 0.25])
    more = [(found["gradients"] - by_stage[3]["gradients"]) / whole for found in by_stage]
    assert more == near([0.875, 0.875, 0, 0])
    assert ["gathered layers" in found for found in by_stage] == [False, False, False, True]


def test_two_layers_are_whole_at_a_time_on_a_card():
    config = load("30b_stage2")
    layer = sum(math.prod(s) for path, s in shapes.shapes(config.model).items() if path.startswith("blocks/0/"))
    found = of(config, sp=8).device["gathered layers"]
    assert 2 * 2 * layer < found < 3 * 2 * layer + 2 * 2**20  # in bfloat16, and the message that brings one


def test_tokens_that_are_kept_are_shared_by_the_ranks_of_a_sequence():
    config = load("30b_stage3")
    kept = {sp: of(config, zero=8 // sp, sp=sp).device["kept activations"] for sp in (4, 8)}
    tokens = 32 * 36 * 64
    assert kept[8] == pytest.approx(48 * 4 * 6144 * tokens / 8, rel=0.05)  # each layer's float32 input
    assert kept[4] > 0.95 * kept[8]  # as many tokens: half of the samples, twice as long a part of each
    config.train.batch_size *= 2
    assert of(config, sp=8).device["kept activations"] == pytest.approx(2 * kept[8], rel=0.02)


def test_the_memory_is_that_of_the_bucket_that_takes_most():
    config = configs.load("experiments/30b_stage2.py:buckets")
    config.data.buckets.update(frames=(256, 128), max_fps=(24.0, 24.0), batch_sizes=("128x.*=4", "1x.*=8"))
    config.train.batch_size = 1
    found = {(each.batch, each.whole) for each in activations.sequences(config, "train", axes(sp=8))}
    assert found == {(1, 8064), (1, 8192), (4, 4032), (4, 4096), (8, 252), (8, 256)}
    most = of(config, sp=8).device["kept activations"]
    config.data.buckets.frames, config.data.buckets.max_fps = (128,), (24.0,)
    config.data.buckets.batch_sizes = ("128x.*=4", "1x.*=8")
    assert of(config, sp=8).device["kept activations"] == most


def test_what_is_not_recomputed_is_kept():
    found = {policy: of(load("30b_stage3", train__recompute=policy), sp=8).device for policy in ("all", "2", "none")}
    kept = {policy: each["kept activations"] for policy, each in found.items()}
    assert kept["2"] == pytest.approx((kept["all"] + kept["none"]) / 2, rel=0.01)
    # Three tensors of float32 and six of bfloat16 for each of a rank's tokens instead of one of float32, gate and up, and
    # keys and values of the text; the weights that a block was gathered are not kept.
    cfg = load("30b_stage3").model
    tokens, text = 32 * 36 * 64 / 8, activations.sequences(load("30b_stage3"), "train", axes(sp=8))[0].context
    own = tokens * (20 * cfg.hidden_size + 4 * cfg.ffn_size) + 4 * text * cfg.hidden_size
    assert kept["none"] - kept["all"] == pytest.approx(48 * own, rel=0.001)
    assert found["none"]["gathered layers"] == found["all"]["gathered layers"]


def test_a_card_has_no_scores():
    config = load("5b_stage3")
    config.train.batch_size = 8
    once = of(config, sp=8).device["working set"]
    config.data.height *= 2
    assert of(config, sp=8).device["working set"] == pytest.approx(2 * once, rel=0.01)


@pytest.mark.parametrize(
    ("groups", "sizes"), [(0, {}), (2, dict(sp=8)), (2, dict(zero=2, sp=4)), (4, dict(data=2, zero=2, sp=2))]
)
def test_each_communicator_has_two_buffers(groups, sizes):
    found = of(load("1b_stage2"), **sizes).device.get("communicators", 0)
    assert found == groups * 2 * 200 * 2**20


def test_accumulated_gradients_are_there_beside_those_of_the_next_part():
    config = load("1b_stage2")
    once = of(config).device["gradients"]
    config.optim.accumulate = 2
    assert of(config).device["gradients"] == 2 * once


def test_the_largest_text_encoder_may_need_more_than_what_follows(tmp_path):
    config = load("1b_stage2", sample__num_frames=8)
    alone = of(config, "sample").device
    safetensors_io.write({"w": np.zeros((10, 10), np.float32)}, tmp_path / "model.safetensors")
    config.text.encoders.ul2 = str(tmp_path)
    assert of(config, "sample").device == alone
    values = sum(alone.values())
    large = {"w": SimpleNamespace(shape=(values, 1))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_io, "lazy", lambda folder: (large, {}))
        assert of(config, "sample").device == {"weights": 2 * values}  # in bfloat16, text.dtype


def test_every_job_names_its_kinds():
    config = load("1b_stage2")
    for job, experiment in (
        ("train", config),
        ("sample", config),
        ("encode_video", config),
        ("train_tae", load("tae")),
    ):
        for card in (CARD, CPU):
            found = of(experiment, job, card, zero=2)
            assert set(found.device) | set(found.host) <= set(memory.KINDS)
            assert all(isinstance(n, int) and n > 0 for n in (*found.device.values(), *found.host.values()))
            assert found.device["weights"] and found.device["working set"]


def test_networks_that_losses_need_are_counted():
    config = load("tae", loss__lpips=0.0)
    config.loss.adversarial.weight = 0.0
    plain = of(config, "train_tae").device
    config.loss.lpips = 1.0
    lpips_too = of(config, "train_tae").device
    assert lpips_too["weights"] - plain["weights"] == 4 * activations.LPIPS_VALUES
    config.loss.adversarial.weight = 0.5
    assert of(config, "train_tae").device["moments"] > lpips_too["moments"]
    # At 256 x 256 both take less than the autoencoder's own largest graph, of frames four times wider in channels.
    assert plain["working set"] == lpips_too["working set"]
    config.tae.base_channels, config.tae.norm_groups = 8, 1
    assert of(config, "train_tae").device["working set"] == sum(
        activations._lpips(config.data.height, config.data.width)
    )


def test_both_branches_of_guidance_are_one_batch_but_on_two_halves_of_a_mesh():
    config = load("1b_stage2")
    config.sample.batch_size, config.sample.prompts = 4, ("a", "b", "c", "d")

    def batch(**sizes):
        return activations.sequences(config, "sample", axes(**sizes))[0].batch

    assert (batch(), batch(sp=2), batch(data=2), batch(data=4), batch(zero=2)) == (8, 8, 4, 2, 4)
    config.sample.guidance_scale = 1.0
    assert (batch(), batch(data=2)) == (4, 2)


def test_a_large_picture_is_decoded_in_less_memory_in_tiles():
    config = load("1b_stage3")
    whole = of(config, "sample").device["working set"]
    config.tae.spatial_tile = 32
    assert of(config, "sample").device["working set"] < whole / 2


SLOW = {name: pytest.mark.slow for name in measured.CASES if name != "train_tiny"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in measured.CASES])
def test_the_peak_on_a_cpu_is_within_a_tenth_of_what_was_said(name, tmp_path):
    case = measured.CASES[name]
    found = measured.measure(case, tmp_path)
    assert measured.predicted(case) == pytest.approx(found, rel=0.1)
