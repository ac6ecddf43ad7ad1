import subprocess
import sys

import numpy as np
import pytest

from moviegen.models.text import toy as toy_text

DIMS = {"ul2": 4096, "metaclip": 1280, "byt5": 1472}


def test_shapes_and_masks():
    text = toy_text.encode(["a red circle moves left", ""], DIMS)
    assert set(text) == set(DIMS)
    lengths = {"ul2": 8, "metaclip": 8, "byt5": 4}  # six tokens, six and one, up to a multiple of 4
    for encoder, (embeddings, mask) in text.items():
        assert embeddings.shape == (2, lengths[encoder], DIMS[encoder]) and embeddings.dtype == np.float32
        assert mask.shape == (2, lengths[encoder]) and mask.dtype == bool
        assert not embeddings[~mask].any()
    assert text["ul2"][1].sum(1).tolist() == [6, 1]  # five words and the end; the end alone
    assert text["byt5"][1].sum(1).tolist() == [1, 1]


def test_a_word_is_one_unit_variance_vector_wherever_it_stands():
    embeddings, _ = toy_text.encode(["a RED circle", "Blue, red!"], DIMS)["ul2"]
    np.testing.assert_array_equal(embeddings[0, 1], embeddings[1, 1])
    assert embeddings[0, 1].std() == pytest.approx(1, abs=0.05) and abs(embeddings[0, 1].mean()) < 0.05


def test_words_and_encoders_differ():
    text = toy_text.encode(["red blue"], {"ul2": 512, "metaclip": 512, "byt5": 512})
    red, blue = text["ul2"][0][0, :2]
    for other in (blue, text["metaclip"][0][0, 0]):
        assert abs(np.corrcoef(red, other)[0, 1]) < 0.2


def test_byt5_sees_quoted_text_only():
    plain, sign, curly, other = (
        toy_text.encode([p], DIMS)["byt5"] for p in ("a sign", 'a sign "Hi"', "two signs “Hi”", 'a sign "Ho"')
    )
    assert plain[1].sum() == 1 and sign[1].sum() == 3
    np.testing.assert_array_equal(sign[0], curly[0])
    assert (sign[0][0, 0] == other[0][0, 0]).all() and (sign[0][0, 1] != other[0][0, 1]).any()


def test_a_prompt_does_not_depend_on_its_batch():
    alone = toy_text.encode(["a red circle"], DIMS)
    together = toy_text.encode(["a blue square moves up", "a red circle"], DIMS)
    for encoder in DIMS:
        length = alone[encoder][1].shape[1]
        np.testing.assert_array_equal(alone[encoder][0][0], together[encoder][0][1, :length])
        np.testing.assert_array_equal(alone[encoder][1][0], together[encoder][1][1, :length])
        assert not together[encoder][1][1, length:].any()


def test_the_same_in_another_process():
    code = "from moviegen.models.text import toy; print(toy.encode(['red'], {'ul2': 8})['ul2'][0][0, 0].tolist())"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert eval(output) == toy_text.encode(["red"], {"ul2": 8})["ul2"][0][0, 0].tolist()


def test_a_long_prompt_keeps_every_word():
    embeddings, mask = toy_text.encode(["word " * 20], DIMS)["ul2"]
    assert embeddings.shape[1] == 24 and mask.sum() == 21
