"""Tokenizers on the files of the public models, against ids that Hugging Face's own tokenizers give for them."""

import json
import shutil

import pytest

from moviegen.errors import ConfigError
from moviegen.text import tokenizers
from tests.text import real_files

PROMPT = "A rotating Earth seen from space, 4K video."
T5_IDS = [71, 22107, 4030, 894, 45, 628, 6, 314, 439, 671, 5, 1]
CLIP_IDS = [49406, 320, 32265, 3475, 2041, 633, 2138, 267, 275, 330, 1455, 269, 49407]
TEXTS = ["", "  two   spaces ", "Ünïcode ½ ﬁ naïve 日本語 🙂", "x" * 300, 'FPS-16 Zoom in. a "sign"']


def test_byt5_is_bytes():
    assert tokenizers.byt5("a cat") == [100, 35, 102, 100, 119, 1]
    assert tokenizers.byt5("é") == [0xC3 + 3, 0xA9 + 3, 1] and tokenizers.byt5("") == [1]
    own = tokenizers.open_tokenizer("byt5", "nowhere")
    assert own.encode(["a", ""]) == [[100, 1], [1]] and own.size == 384


@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json"])
def test_t5_from_either_file(tmp_path, file):
    shutil.copy(real_files.folder("t5") / file, tmp_path)
    own = tokenizers.open_tokenizer("t5", tmp_path)
    assert own.encode([PROMPT, ""]) == [T5_IDS, [1]]
    assert own.size == (32000 if file == "spiece.model" else 32100)


def test_both_files_of_t5_mean_the_same(tmp_path):
    source = real_files.folder("t5")
    shutil.copy(source / "tokenizer.json", tmp_path)
    both = [tokenizers.open_tokenizer("t5", folder).encode(TEXTS) for folder in (source, tmp_path)]
    assert both[0] == both[1]


def test_clip():
    own = tokenizers.open_tokenizer("clip", real_files.folder("clip"))
    assert own.encode([PROMPT, ""]) == [CLIP_IDS, [49406, 49407]] and own.size == 49408
    assert own.encode([PROMPT.upper()]) == own.encode(["  " + PROMPT.lower().replace(" ", "\n")]) == [CLIP_IDS]
    for ids in own.encode(TEXTS + ["it's <|endoftext|> 12"]):
        assert ids[0] == 49406 and ids[-1] == 49407 and not {49406, 49407} & set(ids[1:-1])


def test_digests_follow_the_files(tmp_path):
    source = real_files.folder("clip")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(source / name, tmp_path)
    first = tokenizers.open_tokenizer("clip", source).digest
    assert tokenizers.open_tokenizer("clip", tmp_path).digest == first
    with open(tmp_path / "merges.txt", "a") as file:
        file.write("\n")
    assert tokenizers.open_tokenizer("clip", tmp_path).digest != first


def test_long_texts_are_cut_before_their_last_token_and_counted():
    ids = [[5, 6, 7, 1], [5, 1], [5, 6, 7, 8, 9, 1]]
    assert tokenizers.cut(ids, 4) == ([[5, 6, 7, 1], [5, 1], [5, 6, 7, 1]], 1)
    assert tokenizers.cut([tokenizers.byt5("x" * 10_000)], 100)[0] == [[123] * 99 + [1]]
    with pytest.raises(ConfigError, match="budget is 1"):
        tokenizers.cut(ids, 1)


def test_padding():
    ids, mask = tokenizers.pad([[4, 5, 1], [1]], 4)
    assert ids.tolist() == [[4, 5, 1, 0], [1, 0, 0, 0]] and mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert (ids.dtype, mask.dtype) == ("int32", "float32")


@pytest.mark.parametrize(
    ("kind", "files", "words"),
    [
        ("t5", {}, "has no spiece.model or tokenizer.json"),
        ("clip", {"vocab.json": "{}"}, "has no vocab.json and merges.txt"),
        ("t5", {"spiece.model": "not one"}, "spiece.model: not a tokenizer of this kind"),
        ("t5", {"tokenizer.json": "{"}, "tokenizer.json: not a tokenizer of this kind"),
        ("clip", {"vocab.json": json.dumps({"a": 0}), "merges.txt": ""}, "vocab.json, .*merges.txt: not a tokenizer"),
    ],
)
def test_missing_and_broken_files(tmp_path, kind, files, words):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        tokenizers.open_tokenizer(kind, tmp_path)
