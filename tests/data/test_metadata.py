import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.data import files, metadata, rates, video
from moviegen.data.fit import Metadata
from moviegen.errors import ConfigError, DataError

MADE_UP = Metadata(77, 12.5, 48, 64, 6.16)  # not what the file is: a lookup that says so has not opened it


def note(folder: Path, name: str, meta: Metadata = MADE_UP) -> str:
    """A csv that says this of a file as it is now."""
    stat = (folder / name).stat()
    path = str(folder / "metadata.csv")
    metadata.Table(path).append([(name, metadata.Row(stat.st_size, stat.st_mtime_ns, meta))])
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b, c.mp4"):
        (tmp_path / name).write_bytes(b"no video at all")
    return tmp_path


def test_what_the_csv_knows_is_not_opened_by_any_of_those_who_ask(folder):
    names = "a.mp4", "b, c.mp4"
    path = [note(folder, name) for name in names][0]
    data = ConfigDict(dict(csv="", video_folder=str(folder), metadata=path, fps=0.0))
    lookup = metadata.read(ConfigDict(dict(data=data)))
    listed = files.listed("", str(folder))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lookup, listed)) == [MADE_UP] * 2
    assert rates.of({"video": "b, c.mp4"}, data, {}) == 12.5
    assert {file.name: frames for file, frames in files.usable(data, 8)[0].items()} == dict.fromkeys(names, 77)


def test_another_file_in_its_place_is_opened_and_said(folder, capsys):
    path = note(folder, "a.mp4")
    table = metadata.Table(path)
    old = (folder / "a.mp4").stat()
    for change in (b"no video at aLL", b"longer than it was before"):
        (folder / "a.mp4").write_bytes(change)
        os.utime(folder / "a.mp4", ns=(old.st_atime_ns, old.st_mtime_ns + (len(change) == old.st_size)))
        with pytest.raises(DataError, match="a.mp4: damaged"):
            table.find("a.mp4", folder / "a.mp4")
    with pytest.raises(DataError, match="b, c.mp4: damaged"):
        table.find("b, c.mp4", folder / "b, c.mp4")
    with pytest.raises(DataError, match="no such file"):
        table.find("gone.mp4", folder / "gone.mp4")
    video.write_mp4(folder / "a.mp4", np.zeros((3, 16, 32, 3), np.uint8), 10)
    for _ in range(2 * metadata.NAMED):
        assert table.find("a.mp4", folder / "a.mp4") == Metadata(3, 10.0, 16, 32, 0.3)
    said = capsys.readouterr().out
    assert said.count("a.mp4 has changed since, opened anew") == metadata.NAMED
    assert said.count("more files are not as it says") == 1


def test_the_last_row_of_a_name_counts_and_a_torn_one_is_cut_off(folder):
    path = note(folder, "a.mp4", MADE_UP._replace(frames=1))
    note(folder, "a.mp4")
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole + b'"b, c.mp4",15,17')
    assert len(metadata.Table(path)) == 2  # the torn one is there and counts for nothing
    with pytest.raises(DataError):
        metadata.Table(path).row("b, c.mp4", folder / "b, c.mp4")
    note(folder, "b, c.mp4")
    assert Path(path).read_bytes().startswith(whole + b'"b, c.mp4",15,1') and Path(path).read_bytes().count(b"\n") == 4
    assert metadata.Table(path).row("a.mp4", folder / "a.mp4")[0].meta == MADE_UP
    assert metadata.Table(path).row("b, c.mp4", folder / "b, c.mp4")[0].meta == MADE_UP


def test_a_csv_that_is_not_there_or_of_another_kind_is_refused(folder):
    config = ConfigDict(dict(data=dict(metadata=str(folder / "gone.csv"))))
    with pytest.raises(ConfigError, match="data.metadata is .*gone.csv', which is no file: --job=check_data writes it"):
        metadata.read(config)
    config.data.metadata = str(folder / "a.mp4")
    with pytest.raises(DataError, match="is no csv that --job=check_data wrote"):
        metadata.read(config)
