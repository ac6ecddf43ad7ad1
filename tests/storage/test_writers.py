import json

import numpy as np
import pytest

from moviegen.storage import writers
from moviegen.storage.writers import Writer, read_metrics


def test_scalars_are_one_json_line_each(tmp_path):
    writer = Writer(tmp_path, "tae")
    writer.scalars(1, {"loss": 0.5, "lr": np.float32(0.25)})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1  # on disk at once, not at the end
    writer.scalars(2, {"loss": float("nan")})
    writer.close()
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["stage"], first["step"], first["loss"], first["lr"]) == ("tae", 1, 0.5, 0.25)
    assert second["loss"] is None


def test_resume_drops_the_later_steps_of_its_own_stage(tmp_path):
    for name in ("tae", "t2v"):
        writer = Writer(tmp_path, name)
        for step in (1, 2, 3):
            writer.scalars(step, {"loss": step})
        writer.close()
    writer = Writer(tmp_path, "tae", resume_step=1)
    writer.scalars(2, {"loss": 20})
    writer.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path, "tae")] == [(1, 1), (2, 20)]
    assert [line["step"] for line in read_metrics(tmp_path, "t2v")] == [1, 2, 3]


def test_a_torn_last_line_is_healed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "", "step": 1, "loss": 1.0}\n{"stage": "", "st')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    writer = Writer(tmp_path)
    writer.scalars(2, {"loss": 2})
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert read_metrics(tmp_path / "none") == []


def test_opening_a_whole_file_leaves_another_writer_of_it_alone(tmp_path):
    first = Writer(tmp_path, "a")
    first.scalars(1, {"x": 1})
    second = Writer(tmp_path, "b")
    first.scalars(2, {"x": 2})
    second.scalars(1, {"x": 3})
    assert [line["x"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_tensorboard_events_hold_what_was_sent(tmp_path):
    writer = Writer(tmp_path, "tae")
    writer.scalars(7, {"loss": 0.5})
    writer.images(7, {"clip": np.zeros((8, 12, 3), np.uint8)})
    writer.text(7, {"prompt": "a red circle"})
    writer.close()
    (events,) = (tmp_path / "tensorboard" / "tae").glob("events*")
    content = events.read_bytes()
    assert b"loss" in content and b"\x89PNG" in content and b"a red circle" in content


def test_progress_prints_seldom_and_always_the_end(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(writers.time, "monotonic", lambda: now[0])
    writer = Writer(tmp_path)
    for done in range(1, 101):
        writer.progress("tae", done, 100, loss=1 / done)
        now[0] += 0.5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11  # the first, one each 10 steps = 5 s, the last
    assert lines[0] == "tae 1/100  loss 1"
    assert lines[1] == "tae 11/100  loss 0.09091  2.0/s  0:44 left"
    assert lines[-1] == "tae 100/100  loss 0.01  2.0/s  took 0:50"


def test_slow_steps_are_told_in_seconds_each(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(writers.time, "monotonic", lambda: now[0])
    writer = Writer(tmp_path)
    for done in (1, 2):
        writer.progress("big", done, 1000)
        now[0] += 30
    assert capsys.readouterr().out.splitlines()[-1] == "big 2/1000  30.0 s each  8:19:00 left"


@pytest.mark.parametrize("rank", [1, 7])
def test_other_ranks_are_silent(tmp_path, capsys, rank):
    writer = Writer(tmp_path / "run", rank=rank)
    writer.scalars(1, {"loss": 1})
    writer.images(1, {"clip": np.zeros((8, 8, 3), np.uint8)})
    writer.text(1, {"prompt": "x"})
    writer.progress("tae", 1, 1)
    writer.close()
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""
