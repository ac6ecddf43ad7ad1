"""A file that torch 2.13 saved, and files that would run code where a pickle is loaded."""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from moviegen.convert import torch_bin
from moviegen.convert.torch_pickle import Storage, Tensor
from moviegen.errors import DataError

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
