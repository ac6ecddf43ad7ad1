import os
from pathlib import Path

import pytest

from moviegen.errors import DataError
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


@pytest.mark.parametrize(
    "name", ["../b", "/etc/passwd", "a/../../b", "", ".", "link/b", "link/folder/../b", "file-link"]
)
def test_a_name_may_not_leave_its_folder(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "file-link").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"folder: .* leads out of the folder, to /"):
        files.inside(folder, name)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "circle"])
def test_what_can_be_no_name_is_told(tmp_path, name):
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(DataError, match="cannot be the name of a file in "):
        files.inside(tmp_path, name)


@pytest.mark.parametrize("name", ["b", "new/b", "..b", "a/../b", "inner/b", "ü"])
def test_a_name_inside_is_as_good_if_the_folder_is_a_link_itself(tmp_path, name):
    (tmp_path / "folder" / "a").mkdir(parents=True)
    (tmp_path / "folder" / "inner").symlink_to("a")
    (tmp_path / "link").symlink_to("folder")
    assert files.inside(tmp_path / "link", name) == tmp_path / "link" / name
    absolute = str(tmp_path / "folder" / name)
    assert files.inside(tmp_path / "folder", absolute) == Path(absolute)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(DataError, match=f"{path}: is a folder, a pipe or a device, expected a file"):
            files.regular(path)
    assert files.regular(tmp_path / "gone") == tmp_path / "gone"  # opening it says that
