"""No card is here: MindSpore's own functions are stood in for, and the names of cards are those in its wheel (akg)."""

import os
from types import SimpleNamespace

import mindspore as ms
import pytest
from ml_collections import ConfigDict

from experiments import sections
from moviegen.errors import ConfigError
from moviegen.nn import runtime


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(runtime, "_told", {})
    for name in ("HCCL_BUFFSIZE", "HCCL_CONNECT_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def card(monkeypatch):
    """A machine with a card; returns what MindSpore was told, in order."""
    told = []
    precision = SimpleNamespace(conv_allow_hf32=lambda value: told.append(("conv_allow_hf32", value)))
    monkeypatch.setattr(runtime, "cards", lambda: ["/dev/davinci0"])
    monkeypatch.setattr(ms, "get_context", lambda key: {"device_target": "Ascend"}[key])
    monkeypatch.setattr(ms, "set_deterministic", lambda value: told.append(("deterministic", value)))
    monkeypatch.setattr(ms, "device_context", SimpleNamespace(ascend=SimpleNamespace(op_precision=precision)))
    monkeypatch.setattr(ms, "set_context", lambda **settings: told.append(("context", settings)))
    monkeypatch.setattr(ms, "hal", SimpleNamespace(get_device_name=lambda device: "Ascend910B2"))
    return told


def config(dtype="bfloat16", **changed):
    return ConfigDict(dict(model=dict(compute_dtype=dtype), runtime=sections.runtime() | changed))


def test_hccl_is_told_what_the_environment_does_not_say(monkeypatch):
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "240")
    runtime.tell(config(hccl_buffer_mb=100))
    assert (os.environ["HCCL_BUFFSIZE"], os.environ["HCCL_CONNECT_TIMEOUT"]) == ("100", "240")


def test_an_experiment_without_the_section_tells_nothing(card):
    runtime.tell(ConfigDict(dict(seed=0)))
    assert "HCCL_BUFFSIZE" not in os.environ and card == []


def test_mindspore_is_told_once_what_it_takes_once(card):
    runtime.tell(config(deterministic=False, jit_level="O1"))
    levels = [("context", {"jit_config": {"jit_level": level}}) for level in ("O1", "O0")]
    assert card == [("deterministic", False), ("conv_allow_hf32", False), levels[0]]
    runtime.tell(config(deterministic=False))
    assert card[3:] == [levels[1]]
    with pytest.raises(ConfigError, match=r"runtime.deterministic is True, but an earlier run .* had False"):
        runtime.tell(config())


def test_the_first_generation_is_refused_by_its_name():
    for name in ("Ascend910B1", "Ascend910B4", "Ascend910_9391"):
        runtime.check_card(name, config())
    for name in ("Ascend910A", "Ascend910ProB", "Ascend910", "Ascend310P3"):
        with pytest.raises(ConfigError, match=f"model.compute_dtype is 'bfloat16', which this card, {name}, does not"):
            runtime.check_card(name, config())
        runtime.check_card(name, config("float32"))
