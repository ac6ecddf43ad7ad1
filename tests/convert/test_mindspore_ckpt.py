"""Files are written by MindSpore itself."""

import os
import random

import mindspore as ms
import numpy as np
import pytest

from moviegen.convert import mindspore_ckpt
from moviegen.errors import DataError
from tests import fuzz

VALUES = {
    "a.weight": np.random.default_rng(0).standard_normal((3, 4, 1, 2)).astype(np.float32),
    "half": np.random.default_rng(1).standard_normal(5).astype(np.float16),
    "step": np.array([7], np.int64),
    "scale": np.float32(2.5),
}


def read(path):
    return {name: np.asarray(array) for name, array in mindspore_ckpt.lazy(path).items()}


def save(path, **options):
    listed = [{"name": name, "data": ms.Tensor(value)} for name, value in VALUES.items()]
    listed.append({"name": "brain", "data": ms.Tensor(np.float32([1, 2.5])).astype(ms.bfloat16)})
    ms.save_checkpoint(listed, str(path), **options)
    return path


@pytest.mark.parametrize("options", [{}, {"crc_check": True}])
def test_every_array_is_read(tmp_path, options):
    found = read(save(tmp_path / "a.ckpt", **options))
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
    np.testing.assert_array_equal(read(tmp_path / "a.ckpt")["large"], large)


def test_damage_is_seen(tmp_path):
    content = save(tmp_path / "a.ckpt", crc_check=True).read_bytes()
    path = tmp_path / "b.ckpt"
    for damaged in (b"", content[:50], content[: len(content) // 2], b"PK\3\4" + bytes(100), bytes(100)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="b.ckpt: not a readable MindSpore checkpoint"):
            read(path)
    flipped = bytearray(content)
    flipped[60] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DataError, match="b.ckpt"):
        read(path)
    with pytest.raises(DataError, match="gone.ckpt"):
        read(tmp_path / "gone.ckpt")


def field(number, content):
    size, length = len(content), b""
    while size > 127:
        size, length = size >> 7, length + bytes([size & 127 | 128])
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def parameter(name=b"a", dims=b"\x02", kind=b"Float32", content=bytes(8)):
    tensor = field(1, dims) + field(2, kind) + field(3, content)
    return field(1, field(1, name) + field(2, tensor))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (parameter(content=bytes(800)), r"a \(2,\) has 800 bytes, expected 8"),  # MindSpore writes beyond its memory
        (parameter(dims=b"\xc0\x84\x3d"), r"a \(1000000,\) has 8 bytes, expected 4000000"),  # and here reads beyond
        (parameter(content=b""), r"a \(2,\) has 0 bytes, expected 8"),
        (parameter(dims=b"\x80" * 8 + b"\x40"), "has 8 bytes, expected 18446744073709551616"),
        (parameter(dims=b"\xfd" + b"\xff" * 8 + b"\x01"), "has 8 bytes, expected"),  # minus three
        (parameter(dims=b"\x02" + b"\x01" * 40), "a has 41 axes"),
        (parameter(dims=b"\xff" * 20), "more than 64 bits"),
        (parameter(dims=b"\x00" + (b"\xff" * 9 + b"\x01") * 2, content=b""), r"a is \(0, 18446744073709551615"),
        (parameter(kind=b"Evil"), "a is Evil, expected one of BFloat16, "),
        (parameter(name=b""), "without a name"),
        (parameter(name=b"\xff"), "decode"),
        (parameter() + parameter(b"b") + parameter(dims=b"\x04", content=bytes(16)), "a is there twice, and differs"),
        (parameter() + parameter(b"b") + parameter(), r"a \(2,\) has 16 bytes"),
        (field(1, field(1, b"a") + field(3, b"")), "a is no plain tensor"),  # a map of keys and values
        (field(2, b""), "field 2 in a checkpoint"),
        (parameter(kind=b"str"), "holds no parameters"),
        (b"cos\nsystem\n(S'touch ran'\ntR.", "wire type 3"),
    ],
)
def test_what_is_hostile_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(DataError, match=f"x.ckpt: not a readable MindSpore checkpoint .*{message}"):
        mindspore_ckpt.lazy("x.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_pipe_in_place_of_weights_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.ckpt")
    with pytest.raises(DataError, match="x.ckpt: is a folder, a pipe or a device"):
        mindspore_ckpt.lazy(tmp_path / "x.ckpt")


def test_bits_of_a_file_are_never_a_traceback(tmp_path):
    rng, refused = random.Random(0), 0
    content = parameter() + parameter(b"b", b"\x00\x03", content=b"") + parameter(b"c", b"\x02\x01", content=bytes(8))
    with fuzz.little_memory():
        for _ in range(300):
            (tmp_path / "x.ckpt").write_bytes(fuzz.flipped(content, rng))
            try:
                read(tmp_path / "x.ckpt")
            except DataError:
                refused += 1
    assert refused > 100


def test_these_are_as_mindspore_writes_them(tmp_path):
    from mindspore.train.serialization import Checkpoint

    listed = [{"name": "a", "data": ms.Tensor(np.zeros(2, np.float32))}]
    ms.save_checkpoint(listed, str(tmp_path / "a.ckpt"))
    written, ours = Checkpoint(), Checkpoint()
    written.ParseFromString((tmp_path / "a.ckpt").read_bytes())
    ours.ParseFromString(parameter())
    assert written == ours


def test_an_array_without_elements(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(parameter(dims=b"\x00\x03", content=b""))
    assert read(tmp_path / "x.ckpt")["a"].shape == (0, 3)
