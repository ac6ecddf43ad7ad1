import pytest

from moviegen.data import rows
from moviegen.errors import DataError


def test_rows_have_the_number_of_their_last_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffvideo,caption\na.mp4,"two\nlines"\nb.mp4\n', encoding="utf-8")
    found = [{"video": "a.mp4", "caption": "two\nlines"}, {"video": "b.mp4", "caption": None}]
    assert rows.read(str(path), ("video",)) == list(zip((3, 4), found, strict=True))


def test_a_missing_file_or_column_is_named(tmp_path):
    with pytest.raises(
        DataError, match="text.prompts is 'gone.csv', which does not exist: name a csv file with video,x"
    ):
        rows.read("gone.csv", ("video", "x"), "text.prompts")
    (tmp_path / "a.csv").write_text("video\n")
    with pytest.raises(DataError, match="a.csv, line 1: no column `x` among"):
        rows.read(str(tmp_path / "a.csv"), ("video", "x"))


def test_bad_rows_up_to_a_share_are_listed_and_more_refused(capsys):
    rows.refuse_too_many_bad("a.csv", 2, ["line 3: gone"], 0.4, "rows")
    assert "a.csv: 1 of 3 rows cannot be used:\n  line 3: gone" in capsys.readouterr().out
    with pytest.raises(
        DataError, match="1 bad rows and 2 good ones, data.max_bad_fraction is 0.3: first bad one, line 3"
    ):
        rows.refuse_too_many_bad("a.csv", 2, ["line 3: gone"], 0.3, "rows", tell=False)
    assert not capsys.readouterr().out
    with pytest.raises(DataError, match="the table is empty"):
        rows.refuse_too_many_bad("a.csv", 0, [], 1.0, "rows")
