"""Files are written by MindSpore itself."""

import mindspore as ms
import numpy as np
import pytest

from moviegen.convert import mindspore_ckpt
from moviegen.errors import DataError

VALUES = {
    "a.weight": np.random.default_rng(0).standard_normal((3, 4, 1, 2)).astype(np.float32),
    "half": np.random.default_rng(1).standard_normal(5).astype(np.float16),
    "step": np.array([7], np.int64),
    "scale": np.float32(2.5),
}


def save(path, **options):
    listed = [{"name": name, "data": ms.Tensor(value)} for name, value in VALUES.items()]
    listed.append({"name": "brain", "data": ms.Tensor(np.float32([1, 2.5])).astype(ms.bfloat16)})
    ms.save_checkpoint(listed, str(path), **options)
    return path


@pytest.mark.parametrize("options", [{}, {"crc_check": True}])
def test_every_array_is_read(tmp_path, options):
    found = mindspore_ckpt.read(save(tmp_path / "a.ckpt", **options))
    assert found.pop("brain").astype(np.float32).tolist() == [1, 2.5]
    assert found.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)


def test_a_parameter_in_several_pieces(tmp_path, monkeypatch):
    from mindspore.train import serialization

    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)  # kB
    large = np.random.default_rng(2).standard_normal((33, 65)).astype(np.float32)
    ms.save_checkpoint([{"name": "large", "data": ms.Tensor(large)}], str(tmp_path / "a.ckpt"))
    assert (tmp_path / "a.ckpt").read_bytes().count(b"large") > 5
    np.testing.assert_array_equal(mindspore_ckpt.read(tmp_path / "a.ckpt")["large"], large)


def test_damage_is_seen(tmp_path):
    content = save(tmp_path / "a.ckpt", crc_check=True).read_bytes()
    path = tmp_path / "b.ckpt"
    for damaged in (b"", content[:50], content[: len(content) // 2], b"PK\3\4" + bytes(100), bytes(100)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="b.ckpt: not a readable MindSpore checkpoint"):
            mindspore_ckpt.read(path)
    flipped = bytearray(content)
    flipped[60] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DataError, match="b.ckpt"):
        mindspore_ckpt.read(path)
    with pytest.raises(DataError, match="gone.ckpt"):
        mindspore_ckpt.read(tmp_path / "gone.ckpt")
