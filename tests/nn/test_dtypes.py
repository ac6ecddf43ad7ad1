import mindspore as ms
import ml_dtypes
import numpy as np
import pytest

from moviegen.nn import dtypes


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8"])
def test_dtypes_by_name(name):
    assert dtypes.numpy_dtype(name).name == name


def test_bfloat16_of_mindspore_is_the_common_one():
    """MindSpore's own numpy dtype of that name converts neither to nor from it."""
    array = dtypes.to_numpy("a", ms.Tensor([1.0, 2.5], ms.bfloat16))
    assert array.dtype == np.dtype(ml_dtypes.bfloat16) and array.astype(np.float32).tolist() == [1.0, 2.5]


def test_numbers_and_foreign_byte_order():
    assert dtypes.to_numpy("a", 3).shape == ()
    array = dtypes.to_numpy("a", np.arange(3, dtype=">f4"))
    assert array.dtype == np.dtype("<f4") and array.tolist() == [0, 1, 2]


def test_to_numpy_refuses_what_is_not_numbers():
    for value in ({"a": 1}, "text", None, [object()]):
        with pytest.raises(TypeError, match="array params/a is"):
            dtypes.to_numpy("params/a", value)
