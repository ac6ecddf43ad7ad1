import subprocess
import sys

import numpy as np
import pytest

from moviegen.models.text import toy


def test_tokens_are_words_or_quoted_bytes_and_the_end():
    def lengths(prompt):
        return [toy.encode(prompt, name, 8).shape for name in ("ul2", "metaclip", "byt5")]

    assert lengths("a red circle moves left") == [(6, 8), (6, 8), (1, 8)]
    assert lengths("") == [(1, 8)] * 3
    assert lengths('a sign "Hi"') == [(4, 8), (4, 8), (3, 8)]


def test_a_word_is_one_unit_variance_vector_wherever_it_stands():
    one, other = toy.encode("a RED circle", "ul2", 4096), toy.encode("Blue, red!", "ul2", 4096)
    np.testing.assert_array_equal(one[1], other[1])
    assert one.dtype == np.float32 and one[1].std() == pytest.approx(1, abs=0.05) and abs(one[1].mean()) < 0.05


def test_words_and_encoders_differ():
    red, blue, _ = toy.encode("red blue", "ul2", 512)
    for other in (blue, toy.encode("red", "metaclip", 512)[0]):
        assert abs(np.corrcoef(red, other)[0, 1]) < 0.2


def test_byt5_sees_quoted_text_only():
    sign, curly, other = (toy.encode(p, "byt5", 8) for p in ('a sign "Hi"', "two signs “Hi”", 'a sign "Ho"'))
    np.testing.assert_array_equal(sign, curly)
    assert (sign[0] == other[0]).all() and (sign[1] != other[1]).any()


def test_the_same_in_another_process():
    code = "from moviegen.models.text import toy; print(toy.encode('red', 'ul2', 8)[0].tolist())"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert eval(output) == toy.encode("red", "ul2", 8)[0].tolist()
