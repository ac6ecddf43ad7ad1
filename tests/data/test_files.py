import math
import os
import re
import subprocess
import sys

import av
import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.data import crops, files, video
from moviegen.errors import ConfigError, DataError
from moviegen.parallel.mesh import Group
from tests.data import broken


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return broken.write(tmp_path_factory.mktemp("set"))


GOOD = [name for name, reason in broken.FILES.items() if not reason]


def config(table, **more):
    values = dict(csv=str(table), video_folder=str(table.parent), max_bad_fraction=0.6)
    return ConfigDict(values | more)


@pytest.mark.parametrize("name", broken.FILES)
def test_every_file_is_read_or_refused_for_its_reason(table, name):
    path, reason = table.parent / name, broken.FILES[name]
    if reason:
        with pytest.raises(DataError, match=reason) as caught:
            video.read(path, 0, 8, size=(16, 24))
        assert str(path) in str(caught.value)
    else:
        clip, _ = video.read(path, 0, 8, size=(16, 24))
        assert clip.shape == (8, 16, 24, 3) and clip.std() > 20


def test_the_files_are_what_they_are_called(table):
    folder = table.parent
    with av.open(str(folder / "ten_bit.mkv")) as f:
        assert f.streams.video[0].format.name == "yuv420p10le"
    with av.open(str(folder / "header_lies.avi")) as f:
        assert f.streams.video[0].frames == 444
    assert video.probe(folder / "header_lies.avi")["frames"] == 5
    with pytest.raises(DataError, match="header promises 444 frames but 5 decode"):
        video.read(folder / "header_lies.avi")
    found = [video.probe(folder / name) for name in ("odd.avi", "rotated.mp4")]
    assert [(p["height"], p["width"]) for p in found] == [(35, 51), (48, 32)]
    eight, _ = video.read(folder / "ten_bit.mkv", size=(32, 48))
    difference = (eight - broken.pixels(12).astype(float)) @ (0.299, 0.587, 0.114)
    assert (
        abs(difference).mean() < 1
    )  # of luma: colours have half the resolution, and are blurred over the blocks' borders


def test_a_variable_rate_can_be_made_constant(table):
    frames = broken.pixels(12)
    clip, fps = video.read(table.parent / "variable.mkv", fps=8)
    shown = [0, 1, 2, 3, 3, 3, 3, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 9, 10, 11]
    assert fps == 8 and 24 <= len(clip) <= 26  # how long the last one stays is not in the file
    np.testing.assert_array_equal(clip[:24], frames[shown])
    for rate in (3, 8, 17):  # a clip that is too short is known by its header
        seconds = video.probe(table.parent / "variable.mkv")["seconds"]
        assert len(video.read(table.parent / "variable.mkv", fps=rate)[0]) == math.ceil(seconds * rate - 1e-6)
    half, fps = video.read(table.parent / "variable.mkv", num_frames=4, fps=4)
    assert fps == 4
    np.testing.assert_array_equal(half, frames[[0, 2, 3, 3]])
    twice, fps = video.read(table.parent / "odd.avi", num_frames=6, fps=16, stride=2)
    assert fps == 8
    np.testing.assert_array_equal(twice, video.read(table.parent / "odd.avi", num_frames=6)[0])


def test_all_bad_files_are_listed_with_reasons(table, capsys):
    counts, bad = files.usable(config(table), 8)
    assert [file.name for file in counts] == GOOD and set(counts.values()) == {12}
    assert bad.reasons.keys() == broken.FILES.keys() - set(GOOD)
    printed = capsys.readouterr().out
    for line, (name, reason) in enumerate(broken.FILES.items(), 2):
        assert bool(re.search(rf"line {line}: .*{re.escape(name)}: .*({reason})", printed)) == bool(reason)


def test_more_than_the_share_ends_the_run(table):
    with pytest.raises(DataError, match=r"files.csv: 7 of 12 files.*max_bad_fraction is 0.5: first of them, line 7: "):
        files.usable(config(table, max_bad_fraction=0.5), 8)


def test_of_several_ranks_the_first_one_alone_opens_files(table, tmp_path, monkeypatch):
    """Also the csv: the others do not have it here."""
    cache = tmp_path / "ranks" / "videos.json"
    monkeypatch.setattr(files.sync, "first_rank_alone", lambda world, do, marker: do())
    counts, bad = files.usable(config(table), 8, cache, Group("both", 2, 0))
    monkeypatch.setattr(files.sync, "first_rank_alone", lambda world, do, marker: None)
    others, nothing = files.usable(config(table, csv="/nowhere.csv"), 8, cache, Group("both", 2, 1))
    assert others == counts and list(others) == list(counts)
    assert nothing.total == bad.total == len(broken.FILES) and not nothing.reasons


def test_training_goes_on_with_the_good_ones(table):
    data = config(table, source="csv", num_frames=8, height=16, width=24, image_fraction=0.0)
    source = crops.source(data)
    assert all(source(np.random.default_rng(i), 8, 16, 24).shape == (8, 16, 24, 3) for i in range(10))


def test_reading_each_goes_over_the_bad_ones(table):
    found = files.listed(str(table), str(table.parent))
    bad = files.Bad(len(found), 0.6, str(table))
    read = [file.name for file, _ in files.each(found, bad, lambda file: video.read(file.path, 0, 8))]
    assert read == GOOD and len(bad.reasons) == 7


def test_when_nothing_is_left_a_run_ends_whatever_the_share(tmp_path):
    (tmp_path / "a.mp4").write_text("no")
    data = ConfigDict(dict(csv="", video_folder=str(tmp_path), max_bad_fraction=1.0))
    with pytest.raises(DataError, match="1 of 1 files cannot be used"):
        files.usable(data, 1)


def test_a_row_without_a_name_is_a_bad_file(table, tmp_path):
    other = tmp_path / "x.csv"
    other.write_text("caption,video\nx\ny,whole.mp4\n")
    found, bad = files.usable(config(other, video_folder=str(table.parent), max_bad_fraction=0.5), 8)
    assert [file.name for file in found] == ["whole.mp4"]
    assert next(iter(bad.reasons.values())).startswith("line 2: ")


def test_a_missing_folder_is_named_by_its_key(tmp_path):
    with pytest.raises(ConfigError, match="evaluate.video_folder is '/nowhere'"):
        files.listed("", "/nowhere", "evaluate")
    with pytest.raises(DataError, match="no videos or images"):
        files.listed("", str(tmp_path))


def test_files_outside_the_folder_are_bad_rows_unless_that_is_allowed(table, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    video.write_png(videos / "in.png", broken.pixels(1)[0])
    (videos / "link.mp4").symlink_to(table.parent / "whole.mp4")
    (tmp_path / "whole.mp4").symlink_to(table.parent / "whole.mp4")
    names = ["in.png", "../whole.mp4", "link.mp4", str(table.parent / "odd.avi")]
    (tmp_path / "x.csv").write_text("video\n" + "".join(f"{name}\n" for name in names))
    data = config(tmp_path / "x.csv", video_folder=str(videos), max_bad_fraction=0.8)
    counts, bad = files.usable(data, 8)
    assert [file.name for file in counts] == names[:1] and list(bad.reasons) == names[1:]
    assert all(re.search("leads out of .* set data.allow_outside=True", reason) for reason in bad.reasons.values())
    counts, bad = files.usable(config(tmp_path / "x.csv", video_folder=str(videos), allow_outside=True), 8)
    assert [file.name for file in counts] == names and not bad.reasons
    found = files.listed("", str(videos))  # links of a bare folder likewise
    assert [file.name for file in found] == ["in.png", "link.mp4"]
    with pytest.raises(DataError, match="link.mp4' leads out"):
        video.probe(found[1].path)


def test_a_file_that_is_named_twice_is_there_once(table, tmp_path):
    (tmp_path / "x.csv").write_text("video,caption\nwhole.mp4,a\nodd.avi,b\nwhole.mp4,c\n")
    found = files.listed(str(tmp_path / "x.csv"), str(table.parent))
    assert [(file.name, file.line) for file in found] == [("whole.mp4", 2), ("odd.avi", 3)]


def test_rows_with_names_that_are_none_are_counted_each(table, tmp_path):
    names = ["", " ", "", 300 * "x", "a" * 200_000]
    (tmp_path / "x.csv").write_text("caption,video\n" + "".join(f"x,{name}\n" for name in names) + "x\nx,whole.mp4\n")
    found, bad = files.usable(config(tmp_path / "x.csv", video_folder=str(table.parent), max_bad_fraction=0.9), 8)
    assert [file.name for file in found] == ["whole.mp4"] and len(bad.reasons) == bad.total - 1 == 6
    assert sum("the cell `video` is empty" in reason for reason in bad.reasons.values()) == 4
    assert max(map(len, bad.reasons.values())) < 700


def test_names_on_disk_that_are_not_utf8_are_bad_files(tmp_path):
    video.write_png(tmp_path / "ü.png", broken.pixels(1)[0])
    (tmp_path / os.fsdecode(b"\xfc.png")).write_bytes((tmp_path / "ü.png").read_bytes())
    data = ConfigDict(dict(csv="", video_folder=str(tmp_path), max_bad_fraction=0.5))
    found, bad = files.usable(data, 1)
    assert [file.name for file in found] == ["ü.png"]
    assert re.search(r"udcfc.png' cannot be the name of a file in", "".join(bad.reasons.values()))


def test_files_are_found_and_read_in_an_ascii_locale(tmp_path):
    video.write_png(tmp_path / "ü.png", broken.pixels(1)[0])
    (tmp_path / "x.csv").write_text("video\nü.png\n", encoding="utf-8")
    code = "import sys; from moviegen.data import files, video\n"
    code += "for csv in (sys.argv[1] + '/x.csv', ''):\n  (file,) = files.listed(csv, sys.argv[1])\n"
    code += "  assert ascii(file.name) == ascii('\\u00fc.png') and video.read(file.path)[0].shape == (1, 32, 48, 3)"
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, check=True)
