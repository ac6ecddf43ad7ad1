import json
import os

import ml_dtypes
import numpy as np
import pytest

from moviegen.errors import ConfigError, DataError
from moviegen.storage import safetensors_io
from moviegen.text import store

FINGERPRINT = {"encoder": "byt5", "budget": 100, "dtype": "float32"}


def items(texts, dtype=np.float32, width=5):
    rng = np.random.default_rng(len(texts[0]))
    tokens = [list(range(1, len(text) + 2)) for text in texts]
    return texts, tokens, [rng.standard_normal((len(ids), width)).astype(dtype) for ids in tokens]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_any_text_comes_back_from_whichever_shard(tmp_path, dtype):
    store.check_or_write(tmp_path, FINGERPRINT, "key")
    shards = [items(["", "a dog", "日本語"], dtype), items(["x" * 300], dtype), items(["b", "cc"], dtype)]
    for shard in shards:
        store.write_shard(tmp_path, *shard)
    opened = store.open_store(tmp_path)
    assert json.loads((tmp_path / store.MANIFEST).read_text()) == FINGERPRINT and len(opened.files) == 3
    for texts, tokens, embeddings in shards:
        assert store.contains(opened, texts).all()
        for text, ids, values in zip(texts, tokens, embeddings, strict=True):
            found, its_ids = store.read(opened, text)
            np.testing.assert_array_equal(found, values.astype(np.float32))
            assert found.dtype == np.float32 and its_ids.tolist() == ids
    assert store.contains(opened, ["a dog", "a cat", "b"]).tolist() == [True, False, True]
    with pytest.raises(DataError, match="no embeddings of the text 'a cat'.*encode_text"):
        store.read(opened, "a cat")


def test_rows_are_read_without_their_shard(tmp_path, monkeypatch):
    store.check_or_write(tmp_path, FINGERPRINT, "key")
    shard = store.write_shard(tmp_path, *items(["a", "b" * 50, "c"]))
    opened, asked, preadv = store.open_store(tmp_path), [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, to, at: asked.append(len(to[0])) or preadv(file, to, at))
    embeddings, tokens = store.read(opened, "c")
    whole = safetensors_io.read(shard)
    np.testing.assert_array_equal(embeddings, whole["embeddings"][53:55])
    np.testing.assert_array_equal(tokens, whole["tokens"][53:55])
    assert asked == [whole["embeddings"][53:55].nbytes, tokens.nbytes]


def test_a_store_grows(tmp_path):
    store.check_or_write(tmp_path, FINGERPRINT, "key")
    assert not store.contains(store.open_store(tmp_path), ["a"]).any()
    for text in ("a", "b"):
        store.write_shard(tmp_path, *items([text]))
        assert store.contains(store.open_store(tmp_path), [text]).all()


def test_a_folder_belongs_to_one_encoder_and_budget(tmp_path):
    own = tmp_path / "byt5"
    assert not store.is_store(own)
    store.check_or_write(own, FINGERPRINT, "data.text_folders.byt5")
    store.check_or_write(own, FINGERPRINT, "data.text_folders.byt5")
    assert store.is_store(own)
    with pytest.raises(ConfigError, match="budget: 100 -> 50.*delete it or change data.text_folders.byt5"):
        store.check_or_write(own, FINGERPRINT | {"budget": 50}, "data.text_folders.byt5")
    seeds = tmp_path / "npz"
    seeds.mkdir()
    (seeds / "a.npz").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        store.check_or_write(seeds, FINGERPRINT, "data.text_folders.byt5")


def test_damaged_shards_are_named(tmp_path):
    store.check_or_write(tmp_path, FINGERPRINT, "key")
    shard = store.write_shard(tmp_path, *items(["a dog"]))
    opened = store.open_store(tmp_path)
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{shard.name}"):
        store.read(opened, "a dog")
    with pytest.raises(DataError, match=f"{shard.name}"):
        store.open_store(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}: cannot be read"):
        store.read(opened, "a dog")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_flipped_bits_are_noticed(tmp_path, dtype):
    store.check_or_write(tmp_path, FINGERPRINT, "key")
    texts, tokens, embeddings = items(["a dog", "a cat"], dtype)
    shard = store.write_shard(tmp_path, texts, tokens, embeddings)
    content = shard.read_bytes()
    for part in (embeddings[1].tobytes(), np.asarray(tokens[1], np.int32).tobytes()):
        at = content.rindex(part)
        shard.write_bytes(content[: at + 5] + bytes([content[at + 5] ^ 4]) + content[at + 6 :])
        opened = store.open_store(tmp_path)
        with pytest.raises(DataError, match=f"{shard.name}: .*the embeddings of 'a cat' are damaged.*encode again"):
            store.read(opened, "a cat")
        store.read(opened, "a dog")


def test_shards_of_before_have_no_checksums(tmp_path):
    store.check_or_write(tmp_path, FINGERPRINT, "key")
    shard = store.write_shard(tmp_path, *items(["a dog"]))
    arrays = safetensors_io.read(shard)
    del arrays["sums"]
    safetensors_io.write(arrays, shard, None)
    assert store.read(store.open_store(tmp_path), "a dog")[1].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "change",
    [
        {"keys": np.zeros((1, 15), np.uint8)},
        {"keys": np.zeros((2, 16), np.uint8)},
        {"keys": np.zeros(16, np.uint8)},
        {"ends": np.array([7])},
        {"ends": np.array([[6]])},
        {"ends": np.array([-1, 6])},
        {"ends": np.zeros(0, np.int64)},
        {"sums": np.zeros(3, np.int64)},
        {"tokens": np.zeros(5, np.int32)},
        {"embeddings": np.float32(1)},
        {"embeddings": np.zeros((6, 5, 1), np.float32)},
        {"ends": np.array(6), "keys": np.zeros(16, np.uint8), "sums": np.array(6)},
        {"ends": np.array([6.0])},
    ],
)
def test_what_is_no_shard_is_named(tmp_path, change):
    store.check_or_write(tmp_path, FINGERPRINT, "key")
    shard = store.write_shard(tmp_path, *items(["a dog"]))
    safetensors_io.write(safetensors_io.read(shard) | change, shard, None)
    with pytest.raises(DataError, match=f"{shard.name}: not a shard of embeddings"):
        store.open_store(tmp_path)


def test_embeddings_that_are_not_finite_are_named_and_not_stored(tmp_path):
    texts, tokens, embeddings = items(["a", "bb"])
    embeddings[1][0, 2] = np.inf
    with pytest.raises(DataError, match="embeddings of the text 'bb' are not finite"):
        store.write_shard(tmp_path, texts, tokens, embeddings)
    assert not list(tmp_path.iterdir())
