import os

import pytest

from moviegen.storage import files


def test_the_file_is_there_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.json"
    with files.aside(path) as temporary:
        temporary.write_text("1")
        assert not path.exists() and temporary.suffix == ".tmp"
    assert path.read_text() == "1" and list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), files.aside(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_to_last_is_brought_to_the_disk_before_and_after_the_rename(tmp_path, monkeypatch, durable):
    calls = []
    monkeypatch.setattr(files, "sync", lambda path: calls.append(path.name))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("rename"), replace(*names)))
    with files.aside(tmp_path / "a", durable) as temporary:
        temporary.write_text("1")
    assert calls == ([temporary.name, "rename", tmp_path.name] if durable else ["rename"])
