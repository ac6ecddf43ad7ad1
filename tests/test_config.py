import json
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from moviegen import config as configs, settings
from moviegen.errors import ConfigError
from moviegen.storage import files

ROOT = Path(configs.__file__).parents[1]
EXPERIMENT = """
from ml_collections import ConfigDict
def get_config(tiny=False, width=8, data="clips"):
    return ConfigDict({"job": "train", "width": width, "tiny": tiny, "data": data})
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "wide.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def config():
    return ConfigDict(
        {
            "steps": 3,
            "on": True,
            "name": "x",
            "optim": {"learning_rate": 1e-4, "betas": (0.9, 0.99), "empty": ()},
            "sample": {"prompts": ("a", "b"), "sizes": (1, 2)},
        }
    ).lock()


def test_load_passes_typed_arguments_and_locks(experiment):
    config = configs.load(f"{experiment}:tiny,width=16,data=csv")
    assert (config.tiny, config.width, config.data) == (True, 16, "csv")
    assert config.name == "wide-tiny-width=16-data=csv"
    with pytest.raises(AttributeError):
        config.other = 1


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("tinny", ["tinny", "did you mean 'tiny'", "width=8"]),
        ("width=wide", ["width", "'wide'", "whole number"]),
        ("width", ["width", "needs a value"]),
    ],
)
def test_load_refuses_arguments(experiment, argument, words):
    with pytest.raises(ConfigError) as error:
        configs.load(f"{experiment}:{argument}")
    assert all(word in str(error.value) for word in words), error.value


def test_load_names_the_nearest_file(experiment):
    with pytest.raises(ConfigError, match="does not exist.*'wide.py'"):
        configs.load(str(experiment.with_name("wyde.py")))


@pytest.mark.parametrize("name", ["a:b", "c:d,e=f"])
def test_a_folder_s_name_may_have_a_colon(tmp_path, name):
    (tmp_path / name).mkdir()
    path = tmp_path / name / "wide.py"
    path.write_text(EXPERIMENT)
    assert configs.load(str(path)).name == "wide"
    assert configs.load(f"{path}:width=16").width == 16


def test_what_is_no_file_of_text_is_refused(tmp_path):
    (tmp_path / "latin.py").write_bytes("x = 'ü'\n".encode("latin-1"))
    (tmp_path / "bytes.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    for name, words in (
        ("", "is no file"),
        ("latin.py", r"latin.py:1: .*'utf-8' codec can't decode"),
        ("bytes.py", r"bytes.py.*null bytes"),
        ("leaves.py", "leaves.py:2: SystemExit: 3"),
        ("x" * 300 + ".py", "File name too long"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            configs.load(f"{tmp_path}/{name}" if name else str(tmp_path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def get_config():\n    return 1 / 0\n", "bad.py:2: ZeroDivisionError"),
        ("def get_config(:\n", "bad.py:1: "),
        ("x = 1\n", "no function get_config"),
        ("def get_config():\n    return {}\n", "returned dict, expected a ConfigDict"),
    ],
)
def test_load_tells_what_is_wrong_in_the_file(tmp_path, source, words):
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        configs.load(str(tmp_path / "bad.py"))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "12", 12),
        ("on", "false", False),
        ("name", "12", "12"),
        ("optim.learning_rate", "3e-4", 3e-4),
        ("optim.learning_rate", 1, 1.0),
        ("optim.betas", "0.8,0.9", (0.8, 0.9)),
        ("optim.betas", "(1, 0.5)", (1.0, 0.5)),
        ("optim.betas", [0.5, 0.6], (0.5, 0.6)),
        ("sample.sizes", "4,5,6", (4, 5, 6)),
        ("sample.prompts", "a dog, running", ("a dog, running",)),
        ("sample.prompts", '["a dog, running", "a cat"]', ("a dog, running", "a cat")),
        ("sample.prompts", "[a dog] runs", ("[a dog] runs",)),
        ("sample.prompts", "(slow) a dog", ("(slow) a dog",)),
        ("sample.prompts", "(1, 2)", ("(1, 2)",)),
        ("sample.prompts", "[" * 100_000, ("[" * 100_000,)),
        ("sample.prompts", "", ("",)),
        ("sample.prompts", "[]", ()),
    ],
)
def test_overrides_take_the_type_of_the_key(config, key, text, value):
    changed = configs.apply_overrides(config, {key: text})
    for part in key.split("."):
        changed = changed[part]
    assert changed == value and type(changed) is type(value)
    assert not isinstance(value, tuple) or [type(v) for v in changed] == [type(v) for v in value]


def test_overrides_leave_the_original_alone(config):
    changed = configs.apply_overrides(config, {"optim.learning_rate": "1"})
    assert config.optim.learning_rate == 1e-4 and changed.is_locked


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("steps", "many", ["config.steps", "'many'", "whole number"]),
        ("steps", "1.5", ["whole number"]),
        ("steps", True, ["whole number"]),
        ("steps", 1.5, ["whole number"]),
        ("on", "maybe", ["true or false"]),
        ("on", 2, ["true or false"]),
        ("optim.learning_rate", "fast", ["config.optim.learning_rate", "a number"]),
        ("optim.betas", "0.9,x", ["config.optim.betas"]),
        ("sample.sizes", "1.5,2", ["config.sample.sizes"]),
        ("name", 3, ["text"]),
        ("optim", "3", ["section", "config.optim.betas"]),
        ("optim.learning_rat", "3", ["does not exist", "did you mean 'optim.learning_rate'"]),
        ("learning_rate", "3", ["does not exist", "did you mean 'optim.learning_rate'"]),
        ("steps.x", "3", ["does not exist"]),
    ],
)
def test_overrides_refuse(config, key, value, words):
    with pytest.raises(ConfigError) as error:
        configs.apply_overrides(config, {key: value})
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_an_empty_tuple_takes_what_its_rule_says():
    config = ConfigDict({"train": {"recompute_levels": ()}, "sample": {"prompts": ()}, "other": ()})
    overrides = {"train.recompute_levels": "0", "sample.prompts": "2 dogs, 1 cat", "other": "0"}
    changed = configs.apply_overrides(config, overrides)
    assert changed.train.recompute_levels == (0,)
    assert changed.sample.prompts == ("2 dogs, 1 cat",) and changed.other == ("0",)
    assert configs.apply_overrides(config, {"train.recompute_levels": "0,2"}).train.recompute_levels == (0, 2)
    with pytest.raises(ConfigError, match="config.train.recompute_levels is 'x'"):
        configs.apply_overrides(config, {"train.recompute_levels": "x"})


def test_an_override_that_a_stage_hides_is_refused():
    stages = {"one": {"optim": {"rate": 0.2}}, "two": {"optim": {"rate": 0.3}, "other": 1}, "three": {}}
    config = ConfigDict({"optim": {"rate": 0.1}, "steps": 3, "stages": stages})
    with pytest.raises(
        ConfigError, match=r"config.optim.rate does not reach the stages.*stages.one.optim.rate \(it is 0.2"
    ):
        configs.refuse_hidden(config, ["optim.rate", "stages.two.optim.rate"])
    configs.refuse_hidden(config, ["steps", "stages.one.optim.rate"])
    both = {"optim.rate": "1", "stages.two.optim.rate": "0.3", "stages.one.optim.rate": "2"}
    configs.refuse_hidden(config, both)
    assert configs.stage(configs.apply_overrides(config, both), "three").optim.rate == 1
    assert configs.stage(configs.apply_overrides(config, both), "one").optim.rate == 2


def test_split_overrides():
    argv = ["launch.py", "--config=a.py", "--config.a.b=1=2", "--job=x", "--config.c", "3"]
    rest, overrides = configs.split_overrides(argv)
    assert rest == ["launch.py", "--config=a.py", "--job=x"]
    assert overrides == {"a.b": "1=2", "c": "3"}
    with pytest.raises(ConfigError, match="no value"):
        configs.split_overrides(["launch.py", "--config.c"])
    with pytest.raises(ConfigError, match="--config.name has no value"):
        configs.split_overrides(["launch.py", "--config.name", "--config.steps=2"])
    assert configs.split_overrides(["--config.c", "-3"]) == ([], {"c": "-3"})


def test_json_round_trip_and_changes(config, tmp_path):
    files.write_json(configs.to_plain(config), tmp_path / "sub" / "config.json")
    old = json.loads((tmp_path / "sub" / "config.json").read_text())
    assert old["optim"]["betas"] == [0.9, 0.99]
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["config.json"]
    assert configs.changes(old, configs.to_plain(config)) == []
    new = configs.to_plain(configs.apply_overrides(config, {"optim.learning_rate": 0.5, "steps": 4}))
    assert configs.changes(old, new) == ["optim.learning_rate: 0.0001 -> 0.5", "steps: 3 -> 4"]


def test_nothing_heavy_is_imported():
    code = "import launch, sys; print([m for m in ('mindspore', 'tensorstore', 'av', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_stages_in_order_with_their_jobs():
    made = configs.stages(configs.load(f"{ROOT}/experiments/tiny.py"))
    assert {name: job for name, (_, job) in made.items()} == settings.STAGES | {"report": "", "sample": ""}
    assert list(made)[:3] == list(settings.STAGES)
    chain = configs.load(f"{ROOT}/experiments/tiny_stages.py")
    made = configs.stages(chain)
    assert tuple(made) == chain.order == ("stage1", "stage2", "stage3", "stage4", "average", "sample")
    assert [job for _, job in made.values()] == ["train"] * 4 + ["average_weights", "sample"]
    assert made["stage4"][0].optim.schedule == "cosine" and made["stage1"][0].data.num_frames == 1
