import csv
import os

import pytest
from ml_collections import ConfigDict

from moviegen.data import captions
from moviegen.errors import DataError

CONFIG = ConfigDict(
    dict(
        text=dict(tell_fps=True, camera=""),
        data=dict(fps=16.0, num_frames=16, video_folder=""),
        sample=dict(fps=24, num_frames=16),
    )
)


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_a_table_with_rates_and_motions(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "video,caption,fps,camera\n"
        'a.mp4,"a dog, running",,\n'
        "b.mp4,a cat,24,zoom in\n"
        'c.png,"a sign ""OPEN""",,\n'
        'd.mp4,"two\nlines",,static\n',
    )
    found, bad = captions.read(path, CONFIG)
    assert not bad and [(row.line, row.video) for row in found] == [
        (2, "a.mp4"),
        (3, "b.mp4"),
        (4, "c.png"),
        (6, "d.mp4"),
    ]
    assert [row.texts["ul2"] for row in found] == [
        "FPS-16 a dog, running",
        "FPS-24 Zoom in. a cat",
        'a sign "OPEN"',  # an image has no rate
        "FPS-16 Static. two lines",
    ]
    assert [row.texts["byt5"] for row in found] == ["", "", "OPEN", ""]


def test_a_list_of_prompts(tmp_path):
    """They are told as sampling with the same config tells them."""
    path, config = (
        write(tmp_path / "a.txt", "\ufeffa dog, running\n\n  \na cat\n"),
        CONFIG.copy_and_resolve_references(),
    )
    config.text.camera = "arc"

    def told():
        found, bad = captions.read(path, config)
        assert not bad and [row.line for row in found] == [1, 4]
        return [row.texts["metaclip"] for row in found]

    assert told() == ["FPS-24 Arc. a dog, running", "FPS-24 Arc. a cat"]
    config.sample.num_frames = 1
    assert told() == ["a dog, running", "a cat"]
    config.sample.num_frames, config.text.tell_fps = 16, False
    assert told() == ["Arc. a dog, running", "Arc. a cat"]


def test_images_have_neither_rate_nor_motion(tmp_path):
    path, config = (
        write(tmp_path / "a.csv", "video,caption,fps,camera\na.mp4,a dog,24,arc\nb.JPG,a cat,25,arc\n"),
        CONFIG,
    )

    def told():
        return [row.texts["ul2"] for row in captions.read(path, config)[0]]

    assert told() == ["FPS-24 Arc. a dog", "a cat"]
    config = CONFIG.copy_and_resolve_references()
    config.data.num_frames = 1  # of the video one frame is shown
    assert told() == ["a dog", "a cat"]


def test_what_the_latents_were_shown_at_goes_first(tmp_path):
    path = write(tmp_path / "a.csv", "video,caption,fps\na.mp4,a dog,\nb.mp4,a cat,30\nc.mp4,a cow,\n")
    found, bad = captions.read(path, CONFIG, cached={"a.mp4": 30000 / 1001, "b.mp4": 12.0})
    assert [row.texts["ul2"] for row in found] == ["FPS-30 a dog", "FPS-16 a cow"]
    assert bad == {3: "line 3: fps is 30, but its latents are shown at 12: encode them anew"}


def test_bad_rows_are_counted_with_their_lines(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "video,caption,fps,camera\n"
        "a.mp4,a dog,16,\n"
        "b.mp4,   ,16,\n"
        "c.mp4,a cat, running,16,\n"
        "d.mp4\n"
        "e.mp4,a cat,fast,\n"
        "f.mp4,a cat,16,wobble\n"
        "g.mp4,a cat,nan,\n"
        "h.mp4,a cat,30000/1001,\n",
    )
    found, bad = captions.read(path, CONFIG)
    assert [(row.video, row.texts["ul2"]) for row in found] == [("a.mp4", "FPS-16 a dog"), ("h.mp4", "FPS-30 a cat")]
    expected = ["line 3: the caption is empty", "line 4: has more or fewer fields", "line 5: has more or fewer fields"]
    expected += ["line 6: fps is 'fast'", "line 7: camera motion 'wobble'", "line 8: fps is 'nan'"]
    assert list(bad) == [3, 4, 5, 6, 7, 8]
    assert all(b.startswith(e) for b, e in zip(bad.values(), expected, strict=True)), bad


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "video,text\na.mp4,a dog\n", "a.csv, line 1: no column `caption` among"),
        ("a.csv", "caption\na dog\n", "line 1: no column `video`"),
        ("a.csv", "", "no column `video` among None"),
        ("a.csv", 'video,caption\na.mp4,a dog\nb.mp4,"a "cat"\n', "a.csv, line 3: cannot be read as csv"),
        ("a.csv", 'video,caption\na.mp4,"never closed\n', "a.csv, line 2: cannot be read as csv"),
        ("a.csv", "video;caption\na.mp4;a dog\n", "line 1: no column `video` among .*with commas between"),
        ("a.csv", "video,caption,video\na.mp4,a dog,b.mp4\n", "line 1: two columns `video` among"),
        ("a.csv", "video,caption\na.mp4,a dog\n" + 40 * "\0" + "\n", "a.csv, line 3: holds a zero byte"),
        ("a.txt", "a dog\n\0\n", "a.txt, line 2: holds a zero byte"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, words):
    with pytest.raises(DataError, match=words):
        captions.read(write(tmp_path / name, content), CONFIG)


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"video,caption\na.mp4,caf\xe9\n")
    with pytest.raises(DataError, match=r"a.csv: is not UTF-8 text \(line 2: .*save it as UTF-8"):
        captions.read(str(tmp_path / "a.csv"), CONFIG)
    (tmp_path / "b.csv").write_bytes("video,caption\na.mp4,coffee\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="b.csv, line 1: holds a zero byte, as UTF-16"):
        captions.read(str(tmp_path / "b.csv"), CONFIG)
    with pytest.raises(DataError, match="text.prompts is 'gone.txt'"):
        captions.read("gone.txt", CONFIG, "text.prompts")


def test_rows_have_the_number_of_their_last_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffvideo,caption\na.mp4,"two\nlines"\nb.mp4\n', encoding="utf-8")
    found = [{"video": "a.mp4", "caption": "two\nlines"}, {"video": "b.mp4", "caption": None}]
    assert captions.rows(str(path), ("video",)) == list(zip((3, 4), found, strict=True))


def test_a_missing_file_or_column_is_named(tmp_path):
    with pytest.raises(
        DataError, match="text.prompts is 'gone.csv', which does not exist: name a csv file with video,x"
    ):
        captions.rows("gone.csv", ("video", "x"), "text.prompts")
    (tmp_path / "a.csv").write_text("video\n")
    with pytest.raises(DataError, match="a.csv, line 1: no column `x` among"):
        captions.rows(str(tmp_path / "a.csv"), ("video", "x"))


def test_bad_rows_up_to_a_share_are_listed_and_more_refused(capsys):
    captions.refuse_too_many_bad("a.csv", 2, ["line 3: gone"], 0.4, "rows")
    assert "a.csv: 1 of 3 rows cannot be used:\n  line 3: gone" in capsys.readouterr().out
    with pytest.raises(
        DataError, match="1 bad rows and 2 good ones, data.max_bad_fraction is 0.3: first bad one, line 3"
    ):
        captions.refuse_too_many_bad("a.csv", 2, ["line 3: gone"], 0.3, "rows", tell=False)
    assert not capsys.readouterr().out
    with pytest.raises(DataError, match="the table is empty"):
        captions.refuse_too_many_bad("a.csv", 0, [], 1.0, "rows")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_says_its_encoding_is_read(tmp_path, encoding):
    """As Excel saves "CSV UTF-8" and "Unicode text"."""
    path = tmp_path / "a.csv"
    path.write_text("video,caption\r\nü.mp4,une fenêtre\r\n", encoding=encoding, newline="")
    assert captions.rows(str(path), ("video",)) == [(2, {"video": "ü.mp4", "caption": "une fenêtre"})]


def test_a_large_file_that_is_no_text_is_refused_by_its_start(tmp_path):
    path = tmp_path / "film.csv"
    path.write_bytes(b"video\n")
    os.truncate(path, 1 << 36)
    with pytest.raises(DataError, match="film.csv, line 2: holds a zero byte"):
        captions.rows(str(path), ("video",))


def test_captions_may_be_long(tmp_path):
    path = write(tmp_path / "a.csv", "video,caption\na.mp4," + 200_000 * "x" + "\n")
    csv.field_size_limit(131_072)  # where nothing has changed it
    assert len(captions.rows(path, ("video",))[0][1]["caption"]) == 200_000


def test_a_row_without_a_video_is_bad(tmp_path):
    found, bad = captions.read(write(tmp_path / "a.csv", "caption,video\na dog,\na cat, \na cow\n"), CONFIG)
    assert not found and list(bad) == [2, 3, 4]
    assert all("the cell `video` is empty" in reason for reason in bad.values())
