import csv
import json

import numpy as np
import pytest

import moviegen
from experiments import common
from moviegen.data import doctor, latent_cache, metadata, video
from moviegen.data.fit import Metadata
from moviegen.errors import ConfigError, DataError
from moviegen.text import prompts, store

WIDE = Metadata(200, 20.0, 36, 54, 10.0)  # for 32 frames of 32x48, at 16 a second
# name -> what the csv of metadata says of it, content; none of these is a video, so whoever opens one fails
FILES = {
    "a.mp4": (WIDE, b"the one"),
    "again.mp4": (WIDE, b"the one"),
    "like.mp4": (WIDE, b"another"),  # of as many bytes
    "held.mp4": (WIDE._replace(frames=199), b"held out"),
    "copy.mp4": (WIDE._replace(frames=199), b"held out"),
    "short.mp4": (WIDE._replace(frames=9, seconds=0.45), b"short"),
    "small.mp4": (WIDE._replace(height=18, width=27), b"small"),
    "one.png": (Metadata(1, 0.0, 60, 60, 0.0), b"picture"),
    "broken.mp4": (None, b"broken"),
    "mute.mp4": (WIDE, b"mute"),
    "raw.mp4": (WIDE, b"not encoded"),
    "square.mp4": (WIDE, b"of other latents"),
}
ROWS = [(name, name) for name in FILES] + [
    ("a.mp4", "a.mp4"),
    ("a.mp4", 'said "IN" other words'),
    ("like.mp4", "  "),
    ("gone.mp4", "x"),
    ("../a.mp4", "x"),
    ("", "x"),
]


@pytest.fixture
def config(tmp_path):
    config = common.shrink(common.stage("1b", 2, in_buckets=True))
    folder, cached = tmp_path / "videos", tmp_path / "latents"
    folder.mkdir()
    known = metadata.Table(str(tmp_path / "metadata.csv"))
    for name, (meta, content) in FILES.items():
        (folder / name).write_bytes(content)
        stat = (folder / name).stat()
        if meta:
            known.append([(name, metadata.Row(stat.st_size, stat.st_mtime_ns, meta))])
    for file, rows in (("train.csv", ROWS), ("held.csv", [("held.mp4", "held.mp4"), ("one.png", "one.png")])):
        with open(tmp_path / file, "w", newline="") as out:
            csv.writer(out).writerows([("video", "caption"), *rows])
    writer = latent_cache.ShardWriter(cached, "float32", 0)
    for name, (meta, _) in FILES.items():
        if meta and name != "raw.mp4":
            shape = {"one.png": (16, 1, 4, 4), "square.mp4": (16, 4, 5, 5)}.get(name, (16, 4, 4, 6))
            writer.add(name, np.zeros(shape, np.float32), np.ones(shape, np.float32), "video")
    writer.flush()
    texts = [
        prompts.prepare(caption, 0 if name == "one.png" else 16, "", name == "one.png")["ul2"]
        for name, caption in [*ROWS, ("one.png", "one.png")]
        if name != "mute.mp4"
    ]
    store.check_or_write(tmp_path / "ul2", {"made": "up"}, "ul2")
    texts = list(dict.fromkeys(["", *texts]))
    store.write_shard(tmp_path / "ul2", texts, [[1]] * len(texts), [np.zeros((1, 64), np.float32)] * len(texts))
    config.data.update(source="csv", csv=str(tmp_path / "train.csv"), validation_csv=str(tmp_path / "held.csv"))
    config.data.update(video_folder=str(folder), metadata=known.path, latent_folder=str(cached))
    config.data.text_folders.ul2 = str(tmp_path / "ul2")
    config.text.budgets.byt5 = 2
    return config


def found(workdir):
    return json.loads((workdir / "check_data.json").read_text())


def test_every_row_is_taken_or_lost_for_its_reason(config, tmp_path, capsys):
    metrics = moviegen.run(config, "check_data", tmp_path / "run")
    noted = found(tmp_path / "run")
    own = noted["training"]
    lost = {reason: what["rows"] for reason, what in own["lost"].items()}
    alone = ("duplicate row", "missing", "unreadable", "too short", "too small", "no caption", "no embedding")
    assert lost == {"bad row": 2, "no latents": 1, "other latents": 1} | dict.fromkeys(alone, 1)
    assert {reason: what["rows"] for reason, what in own["doubtful"].items()} == {
        "duplicate content": 1,  # again.mp4, and not like.mp4
        "in the validation table": 3,  # held.mp4 and one.png by name, copy.mp4 by content
    }
    assert metrics == {"rows": 18, "taken": 7, "lost": 11, "doubtful": 4}
    filled = {each["bucket"]: each for each in own["buckets"] if each["rows"]}
    assert {name: each["rows"] for name, each in filled.items()} == {"32x32x48": 6, "1x32x32": 1}
    video = filled["32x32x48"]
    assert (video["batch"], video["batches_an_epoch"], video["seconds"], video["seconds_cut"]) == (2, 3, 60.0, 48.0)
    assert video["mend"] == "" and "1 more row, or data.buckets.batch_sizes=('1x32x32=1',)" in filled["1x32x32"]["mend"]
    assert own["captions"]["ul2"] == {"unit": "words", "median": 2, "p95": 4, "most": 5, "budget": None, "cut": None}
    assert own["captions"]["byt5"] == {"unit": "tokens", "median": 1, "p95": 2, "most": 3, "budget": 2, "cut": 1}
    assert len(own["worst"]) == 6 and own["worst"][0]["why"] == "80% of its seconds are cut away"
    assert noted["validation"]["taken"] == 2
    said = capsys.readouterr().out
    assert "check_data: training: 7 of 18 rows can be used" in said and "buckets without a row: 32x32x32, " in said
    assert "38.9% of the rows are bad" in said
    with open(tmp_path / "run/lost.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 and {row["reason"] for row in rows} == lost.keys()
    page = (tmp_path / "run/check_data.html").read_text()
    assert page.count("said &quot;IN&quot; other words") == 2 and "32x32x48: 6 of 6 rows" in page


def test_what_is_not_there_is_no_reason(config, tmp_path):
    """Neither caches that are not filled yet, nor files where no folder is named, nor captions of a bare folder."""
    config.data.update(validation_csv="", latent_folder=str(tmp_path / "later"), max_bad_fraction=1.0)
    config.data.text_folders.ul2 = ""
    moviegen.run(config, "check_data", tmp_path / "run")
    noted = found(tmp_path / "run")
    assert not {"no latents", "other latents", "no embedding"} & noted["training"]["lost"].keys()
    assert noted["notes"] == [
        f"data.latent_folder: there are no latents yet in {tmp_path / 'later'} (--job=encode_video)"
    ]
    config.data.update(latent_folder="", video_folder="", metadata="")
    assert moviegen.run(config, "check_data", tmp_path / "csv")["taken"] == 15
    config.data.update(csv="", video_folder=str(tmp_path / "videos"))
    config.data.metadata = str(tmp_path / "metadata.csv")
    assert moviegen.run(config, "check_data", tmp_path / "folder")["taken"] == 9


def test_nothing_left_is_an_error_once_all_is_written(config, tmp_path):
    (tmp_path / "train.csv").write_text("video,caption\ngone.mp4,x\nshort.mp4,short.mp4\n")
    with pytest.raises(
        DataError, match="nothing is left to train on, of 2 rows: 1 missing, 1 too short: .*line 2: .*gone"
    ):
        moviegen.run(config, "check_data", tmp_path / "run")
    assert found(tmp_path / "run")["training"]["taken"] == 0 and (tmp_path / "run/check_data.html").is_file()
    (tmp_path / "train.csv").write_text("video,caption\n")
    with pytest.raises(DataError, match="train.csv: no rows, only a header"):
        moviegen.run(config, "check_data", tmp_path / "run")
    config.data.video_folder = "videoz"
    with pytest.raises(ConfigError, match="data.video_folder is 'videoz', which is not a folder"):
        moviegen.run(config, "check_data", tmp_path / "run")


def test_a_run_that_was_stopped_goes_on_and_opens_nothing_twice(config, tmp_path, monkeypatch):
    names = [f"{i:03d}.mp4" for i in range(40)]
    for name in names:
        (tmp_path / "videos" / name).write_bytes(name.encode())
    (tmp_path / "train.csv").write_text("video\n" + "".join(f"{name}\n" for name in names))
    config.data.update(validation_csv="", latent_folder="", metadata="")
    config.data.text_folders.ul2 = ""
    opened, most = [], 20

    def probe(path, piece=None):
        if len(opened) == most:
            raise KeyboardInterrupt
        opened.append(path.name)
        return WIDE._asdict()

    monkeypatch.setattr(video, "probe", probe)
    monkeypatch.setattr(doctor, "_CHUNK", 8)
    with pytest.raises(KeyboardInterrupt):
        moviegen.run(config, "check_data", tmp_path / "run")
    done, most = len(metadata.Table(str(tmp_path / "run/metadata.csv"))), 100
    assert done >= 16 and not (tmp_path / "run/lost.csv").exists()
    for _ in range(2):
        assert moviegen.run(config, "check_data", tmp_path / "run")["taken"] == 40
        assert len(set(opened)) == 40 and len(opened) <= 20 + 40 - done
