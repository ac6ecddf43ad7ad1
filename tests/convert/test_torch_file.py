"""The files in tests/golden/torch_files were written by torch 2.13: torch.save in both formats, and one that is hostile."""

from pathlib import Path

import numpy as np
import pytest

from moviegen.convert import torch_file
from moviegen.errors import DataError

FILES = Path(__file__).parents[1] / "golden" / "torch_files"


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_arrays_of_both_formats(name):
    found = torch_file.read(FILES / f"{name}.pth")
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


def test_parameters_count_as_tensors():
    assert torch_file.read(FILES / "param.pth")["w"].tolist() == [1, 1]


def test_what_a_file_asks_to_be_run_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the file asks for `os.system("touch ran")`
    assert b"touch ran" in (FILES / "evil.pth").read_bytes()
    assert list(torch_file.read(FILES / "evil.pth")) == ["a"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_damaged_files_are_named(tmp_path, name):
    content = (FILES / f"{name}.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for length in (0, 10, len(content) // 2, len(content) - 20):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="cut.pth: not a readable file of torch.save"):
            torch_file.read(path)


def test_a_file_without_tensors_is_named(tmp_path):
    (tmp_path / "x.pth").write_text("hello")
    with pytest.raises(DataError, match="x.pth"):
        torch_file.read(tmp_path / "x.pth")
    with pytest.raises(DataError, match="gone.pth"):
        torch_file.read(tmp_path / "gone.pth")
