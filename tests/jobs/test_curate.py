import csv
import json
import re

import pytest

import moviegen
from experiments import common
from moviegen.data import clips, files, scored, scores, video
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import curate
from moviegen.runner import Run
from tests.data.test_cuts import CUTS


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Real clips, one of them again at another size and coding, a picture, and what cannot be read."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("bikes.mp4", "carphone_pristine.mp4"):
        path = next(clip.path for clip in clips.real_clips() if clip.path.name == name)
        (folder / name).write_bytes(path.read_bytes())
    frames, fps = video.read(folder / "carphone_pristine.mp4", size=(120, 160), cover=(120, 161))
    video.write_mp4(folder / "again.mp4", frames, fps)
    video.write_png(folder / "p.png", frames[0, ::-1])
    (folder / "text.mp4").write_text("no video")
    (folder.parent / "none.csv").write_text("")
    return folder


def config(videos, **changed):
    found = common.stage("1b", 2)
    found.data.video_folder = str(videos)
    found.curate.update(dict(min_side=100, seconds=(1.0, 120.0), shown=1) | changed)
    return found


@pytest.fixture(scope="module")
def curated(videos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    table = workdir / "t.csv"
    captioned = [
        "again.mp4,a man",
        'bikes.mp4,"a bus, then a suit"',
        "carphone_pristine.mp4,=man",
        "p.png,up",
        "text.mp4,x",
    ]
    table.write_text("\n".join(["video,caption", *captioned, "bikes.mp4,a street", "gone.mp4,x"]), encoding="utf-8")
    settings = config(videos)
    settings.data.csv = str(table)
    return settings, workdir, curate.run(Run(settings, workdir))


def test_the_table_holds_what_is_kept_in_pieces_with_captions_and_scores(curated, videos):
    settings, workdir, metrics = curated
    assert metrics == {"rows": 6, "bad": 2, "kept": 7}
    found = rows(workdir / "curated.csv")
    assert list(found[0]) == ["video", "caption", "start", "end", *(f"score_{n}" for n in ("seconds", *scored.NUMBERS))]
    assert [(row["video"], row["caption"]) for row in found] == [
        *[("bikes.mp4", caption) for _ in range(5) for caption in ("a bus, then a suit", "a street")],
        ("carphone_pristine.mp4", "=man"),
        ("p.png", "up"),
    ]
    edges = [0, *CUTS["bikes.mp4"]]
    pieces = [file for file in files.listed(str(workdir / "curated.csv"), str(videos)) if file.piece]
    for file, first, last in zip(pieces, edges, edges[1:], strict=False):  # the last shot is too short
        assert video.probe(file.path, file.piece)["frames"] == last - first
    assert found[-1]["score_motion"] == "" and found[-2]["start"] == found[-2]["end"] == ""
    assert float(found[-2]["score_motion"]) > 2


def test_the_funnel_is_printed_and_noted_and_shown(curated, capsys):
    settings, workdir, _ = curated
    curate.run(Run(settings, workdir))
    told = capsys.readouterr().out
    noted = json.loads((workdir / "curate.json").read_text())
    assert set(noted["unreadable"]) == {"text.mp4", "gone.mp4"} and "line 6: " in noted["unreadable"]["text.mp4"]
    funnel = {step["threshold"]: (step["rows"], step["clips"]) for step in noted["funnel"]}
    assert funnel["can be read"] == funnel["border <= 0.02"] == (4, 4)
    assert funnel["split into shots of 1 s or more"] == (4, 8)
    assert funnel["differs from others in > 6 of 64 bits"] == (3, 7)
    assert re.search(r"in the table +6 +100.00%\ncan be read +4 +66.67% +4 ", told)
    page = (workdir / "curate.html").read_text()
    assert page.count("<img ") == 3  # kept, a shot too short, a duplicate
    assert "<b>again.mp4</b>, 160x120" in page and "1 dropped by differs from others" in page


def test_what_is_measured_is_not_measured_again(curated, videos, tmp_path, monkeypatch):
    settings, workdir, _ = curated
    lines = (workdir / "scores.csv").read_text().splitlines(keepends=True)
    bikes = [i for i, line in enumerate(lines) if line.startswith("bikes")]
    assert len(lines) == 1 + 6 + 3
    measured, whole = [], scores.measure
    monkeypatch.setattr(scores, "measure", lambda file, *more: measured.append(file.name) or whole(file, *more))

    def again(text, **changed):
        measured.clear()
        (tmp_path / "scores.csv").write_text(text)
        with settings.unlocked():
            other = settings.copy_and_resolve_references()
        other.curate.update(changed)
        curate.run(Run(other, tmp_path))
        assert (tmp_path / "curated.csv").is_file()
        return sorted(measured)

    assert again("".join(lines)) == again("".join(lines), max_border=0.1, duplicate_bits=4) == []
    assert (tmp_path / "curated.csv").read_text() == (workdir / "curated.csv").read_text()
    killed = lines[: bikes[3]] + [lines[bikes[3]][:40]]  # in the middle of a file, and of a line
    kept = {line.split(",")[0] for line in killed}
    assert again("".join(killed)) == sorted(
        {"again.mp4", "bikes.mp4", "carphone_pristine.mp4", "p.png"} - kept | {"bikes.mp4"}
    )
    assert again("".join(lines).replace("again.mp4,", "again.mp4,1")) == [
        "again.mp4"
    ]  # another size: the file has changed
    assert again("".join(lines), rate=3.0, scores=("border",)) == [
        "again.mp4",
        "bikes.mp4",
        "carphone_pristine.mp4",
        "p.png",
    ]
    assert again("", min_side=140) == ["bikes.mp4", "carphone_pristine.mp4"]  # the header settles the others
    assert again((tmp_path / "scores.csv").read_text()) == ["again.mp4", "p.png"]


def test_a_table_of_pieces_is_curated_as_such(videos, tmp_path):
    (tmp_path / "t.csv").write_text("video,start,end\nbikes.mp4,0.4,2.2\nbikes.mp4,5.6,7.3\nbikes.mp4,9,8\n")
    settings = config(videos, seconds=(0.5, 120.0))
    settings.data.csv = str(tmp_path / "t.csv")
    assert curate.run(Run(settings, tmp_path)) == {"rows": 3, "bad": 1, "kept": 3}
    found = [(row["start"], row["end"]) for row in rows(tmp_path / "curated.csv")]
    assert found == [("0.4", "1.18"), ("1.18", "2.2"), ("5.6", "7.3")]


def test_a_bare_folder_and_a_threshold_that_leaves_nothing(videos, tmp_path):
    settings = config(videos, min_side=2000)
    with pytest.raises(DataError, match=r"nothing is left after size: curate.min_side is 2000; .*curate.html shows"):
        curate.run(Run(settings, tmp_path))
    assert (tmp_path / "curate.html").is_file() and not (tmp_path / "curated.csv").exists()
    settings = config(videos, cuts="drop", scores=("cuts",))
    assert curate.run(Run(settings, tmp_path))["kept"] == 3
    assert [row["video"] for row in rows(tmp_path / "curated.csv")] == ["again.mp4", "carphone_pristine.mp4", "p.png"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(scores=("blur",)), "curate.scores is \\('blur',\\), expected a tuple .*'sharpness'"),
        (dict(seconds=(5.0, 4.0)), "curate.seconds is .*the first at most the second"),
        (dict(cuts="keep"), "curate.cuts is 'keep', expected one of 'split', 'drop'"),
        (dict(duplicate_bits=11), "curate.duplicate_bits is 11, expected a whole number from 0 to 10"),
    ],
)
def test_wrong_settings_are_refused(videos, tmp_path, changed, words):
    with pytest.raises(ConfigError, match=words):
        moviegen.run(config(videos, **changed), "curate", tmp_path)
