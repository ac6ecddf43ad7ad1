"""Every experiment file: it loads, and what it asks for fits together."""

import math
import re
from pathlib import Path

import pytest

from experiments import common
from moviegen import config as configs
from moviegen.data import fit
from moviegen.parallel import buckets, rules
from moviegen.training.optim import plateau

ROOT = Path(common.__file__).parent
FILES = sorted(p for p in ROOT.glob("*.py") if p.name not in ("common.py", "sections.py"))
STAGES = [p for p in FILES if re.search("_stage[0-9]", p.name)]


def test_all_stages_are_there():
    assert {p.stem for p in STAGES} == {f"{size}_stage{n}" for size in ("1b", "5b", "30b") for n in (1, 2, 3, 4)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_loads_and_is_locked(path):
    config = configs.load(str(path))
    assert config.is_locked and config.name == path.stem and config.job
    with pytest.raises(AttributeError):
        config.new_key = 1


@pytest.mark.parametrize("argument", ["", ":tiny", ":compat=seed"])
@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_a_stage_fits_together(path, argument):
    config = configs.load(f"{path}{argument}")
    model, data, sample = config.model, config.data, config.sample
    assert model.hidden_size % model.num_heads == 0
    assert model.latent_channels == config.tae.latent_channels
    for clip in (data, sample):
        assert clip.height % 16 == 0 and clip.width % 16 == 0
        patches = (math.ceil(clip.num_frames / 8), clip.height // 16, clip.width // 16)
        assert all(n <= length for n, length in zip(patches, model.position_lengths, strict=True)), patches
    assert set(data.text_folders) == set(data.empty_text) == set(model.text_dims)


@pytest.mark.parametrize("path", [p for p in STAGES if "stage4" not in p.stem], ids=lambda p: p.stem)
def test_the_seeds_hyperparameters(path):
    """The numbers that the seed's three stage files share, where they are not one of its mistakes."""
    config = configs.load(str(path))
    optim = config.optim
    assert (config.seed, config.data.text_drop_prob, config.sample.steps) == (42, 0.2, 50)
    assert (optim.learning_rate, optim.warmup_steps, optim.schedule) == (1e-4, 1000, "constant")
    assert (optim.betas, optim.weight_decay, optim.clip_norm) == ((0.9, 0.999), 0.1, 1.0)
    assert optim.accumulate == (7 if path.stem == "30b_stage1" else 1)  # the seed has no 30B in stage 1
    assert (optim.plateau.factor, optim.plateau.min_learning_rate) == (0.5, 1e-6)
    assert (config.train.checkpoint_every, config.train.keep_checkpoints) == (500, 10)
    assert config.train.steps == (30_000 if "stage1" in path.stem else 20_000)
    assert optim.eps > 1e-10  # the seed's 1e-15 is no floor at all


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_the_plateau_rule_can_reach_the_papers_last_rate_within_a_stage(path):
    """Of a loss that stands still from a quarter of the stage on; the seed's patience of 50 never acts. A cosine has none."""
    config, state = configs.load(str(path)), {"best": math.inf, "bad": 0, "factor": 1.0}
    rule = config.optim.plateau
    assert bool(rule.factor) == (config.optim.schedule == "constant")
    validations = config.train.steps // config.train.validate_every
    for number in range(validations if rule.factor else 0):
        state = plateau(state, max(1.0, 2.0 - 4 * number / validations), rule)
    assert state["factor"] <= (0.25 if rule.factor else 1.0)


def test_stage_4_is_the_papers_fine_tuning():
    """Clips of 16 s at 16 frames a second, shorter ones at 24; one with less than 10.67 s fills nothing."""
    for size in ("1b", "5b", "30b"):
        config = configs.load(f"{ROOT}/{size}_stage4.py:buckets")
        shapes = buckets.table(config)
        assert {(each.frames, each.rates) for each in shapes} == {(256, (16.0, 24.0))} and len(shapes) == 5
        assert config.optim.schedule == "cosine" and config.data.image_fraction == 0

        def rate(seconds, shapes=shapes):
            return fit.fit(shapes, fit.Metadata(int(seconds * 30), 30.0, 1080, 1920, seconds)).fps

        assert [rate(seconds) for seconds in (10.7, 15.9, 16.0, 40.0)] == [24.0, 24.0, 16.0, 16.0]
        with pytest.raises(fit.TooShort):
            rate(10.5)


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_tiny_is_the_same_experiment(path):
    full, tiny = configs.load(str(path)), configs.load(f"{path}:tiny")
    changed = {line.split(":")[0] for line in configs.changes(configs.to_plain(full), configs.to_plain(tiny))}
    assert {"train.steps", "data.source", "model.hidden_size"} <= changed
    for key in changed:
        assert key.split(".")[0] in ("name", "model", "tae", "data", "train", "sample") or key in (
            "optim.warmup_steps",
            "optim.accumulate",
        )
    assert "model.text_norm" not in changed and "data.image_fraction" not in changed
    assert tiny.train.steps == 3


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_the_seeds_arithmetic(path):
    paper, seed = configs.load(str(path)), configs.load(f"{path}:compat=seed")
    changed = {line.split(":")[0] for line in configs.changes(configs.to_plain(paper), configs.to_plain(seed))}
    assert changed == {"name", "model.cross_attention_norm", "model.text_norm", "tae.temporal_upsample_padding"}


CARD = 64e9  # bytes
MESHES = {
    "30b_stage1": (8, 1),
    "30b_stage2": (1, 8),
    "30b_stage3": (1, 8),
    "30b_stage4": (1, 8),
}  # (zero, sp); the others: (8, 1)


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_the_defaults_fit_on_eight_cards(path):
    """By the arithmetic of docs/parallel.md: state, and inputs of every layer, with a quarter left for one layer's own."""
    config, (zero, sp) = configs.load(str(path)), MESHES.get(path.stem, (8, 1))
    weights = {"1b": 0.93e9, "5b": 4.92e9, "30b": 29.3e9}[path.stem.partition("_")[0]]
    state = weights * (8 if config.train.offload_optimizer else 20) / (zero * sp)
    batch = config.train.batch_size / zero / config.optim.accumulate
    model = config.model
    inputs = batch * max(rules.token_counts(config).values()) * model.hidden_size * model.num_layers * 4 / sp
    assert state + inputs < 0.75 * CARD
    assert not rules.violations({"data": 1, "zero": zero, "sp": sp}, 8, config, "train")
