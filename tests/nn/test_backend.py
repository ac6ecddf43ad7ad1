import subprocess
import sys

import mindspore as ms
import ml_dtypes
import numpy as np
import pytest

from moviegen.errors import ConfigError
from moviegen.nn import backend


@pytest.mark.parametrize(
    "value, dtype",
    [
        (np.arange(6.0).reshape(2, 3), ms.float32),
        (np.float64(2.5), ms.float32),
        (1.5, ms.float32),
        (np.arange(6, dtype=np.int32).reshape(2, 3), ms.int32),
        (np.array([True, False]), ms.bool_),
        (np.array([1.5, 2], ml_dtypes.bfloat16), ms.bfloat16),
    ],
)
def test_tensor(value, dtype):
    found = backend.tensor(value)
    assert isinstance(found, ms.Tensor) and found.dtype == dtype and found.shape == np.shape(value)
    np.testing.assert_array_equal(found.asnumpy(), np.asarray(value))


def test_a_tensor_stays_the_same_object():
    x = ms.Tensor([1.0])
    assert backend.tensor(x) is x


def test_an_array_is_moved_to_the_card_once(card):
    x = backend.tensor(np.ones(3))
    assert card == [x] and backend.tensor(x) is x and backend.to_tensors({"a": x})["a"] is x and len(card) == 1
    assert list(map(id, backend.moved({"a": np.ones(2), "b": np.zeros(1)}).values())) == list(map(id, card[1:]))


def test_views_keep_their_order():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(backend.tensor(x.T).asnumpy(), x.T)
    np.testing.assert_array_equal(backend.tensor(x[:, ::-1]).asnumpy(), x[:, ::-1])


def test_trees_go_there_and_back():
    params = {
        "a/w": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32),
        "a/half": np.array([1.5, -2], ml_dtypes.bfloat16),
    }
    tensors = backend.to_tensors(params)
    assert all(isinstance(value, ms.Tensor) for value in tensors.values())
    for back in (backend.to_numpy(tensors), backend.to_numpy(params)):
        assert back.keys() == params.keys()
        for path, value in params.items():
            assert back[path].dtype == value.dtype
            np.testing.assert_array_equal(back[path], value)


def test_moved_arrays_are_in_memory_once():
    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.ones(2, np.int32)}
    kept = dict(arrays)
    tensors = backend.moved(arrays)
    assert arrays == {} and list(tensors) == ["a", "b"]
    for path, value in backend.to_numpy(tensors).items():
        np.testing.assert_array_equal(value, kept[path])


def test_compute_dtypes():
    assert backend.check_compute_dtype("float32") == "float32"
    assert backend.check_compute_dtype("bfloat16_simulated") == "bfloat16_simulated"
    assert backend.check_compute_dtype("float16") == "float16"
    with pytest.raises(ConfigError, match="compute_dtype is 'float64', expected one of float32, bfloat16"):
        backend.check_compute_dtype("float64")


@pytest.mark.skipif(backend.device() != "CPU", reason="Ascend multiplies bfloat16")
def test_bfloat16_is_refused_on_cpu_with_the_way_out():
    with pytest.raises(ConfigError, match="'bfloat16'.*'bfloat16_simulated'.*'float16'"):
        backend.check_compute_dtype("bfloat16")


def test_numpy_2_is_refused_with_the_way_out():
    code = "import numpy; numpy.__version__ = '2.1.0'; import moviegen.nn.backend"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "numpy 2.1.0 does not work with MindSpore 2.10: pip install 'numpy>=1.26,<2'" in ended.stderr
