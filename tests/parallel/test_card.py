"""Each check finds what is broken; what only a card has is stood in for by files."""

import mindspore as ms
import pytest

from moviegen.nn import layers, runtime
from moviegen.parallel import card
from moviegen.parallel.mesh import ONE

ON_A_CARD = ("driver", "CANN")


@pytest.fixture
def outcome(tmp_path):
    """name of a check -> (its outcome, what it found)"""

    def run(name):
        (tmp_path / "run").mkdir(exist_ok=True)
        checks = {name: card.CHECKS[name]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(card, "CHECKS", checks)
            [result] = card.run(ONE, tmp_path / "run")
        assert (result.mend != "") == (result.outcome == "failed")
        return result[1:3]

    return run


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with a card, its driver and CANN 8.3 with kernels; te and hccl can be imported."""
    for path, text in (("driver/version.info", "Version=25.2"), ("cann/compiler/version.info", "Version=8.3.RC1")):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(f"# of this test\n{text}\n")
    (tmp_path / "cann/opp/built-in/op_impl/ai_core/tbe/kernel").mkdir(parents=True)
    for name in ("te", "hccl"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(runtime, "cards", lambda: ["/dev/davinci0"])
    monkeypatch.setattr(card, "DRIVER", tmp_path / "driver/version.info")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "cann"))
    monkeypatch.delenv("ASCEND_OPP_PATH", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", [*ON_A_CARD, "device", "collectives", "shared folder"])
def test_what_is_not_here_is_skipped(outcome, name, monkeypatch):
    monkeypatch.setattr(runtime, "cards", list)
    assert outcome(name)[0] == "skipped"


@pytest.mark.parametrize("name", ["packages", "product", "attention", "disk"])
def test_what_a_cpu_can_do_passes(outcome, name, monkeypatch):
    monkeypatch.setattr(card, "DISK_BYTES", 1 << 16)
    assert outcome(name)[0] == "ok"


def test_a_whole_installation_passes(outcome, machine):
    assert outcome("driver") == ("ok", "1 cards, driver 25.2")
    assert outcome("CANN") == ("ok", f"CANN 8.3.RC1 in {machine}/cann, with its kernels")


def test_parts_that_are_missing_are_named(outcome, machine, monkeypatch):
    (machine / "cann/compiler/version.info").write_text("Version=7.0.0\n")
    assert outcome("CANN") == (
        "failed",
        f"CANN 7.0.0 in {machine}/cann: MindSpore {ms.__version__} knows 8.2, 8.3, 8.5, 9.0, 9.1",
    )
    (machine / "cann/compiler/version.info").write_text("Version=8.5\n")
    (machine / "cann/opp/built-in/op_impl/ai_core/tbe/kernel").rmdir()
    assert outcome("CANN")[1].endswith("/tbe/kernel: its package of kernels is missing")
    monkeypatch.delenv("ASCEND_HOME_PATH")
    assert outcome("CANN") == ("failed", "ASCEND_HOME_PATH is not set")
    (machine / "driver/version.info").unlink()
    assert outcome("driver") == ("failed", f"1 cards, but no {machine}/driver/version.info")
    assert outcome("device") == ("failed", "MindSpore takes the CPU, though there are /dev/davinci0")


def doubled(q, k, v, seen):
    return v * 2


def test_wrong_numbers_and_exceptions_fail(outcome, monkeypatch):
    monkeypatch.setattr(ms, "__version__", "2.11.0")
    assert outcome("packages")[1].endswith("expected MindSpore 2.10")
    monkeypatch.setattr(layers, "attention", doubled)
    assert outcome("attention")[1].startswith("attention in float32 is ")
    monkeypatch.setattr(layers, "linear", lambda *args: 1 / 0)
    assert outcome("product")[0] == "failed"


def test_a_disk_that_cannot_be_written_fails(outcome, monkeypatch):
    monkeypatch.setattr(card.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert outcome("disk") == ("failed", "OSError: [Errno 28] No space left on device")
