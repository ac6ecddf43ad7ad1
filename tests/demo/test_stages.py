"""What the stages measure, on made-up clips and codecs; that they train and sample is test_demo.py's."""

import numpy as np
import pytest

from experiments import tiny
from moviegen.data import clips, synthetic
from moviegen.demo import course, stages as demo_stages
from moviegen.evaluation import metrics


def stage(name, data="synthetic"):
    return course.stage_config(tiny.get_config(data), "", name)


def test_every_held_out_combination_is_sampled_equally_often():
    wanted = demo_stages._prompts(stage("sample"))
    assert len(wanted) >= 48
    for combination in synthetic.combinations("heldout"):
        assert wanted.count((synthetic.caption(combination), combination)) == len(wanted) // 16


def test_every_captioned_clip_is_sampled_once():
    wanted = demo_stages._prompts(stage("sample", "clips"))
    assert [name for _, name in wanted] == [clip.name for clip in clips.captioned_clips()]


def test_a_verdict_says_what_was_wanted_and_what_is_seen():
    frames = synthetic.render(("green", "cross", "up"), np.random.default_rng(0), 16)
    verdict = demo_stages._verdict(stage("sample"), ("cyan", "cross", "up"), frames)
    assert verdict["wanted"] == {"colour": "cyan", "shape": "cross", "direction": "up"}
    assert verdict["seen"] == {"colour": "green", "shape": "cross", "direction": "up"}


def test_a_clip_is_matched_by_its_own_original(monkeypatch):
    rng = np.random.default_rng(1)
    originals = {name: rng.integers(0, 256, (2, 16, 16, 3), np.uint8) for name in ("bus", "rabbit")}
    monkeypatch.setattr(demo_stages, "_originals", lambda config: originals)
    near = np.clip(originals["bus"].astype(int) + 3, 0, 255).astype(np.uint8)
    for wanted, matched in (("bus", True), ("rabbit", False)):
        verdict = demo_stages._verdict(stage("sample", "clips"), wanted, near)
        assert (verdict["nearest"], verdict["matched"]) == ("bus", matched)
        assert verdict["psnr"] == pytest.approx(metrics.mean_psnr(originals[wanted], near))


def test_numbers_are_means_over_a_set_s_clips():
    def off_by(levels):
        return lambda clip: clip + np.uint8(levels)

    sets = {name: [np.full((2, 16, 16, 3), value, np.uint8) for value in (10, 20)] for name in ("heldout", "synthetic")}
    found = demo_stages._compare(sets, {"tae": off_by(1), "pool": off_by(4), "linear": off_by(2)})
    for key, levels in (("heldout", 1), ("baseline", 4), ("linear", 2), ("synthetic_baseline", 4)):
        assert found[f"tae.{key}_psnr"] == pytest.approx(20 * np.log10(255 / levels), abs=1e-3)
    assert found["tae.heldout_ssim"] > found["tae.baseline_ssim"] > 0.9


def test_the_judge_through_a_perfect_and_a_blind_codec():
    config = stage("tae")
    heldout = [synthetic.sample_clip(config.seed, i, "heldout", 16)[0] for i in range(16)]
    perfect = demo_stages._judged_through(lambda clip: clip, heldout, config)
    assert set(perfect.values()) == {1.0}
    blind = demo_stages._judged_through(np.zeros_like, heldout, config)
    assert blind == {"tae.judged_colour": 0.0, "tae.judged_shape": 0.0, "tae.judged_direction": 0.0}


def test_pieces_have_the_length_that_is_trained_on():
    clip = np.arange(40)[:, None]
    pieces = demo_stages._pieces(clip, stage("tae"))
    assert [piece[0, 0] for piece in pieces] == [0, 16] and all(len(piece) == 16 for piece in pieces)
