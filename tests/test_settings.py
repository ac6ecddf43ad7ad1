"""The table of what settings must be: no key without a rule, no rule without a key, and what the rules refuse."""

import math
import re
from pathlib import Path

import pytest

from experiments import common
from moviegen import config as configs, runner, settings
from moviegen.errors import ConfigError
from moviegen.models import flow

FILES = sorted(p for p in Path(common.__file__).parent.glob("*.py") if p.name not in ("common.py", "sections.py"))
ONE = {"data": 1, "zero": 1, "sp": 1}
STAGE, TAE, DEMO = "experiments/1b_stage1.py:tiny", "experiments/tae.py", "experiments/tiny.py"


def refused(file, overrides, job=None, axes=ONE, ranks=1):
    config = configs.apply_overrides(configs.load(file), overrides)
    with pytest.raises(ConfigError) as error:
        runner.check(config, job or config.job, axes, ranks)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_key_has_a_rule_and_every_rule_a_key():
    keys = {key for path in FILES for key in configs.flat(configs.load(str(path)))}
    assert not [key for key in sorted(keys) if settings.rule(key) is None]
    ruled = [settings.rule(key) for key in keys]
    assert not [key for key, rule in settings.RULES.items() if not any(rule is other for other in ruled)]
    named = {key for table in settings.JOB_RULES.values() for key in table} - {"*"}
    assert named <= keys


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_experiment_keeps_the_rules_and_has_what_its_job_needs(path):
    arguments = ["", ":tiny"] if re.search("stage[0-9]", path.stem) else [""]
    for config in (configs.load(f"{path}{argument}") for argument in arguments):
        runner.check(config, config.job, ONE, 1)


def test_the_tables_name_jobs_and_stages_that_there_are():
    jobs = set(runner.jobs())
    assert {key.partition("/")[0] for key in settings.NEEDS} == jobs
    assert settings.JOB_RULES.keys() | set(settings.STAGES.values()) <= jobs
    assert set(settings.STAGES) < set(configs.load(DEMO).stages)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.validate_every", "0", "is 0, expected a whole number of at least 1"),
        ("train.log_every", "0", "is 0, expected a whole number of at least 1"),
        ("train.checkpoint_every", "0", "is 0, expected a whole number of at least 1"),
        ("train.batch_size", "0", "is 0, expected a whole number of at least 1"),
        ("train.keep_checkpoints", "0", "is 0, expected a whole number of at least 1"),
        ("train.zero_stage", "4", "is 4, expected a whole number from 0 to 3"),
        ("train.rank_timeout", "0", "is 0.0, expected a number above 0"),
        ("train.peak_tflops", "-1", "is -1.0, expected a number of at least 0"),
        (
            "train.profile_steps",
            "5",
            "is (5,), expected a tuple of 2, each a whole number of at least 1, or () for none",
        ),
        ("valid.every", "0", "is 0, expected a whole number of at least 1"),
        ("optim.accumulate", "0", "is 0, expected a whole number of at least 1"),
        ("optim.betas", "0.9", r"is (0.9,), expected a tuple of 2, each a number of at least 0 and below 1"),
        ("optim.betas", "0.9,0.99,0.999", "expected a tuple of 2"),
        ("optim.betas", "0.9,1", "is (0.9, 1.0), expected a tuple of 2, each a number of at least 0 and below 1"),
        ("optim.learning_rate", "nan", "is nan, expected a number above 0"),
        ("optim.learning_rate", "inf", "is inf, expected a number above 0"),
        ("optim.schedule", "constnat", "is 'constnat', expected one of 'constant', 'cosine'"),
        ("optim.no_decay", "norm|(", "is 'norm|(', expected a regular expression"),
        ("seed", "-1", "is -1, expected a whole number of at least 0"),
        ("data.text_drop_prob", "1.5", "is 1.5, expected a number of at least 0 and at most 1"),
        ("data.text_drop_each.ul2", "-0.1", "expected a number of at least 0 and at most 1"),
        ("data.image_fraction", "nan", "is nan, expected"),
        ("data.width", "57", "is 57, expected a whole number of at least 8, a multiple of 8"),
        ("data.width", "56", "is 56, expected a multiple of 16: 8 x model.patch_size"),
        ("data.height", "96", "is 96, expected at most 64: model.position_lengths is (4, 4, 4)"),
        ("data.num_frames", "0", "is 0, expected a whole number of at least 1"),
        ("ema.decay", "1", "is 1.0, expected a number of at least 0 and below 1"),
        ("model.patch_size", "1,2", "is (1, 2), expected a tuple of 3, each a whole number of at least 1"),
    ],
)
def test_what_a_training_run_refuses(key, value, words):
    said = refused(STAGE, {key: value})
    assert said.startswith(key) and words in said and ";" not in said


def test_what_a_sampling_refuses():
    said = refused(STAGE, {"sample.steps": "300", "sample.width": "40"}, job="sample")
    assert "sample.steps is 300, expected at most 250: sample.schedule is 'linear_quadratic'" in said
    assert "sample.width is 40, expected a multiple of 16" in said
    with pytest.raises(ConfigError):  # which is said here so that no weights are read first
        flow.schedule("linear_quadratic", settings.LINEAR_QUADRATIC_STEPS + 1)
    flow.schedule("linear_quadratic", settings.LINEAR_QUADRATIC_STEPS)


def test_samples_in_training_must_be_of_a_size_that_the_model_can_make():
    runner.check(configs.apply_overrides(configs.load(STAGE), {"sample.width": "40"}), "train", ONE, 1)
    said = refused(STAGE, {"valid.prompts": "a red circle", "sample.width": "40"})
    assert said == "sample.width is 40, expected a multiple of 16: 8 x model.patch_size"
    config = configs.load(STAGE).unlock()
    config.valid.prompts = ("a red circle",)
    del config.sample
    with pytest.raises(ConfigError, match="no sample, which --job=train needs"):
        runner.check(config, "train", ONE, 1)


def test_a_conversion_s_names_are_a_choice():
    assert "expected one of 'moviegen', 'seed', 'diffusers'" in refused(TAE, {"convert.naming": "torch"}, job="convert")


def test_all_that_is_wrong_comes_in_one_message_with_the_mesh():
    wrong = {"train.log_every": "0", "optim.accumulate": "0", "train.batch_size": "0", "seed": "-1"}
    said = refused(STAGE, wrong, axes=ONE | {"sp": 4}, ranks=1)
    assert said.startswith("6 settings are wrong: ")
    for words in (*wrong, "it has 4 ranks, but there is 1", "sp=4 does not divide model.num_heads = 6"):
        assert words in said


@pytest.mark.parametrize(
    ("file", "job", "words"),
    [
        (DEMO, "train", "no train.steps, train.batch_size, train.init_from, which --job=train needs.*1b_stage1.py"),
        (TAE, "train", "no model, .*which --job=train needs"),
        (TAE, "sample", "no model, sample, .*which --job=sample needs"),
        (TAE, "encode_text", "no text, .*which --job=encode_text needs"),
        (TAE, "encode_video", "no data.latent_folder, .*which --job=encode_video needs"),
        (TAE, "export", "no export, model, which --job=export needs"),
        (STAGE, "train_tae", "no loss, data.image_batch_size, which --job=train_tae needs.*experiments/tae.py"),
        (STAGE, "evaluate", "no evaluate, which --job=evaluate needs: take one that has, such as experiments/tae.py"),
        (STAGE, "demo", "no stages, which --job=demo needs.*experiments/tiny.py"),
        (DEMO, "convert", "no convert, which --job=convert needs"),
    ],
)
def test_what_a_job_needs_is_named_with_an_experiment_that_has_it(file, job, words):
    config = configs.load(file)
    with pytest.raises(ConfigError, match=words):
        runner.check(config, job, ONE, 1)


def test_a_source_and_several_ranks_need_more():
    config = configs.load(DEMO).unlock()
    config.data.source = config.stages.tae.data.source = "csv"
    with pytest.raises(ConfigError, match="no data.csv, data.validation_csv, .*which stages.t2i needs"):
        runner.check(config, "demo", ONE, 1)
    config = configs.load(STAGE).unlock()
    del config.train.rank_timeout
    runner.check(config, "train", ONE, 1)
    with pytest.raises(ConfigError, match="no train.rank_timeout"):
        runner.check(config, "train", ONE | {"data": 2}, 2)


def test_a_stage_s_key_has_the_rule_of_the_key():
    said = refused(DEMO, {"stages.t2i.train.steps": "0", "stages.tae.optim.betas": "0.5", "train.log_every": "0"})
    assert said.startswith("3 settings are wrong: ")
    for words in (
        "stages.t2i.train.steps is 0, expected",
        "stages.tae.optim.betas is (0.5,)",
        "; train.log_every is 0",
    ):
        assert words in said or words.lstrip("; ") in said
    said = refused(DEMO, {"optim.accumulate": "3", "stages.tae.optim.accumulate": "1"})
    assert "stages.t2i: train.batch_size is 64, not a multiple of 3" in said


def test_the_demo_s_samples_take_no_prompts_and_a_sampling_needs_some():
    assert "docs/demo.md" in refused(DEMO, {"sample.prompts": "a green square moves up"})
    assert "sample.prompts is ()" in refused(DEMO, {}, job="sample")


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (settings.whole(1), [1, 7], [0, 1.0, True, "1", None]),
        (settings.number(above=0), [1, 0.5], [0, math.nan, math.inf, "1", True]),
        (settings.one_of(2, 3), [2, 3], [1, "2", None]),
        (settings.flag, [True, False], [0, 1, "true"]),
        (settings.several(settings.number(), 2), [(1, 2.5), [0, 0]], [0.9, (1,), (1, "2"), "12"]),
        (settings.RULES["tae.latent_shift"], [0.1, (0.1, 0.2)], ["0.1", (), (math.nan,)]),
    ],
)
def test_rules_look_at_types(rule, good, bad):
    assert all(rule.holds(value) for value in good)
    assert not any(rule.holds(value) for value in bad)


@pytest.mark.parametrize("file", [STAGE, TAE, DEMO])
def test_no_value_of_any_key_ends_in_a_traceback(file):
    base = configs.load(file)
    for key in [key for key in configs.flat(base) if not key.startswith("stages.t")]:
        for value in (0, math.nan, "x", (), (0, 0, "x"), None, 10**30):
            config = base.copy_and_resolve_references().unlock()
            with config.ignore_type():
                config.update_from_flattened_dict({key: value})
            for job in {base.job, "sample", "encode_video"} if file == STAGE else {base.job}:
                try:
                    runner.check(config, job, ONE | {"data": 2}, 2)
                except ConfigError as error:
                    assert "\n" not in str(error)
