import pytest

from moviegen import settings
from moviegen.errors import ConfigError
from moviegen.models.costs import cards


def test_every_card_has_its_numbers_and_their_sources():
    for card in cards.CARDS.values():
        assert card.usable < card.memory and card.tflops["bfloat16"] == 4 * card.tflops["float32"]
        assert card.bandwidth and card.inside >= card.between and card.host
        assert {"tflops", "memory", "usable", "bandwidth", "inside", "between", "host"} == card.sources.keys()


def test_the_setting_takes_the_cards_that_there_are():
    assert all(map(settings.RULES["plan.card"].holds, ("", *cards.NAMES)))
    with pytest.raises(ConfigError, match="plan.card is '910A', expected one of 910B2"):
        cards.named("910A")


def test_the_card_at_hand(tmp_path, monkeypatch):
    """Without a device file a CPU, of this machine's memory; with one the most common of its kind."""
    monkeypatch.setattr(cards, "DEVICES", tmp_path)
    assert cards.named("").name == "CPU" and not cards.named("").tflops
    (tmp_path / "davinci0").touch()
    assert cards.named("").name == "910B2" and cards.named("CPU").name == "CPU"


def test_a_control_group_limits_the_memory(tmp_path, monkeypatch):
    (tmp_path / "groups").write_text("4:memory:/a/b\n0::/slice\n")
    monkeypatch.setattr(cards, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cards, "CONTROL", tmp_path)
    whole = cards.cpu().usable
    (tmp_path / "memory.max").write_text("max\n")
    assert cards.cpu().usable == whole
    (tmp_path / "slice").mkdir()
    (tmp_path / "slice/memory.max").write_text("3000000\n")
    assert cards.cpu().usable == 3_000_000
    (tmp_path / "memory/a").mkdir(parents=True)
    (tmp_path / "memory/a/memory.limit_in_bytes").write_text("2000000\n")  # of the group above
    assert cards.cpu().usable == 2_000_000
