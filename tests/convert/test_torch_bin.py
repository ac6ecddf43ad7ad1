"""A file that torch 2.13 saved, and files that would run code where a pickle is loaded."""

import io
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from moviegen.convert import torch_bin
from moviegen.convert.torch_pickle import Storage, Tensor
from moviegen.errors import DataError
from tests import fuzz

SAVED = Path(__file__).parents[1] / "golden" / "torch_save.bin"  # views of one storage, every dtype, a Parameter
FILES = Path(__file__).parents[1] / "golden" / "torch_files"  # by torch 2.13 too, in both formats, and a hostile one


def expected():
    base = np.arange(24, dtype=np.float32)
    return {
        "plain": base.reshape(4, 6),
        "transposed": base.reshape(4, 6).T,
        "slice": base[5:11].reshape(2, 3),
        "shared": base,
        "half": np.arange(5).astype(np.float16) / np.float16(3),
        "bf16": (np.arange(6, dtype=np.float32) / np.float32(7)).astype(ml_dtypes.bfloat16).reshape(2, 3),
        "ids": np.arange(4).reshape(1, 4),
        "flags": np.array([True, False]),
        "double": np.float64(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": np.full((2, 2), 7, np.float32),
    }


def test_what_torch_saved_is_read():
    found = torch_bin.lazy(SAVED)
    assert found.keys() == expected().keys()
    for name, value in expected().items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(np.asarray(found[name]).astype(np.float64), np.asarray(value).astype(np.float64))


def test_several_files_with_an_index(tmp_path):
    (tmp_path / "one.bin").write_bytes(SAVED.read_bytes())
    (tmp_path / "two.bin").write_bytes(SAVED.read_bytes())
    index = {"weight_map": {"plain": "one.bin", "half": "two.bin"}}
    (tmp_path / torch_bin.INDEX).write_text(json.dumps(index))
    found = torch_bin.lazy(tmp_path)
    assert found.keys() == {"plain", "half"}
    np.testing.assert_array_equal(np.asarray(found["plain"]), expected()["plain"])
    index["weight_map"]["gone"] = "two.bin"
    (tmp_path / torch_bin.INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match="two.bin: has no tensor gone"):
        torch_bin.lazy(tmp_path)


def repack(path, change):
    """The saved file with `change({name: bytes})` applied to what is in its zip."""
    with zipfile.ZipFile(SAVED) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    root = next(name for name in content if name.endswith("data.pkl")).removesuffix("data.pkl")
    change(content, root)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


class Runs:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def touch_on_load(path):
    return Runs(exec, f"open({str(path)!r}, 'w')")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_is_refused_and_never_run(tmp_path, protocol):
    mark = tmp_path / "ran"
    evil = [
        {"weight": touch_on_load(mark)},
        touch_on_load(mark),
        OrderedDict([("a", Runs(getattr, "", "join"))]),
        {"a": Runs(__import__, "os")},
    ]
    for value in evil:
        program = pickle.dumps(value, protocol)
        path = repack(tmp_path / "evil.bin", lambda content, root, p=program: content.update({root + "data.pkl": p}))
        with pytest.raises(DataError, match="cannot be read as tensors and nothing else"):
            torch_bin.lazy(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(evil[0], protocol))  # the proof that the file would have
    assert mark.exists()


@pytest.mark.parametrize(
    "value", [[1, 2], {"a": 1}, {"a": "text"}, {1: 2}, {"a": {"b": 1}}, np.zeros(2), OrderedDict(a=(1,))]
)
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, value):
    program = pickle.dumps(value, 2)
    path = repack(tmp_path / "x.bin", lambda content, root: content.update({root + "data.pkl": program}))
    with pytest.raises(DataError, match="cannot be read as tensors"):
        torch_bin.lazy(path)


def test_a_tensor_must_lie_in_its_storage(tmp_path):
    with zipfile.ZipFile(SAVED) as archive:
        root = archive.namelist()[0].split("/")[0] + "/"
        sizes = {name: archive.getinfo(name).file_size for name in archive.namelist()}
    storage = next(name for name, size in sizes.items() if name.startswith(root + "data/") and size == 96)
    path = repack(tmp_path / "short.bin", lambda content, root: content.update({storage: content[storage][:-4]}))
    with pytest.raises(DataError, match="has 92 bytes, not its 24 float32"):
        torch_bin.lazy(path)
    # 24 values, and a view that has as many but begins at 5.
    tensor = Tensor(Storage("float32", "0", 24), 5, (4, 6), (6, 1))
    with pytest.raises(DataError, match="w reaches beyond its storage"):
        torch_bin._check(path, "w", tensor, 96)
    with pytest.raises(DataError, match=r"w \(1000000000000,\) repeats the 24 numbers of its storage"):
        torch_bin._check(path, "w", tensor._replace(shape=(10**12,), strides=(0,)), 96)


@pytest.mark.parametrize("file", ["../x.bin", "link", "/dev/zero"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, file):
    (tmp_path / "x.bin").write_bytes(SAVED.read_bytes())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("../x.bin")
    (folder / torch_bin.INDEX).write_text(json.dumps({"weight_map": {"plain": file}}))
    with pytest.raises(DataError, match="folder: .* leads out of the folder, to /"):
        torch_bin.lazy(folder)


def test_a_pipe_in_place_of_weights_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(DataError, match="x.pth: is a folder, a pipe or a device"):
        torch_bin.lazy(tmp_path / "x.pth")


def made(path, *tensors, data=bytes(16)):
    """A file of tensors w0, w1, ... (count of the one storage, shape, strides), whose storage holds `data`."""
    program = b"\x80\x02}"
    for number, (count, shape, strides) in enumerate(tensors):
        program += text(f"w{number}") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
        program += b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + whole(count) + b"tQK\x00"
        program += b"".join(b"(" + b"".join(map(whole, numbers)) + b"t" for numbers in (shape, strides)) + b"tRs"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program + b".")
        archive.writestr("x/data/0", data)
    return path


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def whole(number):
    return b"\x8a\x09" + number.to_bytes(9, "little")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([(4, [1] * 100, [0] * 100)], "as no plain tensor does"),
        ([(4, [1 << 30], [0])], "repeats the 4 numbers of its storage"),
        ([(4, [0, 1 << 62, 1 << 62], [1, 1, 1])], "w0 has 3 axes or a size that no array can have"),
        ([(4, [2], [1 << 62])], "w0 reaches beyond its storage"),
        ([(1 << 30, [1 << 30], [1])], "has 16 bytes, not its 1073741824 float32"),
        ([(4, [4], [1])] * 900, "its tensors show the same numbers more than 16 times"),
    ],
)
def test_memory_is_bounded_by_the_file(tmp_path, tensors, message):
    path = made(tmp_path / "x.pth", *tensors, data=bytes(16))
    if len(tensors) > 1:
        path = made(path, *[(1 << 16, [1 << 16], [1])] * len(tensors), data=bytes(4 << 16))
    with fuzz.little_memory(), pytest.raises(DataError, match=f"x.pth: .*{message}"):
        [np.asarray(value) for value in torch_bin.lazy(path).values()]


def test_the_stride_of_an_axis_of_one_number_may_be_any(tmp_path):
    found = torch_bin.lazy(made(tmp_path / "x.pth", (4, [1, 4], [1 << 62, 1]), data=np.float32([1, 2, 3, 4]).tobytes()))
    assert np.asarray(found["w0"]).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("fields", [(24,), (20, 24)])  # of the directory: bytes unpacked; packed and unpacked
def test_a_zip_that_lies_about_a_size_shows_no_memory(tmp_path, fields):
    content = bytearray(made(tmp_path / "x.pth", (1 << 20, [1 << 20], [1])).read_bytes())
    for field in fields:
        at = content.rindex(b"PK\x01\x02") + field
        content[at : at + 4] = (4 << 20).to_bytes(4, "little")
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(DataError, match="x.pth: .*what it holds is larger than the file"):
        torch_bin.lazy(tmp_path / "x.pth")


def test_a_storage_that_came_short_shows_no_memory():
    tensor = Tensor(Storage("float32", "0", 24), 0, (4, 6), (6, 1))
    with pytest.raises(DataError, match="storage 0 cannot be read .23 numbers in place of 24"):
        torch_bin._read(Path("x.pth"), lambda storage: bytes(92), tensor)


@pytest.mark.parametrize("source", [FILES / "zip.pth", FILES / "legacy.pth"])
def test_bits_of_a_file_are_never_a_traceback(tmp_path, source):
    rng, refused, content = random.Random(0), 0, source.read_bytes()
    with fuzz.little_memory():
        for _ in range(300):
            (tmp_path / "x.pth").write_bytes(fuzz.flipped(content, rng))
            try:
                [np.asarray(value) for value in torch_bin.lazy(tmp_path / "x.pth").values()]
            except DataError:
                refused += 1
    assert refused > 50


def test_a_compressed_file_is_refused(tmp_path):
    """A thousandth of its size would be enough to fill the memory."""
    repack(tmp_path / "x.bin", lambda content, root: None)
    with (
        zipfile.ZipFile(tmp_path / "x.bin") as archive,
        zipfile.ZipFile(tmp_path / "y.bin", "w", zipfile.ZIP_DEFLATED) as y,
    ):
        for name in archive.namelist():
            y.writestr(name, archive.read(name))
    assert torch_bin.lazy(tmp_path / "x.bin")
    with pytest.raises(DataError, match="y.bin: .*it is compressed"):
        torch_bin.lazy(tmp_path / "y.bin")


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_both_formats_of_torch(name):
    found = {key: np.asarray(value) for key, value in torch_bin.lazy(FILES / f"{name}.pth").items()}
    big = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {
        "features.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
        "features.0.bias": np.array([1.5, -2], np.float16),
        "t": big.T,
        "part": big[1:, 1:3],
        "same": big,
        "n": np.array(7, np.int64),
    }
    assert found.pop("bf").astype(np.float32).tolist() == [1.0, 2.5]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


def test_a_file_that_torch_saved_with_code_in_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the file asks for `os.system("touch ran")`
    assert b"touch ran" in (FILES / "evil.pth").read_bytes()
    with pytest.raises(DataError, match="evil.pth: cannot be read as tensors and nothing else"):
        torch_bin.lazy(FILES / "evil.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_cut_files_are_named(tmp_path, name):
    content = (FILES / f"{name}.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for length in (0, 10, len(content) // 2, len(content) - 20):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="cut.pth: (cannot be read|the storage of)"):
            torch_bin.lazy(path)


def test_damage_is_named(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(SAVED.read_bytes()[:-100])
    with pytest.raises(DataError, match="x.bin: cannot be read"):
        torch_bin.lazy(path)
    buffer = io.BytesIO()
    pickle.dump({"a": 1}, buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="x.bin: cannot be read as tensors"):
        torch_bin.lazy(path)
    with pytest.raises(DataError, match="gone.bin|pytorch_model.bin"):
        torch_bin.lazy(tmp_path / "gone")
    found = torch_bin.lazy(SAVED)["plain"]
    spoiled = bytearray(SAVED.read_bytes())
    at = bytes(spoiled).index(np.arange(24, dtype=np.float32).tobytes())
    spoiled[at + 8] ^= 1
    path.write_bytes(bytes(spoiled))
    assert np.asarray(found).shape == (4, 6)
    with pytest.raises(DataError, match="cannot be read"):
        [np.asarray(value) for value in torch_bin.lazy(path).values()]
