import io
import pickle

import pytest

from moviegen.convert import torch_pickle
from moviegen.convert.torch_pickle import Name, Storage


def test_several_pickles_in_a_stream_are_read_one_by_one():
    values = [2**70, {"a": 1, "b": {"c": True}}, ["x", "y"], None, ("1", 2.5)]
    stream = io.BytesIO(b"".join(pickle.dumps(value, 2) for value in values))
    assert [torch_pickle.interpret(stream) for _ in values] == values


def test_a_tensor_is_described_by_whole_numbers():
    storage = Storage("float32", "0", 24)
    for name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"):
        assert torch_pickle._call(Name(name), (storage, 0, (2, 3), (3, 1))).shape == (2, 3)
        for size in ((-1, 3), (2.0, 3), (True, 3)):
            with pytest.raises(ValueError, match="as no plain tensor does"):
                torch_pickle._call(Name(name), (storage, 0, size, (3, 1)))


def test_names_are_words():
    with pytest.raises(ValueError, match="it names os.system, which no plain tensor needs"):
        torch_pickle.interpret(b"cos\nsystem\n.")
    with pytest.raises(ValueError, match="no dictionary of tensors alone|not a dictionary of tensors alone: a is none"):
        torch_pickle.tensors({"a": 1})
