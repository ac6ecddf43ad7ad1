import weakref

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
    wanted = {"params": {"a": entries["params"]["a"]}}
    found = treestore.read(tmp_path, wanted, {"a": "float16"}, lambda shape: (slice(1, 2),) * 2)
    assert found["params"]["a"].dtype == np.float16 and found["params"]["a"].tolist() == [[4.0]]


def test_what_is_cast_is_not_in_memory_twice(tmp_path, monkeypatch):
    """As many arrays are there as they were saved as are read at the same time, no more."""
    names = [str(i) for i in range(40)]
    trees = {"ema": {name: np.full(3, int(name), np.float32) for name in names}}
    entries = treestore.create(tmp_path, trees)
    for tree, name, files in treestore.write(tmp_path, trees, entries):
        entries[tree][name]["files"] |= files
    read, alive = [], []

    def reading(*args, real=treestore._read):
        array = real(*args)
        read.append(weakref.ref(array))
        alive.append(sum(each() is not None for each in read))
        return array

    monkeypatch.setattr(treestore, "_read", reading)
    found = treestore.read(tmp_path, entries, dict.fromkeys(names, "float16"))["ema"]
    assert max(alive) <= treestore.WORKERS < len(read) == 40
    assert all(found[name].dtype == np.float16 and (found[name] == int(name)).all() for name in names)


def test_a_damaged_array_is_named(tmp_path):
    entries = stored(tmp_path)
    file = tmp_path / "params" / "b" / "c" / "c.0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="array params/b/c is damaged"):
        treestore.read(tmp_path, entries)
