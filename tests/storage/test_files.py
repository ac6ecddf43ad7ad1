import errno
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
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


@pytest.fixture
def folder(tmp_path):
    """videos/a.mp4, b.mp4 beside videos, and links from inside to there and to within."""
    for path in ("videos/deep/a.mp4", "b.mp4"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    (tmp_path / "videos" / "out.mp4").symlink_to(tmp_path / "b.mp4")
    (tmp_path / "videos" / "up").symlink_to("..")
    (tmp_path / "videos" / "within").symlink_to("deep")
    (tmp_path / "videos" / "round").symlink_to("round")
    return tmp_path / "videos"


@pytest.mark.parametrize(
    "name", ["deep/a.mp4", "deep/../deep/a.mp4", "within/a.mp4", "new/ü.mp4", "up/videos/deep/a.mp4"]
)
def test_names_inside_a_folder_are_its_files(folder, name):
    assert files.inside(folder, name) == folder / name


@pytest.mark.parametrize(
    "name", ["../b.mp4", "/etc/passwd", "out.mp4", "up/b.mp4", "..", ".", "", "deep/../../b.mp4", "../videos2/x"]
)
def test_names_that_lead_out_are_refused_unless_allowed(folder, name):
    for allowed, mend in ((None, "put the file itself there$"), (False, "or set data.allow_outside=True$")):
        with pytest.raises(DataError, match=rf"videos: '{name}' leads out of the folder, to /.*{mend}"):
            files.inside(folder, name, allowed)
    assert files.inside(folder, name, True) == folder / name


@pytest.mark.parametrize("name", ["a\0b", 300 * "x", "a/" * 3000, "\udcfc.mp4", "round"])
@pytest.mark.parametrize("allowed", [None, True])
def test_names_that_no_file_can_have_are_refused(folder, name, allowed):
    with pytest.raises(DataError, match="cannot be the name of a file in .*videos") as caught:
        files.inside(folder, name, allowed)
    assert len(str(caught.value)) < 600


def test_names_are_utf8_whatever_the_locale(folder):
    (folder / "ü.mp4").write_text("here")
    code = "import sys; from pathlib import Path; from moviegen.storage import files\n"
    code += (
        "assert sys.getfilesystemencoding() == 'ascii'; assert files.inside(Path(sys.argv[1]), '\\u00fc.mp4').is_file()"
    )
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(folder)], env=env, check=True)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 200_000, b'{"a": NaN}', b"9" * 5000])
def test_json_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match="a.json: cannot be read as JSON"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match="b.json: cannot be read"):
        files.read_json(tmp_path / "b.json")


ARRAYS = {
    "a": np.arange(24.0).reshape(2, 3, 4),
    "b": np.asfortranarray(np.eye(3, 2, dtype=np.float16)),
    "c": np.zeros(0),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_as_numpy_reads_it(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    found = files.read_npz(tmp_path / "a.npz", ("a", "b", "c"))
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    assert files.npz_shapes(tmp_path / "a.npz", ("c", "a")) == {"c": (0,), "a": (2, 3, 4)}
    with pytest.raises(DataError, match="a.npz: cannot be read as npz with d"):
        files.read_npz(tmp_path / "a.npz", ("d",))


def npz(path, header, content, method=zipfile.ZIP_STORED):
    header = header.ljust(117) + "\n"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + content)
    return path


@pytest.mark.parametrize(
    ("shape", "dtype", "size", "reason"),
    [
        ("(2000, 2000, 1000000)", "<f4", 16, "a holds 16 bytes, its header says float32"),  # 16 TB
        ("(750000,)", "<f4", 3_000_000, "unpacks to 3000000 bytes, more than 20 times"),  # in 3 kB
        ("(2,)", "|O", 16, "its header says object"),
        ("(-1, -4)", "<f4", 16, "negative"),
        ("(" * 100, "<f4", 16, "EOF"),
    ],
)
def test_an_npz_cannot_ask_for_more_memory_than_it_is_worth(tmp_path, monkeypatch, shape, dtype, size, reason):
    monkeypatch.setattr(files, "NPZ_BYTES", 1 << 20)  # 64 times less, so that it is quick
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    path = npz(tmp_path / "a.npz", header, bytes(size), zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=f"a.npz: cannot be read as npz with a .*{reason}"):
        files.read_npz(path, ("a",))


def test_a_damaged_npz_is_refused_wherever_it_is_damaged(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    content = (tmp_path / "a.npz").read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(len(content), size=60):
        (tmp_path / "a.npz").write_bytes(content[:at])
        with pytest.raises(DataError):
            files.read_npz(tmp_path / "a.npz", ("a", "b"))
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.npz").write_bytes(flipped)
        try:
            found = files.read_npz(tmp_path / "a.npz", ("a", "b"))
        except DataError:
            continue
        for name in found:  # what is not said is not used: times, attributes
            np.testing.assert_array_equal(found[name], ARRAYS[name])


def test_temporary_names_differ_where_numbers_of_processes_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)  # as on two hosts
    with files.aside(tmp_path / "a") as first, files.aside(tmp_path / "a") as second:
        assert first != second
        first.touch(), second.touch()


def test_an_error_of_a_write_names_the_file_that_was_to_be(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(OSError) as error, files.aside(path) as temporary:
        temporary.touch()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert files.told(error.value) == f"{path}: No space left on device" and list(tmp_path.iterdir()) == []
    assert files.told(ConnectionResetError(errno.ECONNRESET, "reset")) is None


def test_a_record(tmp_path, capsys):
    path = tmp_path / "a.json"
    assert files.noted(path) is None and capsys.readouterr().out == ""
    files.write_json({"a": "ü"}, path)
    assert files.noted(path) == {"a": "ü"}
    for damage in (b"", b"[]", b"{", b"\xff", b"[" * 200_000):
        path.write_bytes(damage)
        assert files.noted(path) is None
        assert capsys.readouterr().out.startswith(f"{path} is damaged (")
