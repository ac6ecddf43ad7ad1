import numpy as np
import pytest

from moviegen.storage import manifest


def test_round_trip_through_json(tmp_path):
    manifest.write(tmp_path, {"step": np.int64(3), "meta": {"betas": (0.9, 0.95), 1: np.float32(0.5)}})
    found = manifest.read(tmp_path)
    assert found == {"format": manifest.FORMAT, "step": 3, "meta": {"betas": [0.9, 0.95], "1": 0.5}}


def test_what_json_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match="meta holds .*object"):
        manifest.write(tmp_path, {"x": object()})


@pytest.mark.parametrize("damage", [lambda t: t.replace("3", "4", 1), lambda t: t[:-5], lambda t: "", lambda t: "[]"])
def test_damage_is_found(tmp_path, damage):
    manifest.write(tmp_path, {"step": 3})
    file = tmp_path / "manifest.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        manifest.read(tmp_path)


def test_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT", 9)
        manifest.write(tmp_path, {})
    with pytest.raises(ValueError, match="format 9, this version reads 1"):
        manifest.read(tmp_path)
