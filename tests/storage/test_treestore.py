import numpy as np
import pytest

from moviegen.storage import treestore

TREES = {"params": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b/c": np.ones(4, np.int64)}, "opt": {"step": 3}}


def stored(folder):
    entries = treestore.create(folder, TREES)
    for tree, name, files in treestore.write(folder, TREES, entries):
        entries[tree][name]["files"] |= files
    return entries


def test_round_trip(tmp_path):
    found = treestore.read(tmp_path, stored(tmp_path))
    assert found.keys() == TREES.keys()
    for tree, values in TREES.items():
        for name, value in values.items():
            np.testing.assert_array_equal(found[tree][name], value)


def test_only_what_is_asked_for_is_read(tmp_path):
    entries = stored(tmp_path)
    found = treestore.read(
        tmp_path, {"params": {"a": entries["params"]["a"]}}, "float16", lambda shape: (slice(1, 2),) * 2
    )
    assert found["params"]["a"].dtype == np.float16 and found["params"]["a"].tolist() == [[4.0]]


def test_a_damaged_array_is_named(tmp_path):
    entries = stored(tmp_path)
    file = tmp_path / "params" / "b" / "c" / "c.0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="array params/b/c is damaged"):
        treestore.read(tmp_path, entries)
