import json

import ml_dtypes
import numpy as np
import pytest

from moviegen.errors import ConfigError, DataError
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
    store.write_shard(tmp_path, *items(["a", "b" * 50, "c"]))
    opened, asked = store.open_store(tmp_path), []

    class Slice:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, where):
            asked.append((self.name, where.start, where.stop))
            return np.zeros((where.stop - where.start, 5), np.float32)

    shard = type("Shard", (), {"get_slice": lambda self, name: Slice(name)})()
    monkeypatch.setattr(store.safetensors_io, "_kept_open", lambda *_: shard)
    store.read(opened, "c")
    assert asked == [("embeddings", 53, 55), ("tokens", 53, 55)]


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
