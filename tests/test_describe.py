import pytest

from experiments import common
from moviegen import config as configs, describe

SOURCE = """
def get_config():
    # In two lines,
    # above what it is about.
    config = dict(
        seed=3,  # a seed
        optim=dict(rate=0.1, steps=4),  # of the section
        train=dict(
            # below a section's head
            rate=0.5,
            steps=7,
        ),
        name="# no comment",
    )
    config.train.steps = 9  # set later
    return config
"""


def test_comments_belong_to_what_begins_on_their_line():
    found = {entry.path: entry for entry in describe.entries(SOURCE)}
    told = {path: entry.comment for path, entry in found.items() if entry.comment}
    assert told == {
        ("seed",): "a seed",
        ("optim",): "of the section",
        ("train", "rate"): "below a section's head",
        ("train", "steps"): "set later",
    }
    assert found["optim", "rate"].value == 0.1 and found["name",].value == "# no comment"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("optim.eps = 1e-08 ", "a number above 0; seed: 1e-15, with which a weight"),
        ("train.batch_size = 1 ", "a whole number of at least 1; paper: 1536, later 3072"),  # of the file itself
        ("train.steps = 7 ", "a whole number of at least 1"),  # as it is overridden
        ("model.weight_std = 0.02 ", "a number of at least 0; the seed's, for both"),  # not tiny's
        ("optim.schedule = 'constant' ", "one of 'constant', 'cosine'; paper: constant too"),
        ("# ema: ", "in float32; the seed's bfloat16 average never moves"),
    ],
)
def test_a_page_has_value_rule_and_comment(key, words):
    file = f"{common.__file__.rpartition('/')[0]}/30b_stage2.py"
    config = configs.apply_overrides(configs.load(file), {"train.steps": "7"})
    lines = describe.page(config, file).splitlines()
    (line,) = [line for line in lines if line.startswith(key)]
    assert words.partition(" ")[2] in line and all(len(line) <= describe.WIDTH for line in lines)
    shown = [line.partition(" = ")[0] for line in lines if " = " in line and line[0] not in "# "]
    assert shown == list(configs.flat(config))
