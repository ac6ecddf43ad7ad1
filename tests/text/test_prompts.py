import unicodedata

import pytest

from moviegen.errors import ConfigError
from moviegen.text import prompts


def test_prefixes_come_first_and_are_for_the_prompt_level_encoders_alone():
    found = prompts.prepare('a neon sign that says "Open Late" and “24 h”', fps=16, camera="pan left")
    whole = 'FPS-16 Pan left. a neon sign that says "Open Late" and “24 h”'
    assert found == {"ul2": whole, "metaclip": whole, "byt5": "Open Late 24 h"}
    for rate, told in ((23.976, "FPS-24"), (24.0, "FPS-24"), (30000 / 1001, "FPS-30"), (0.3, "FPS-1")):
        assert prompts.prepare("a dog", rate)["ul2"] == f"{told} a dog"
    assert prompts.prepare("a dog", 16, "pan left", image=True)["ul2"] == "a dog"


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("a dog's bowl, the cats' house", ""),
        ('an unclosed "quote', ""),
        ('"" and "  "', ""),
        ("a card «Joyeux Noël»", "Joyeux Noël"),
        ("看板「営業中」", "営業中"),
        ('say "it\'s on"', "it's on"),
        ("“one” 'two' \"three\"", "one three"),
    ],
)
def test_byt5_sees_what_is_to_be_drawn(prompt, drawn):
    assert prompts.prepare(prompt)["byt5"] == drawn


@pytest.mark.parametrize("prompt", ["", "  \n\t ", "\u200b"])
def test_the_empty_prompt_has_no_prefix(prompt):
    assert set(prompts.prepare(prompt, 16, "static").values()) == {""}


def test_the_same_letters_are_the_same_text():
    apart = unicodedata.normalize("NFD", 'café "Åse"')
    assert apart != 'café "Åse"' and prompts.prepare(apart) == prompts.prepare('café "Åse"')
    assert prompts.clean("a\u200b cat\x00,\n\n\tasleep ") == "a cat, asleep"
    assert prompts.clean("½ ﬁ Ｆ") == "½ ﬁ Ｆ"  # compatibility forms are letters to be drawn as well


def test_sixteen_camera_motions():
    assert len(set(prompts.CAMERA_MOTIONS)) == 16
    with pytest.raises(ConfigError, match="'zoom' is not one of: zoom in, zoom out"):
        prompts.prepare("a dog", camera="zoom")
