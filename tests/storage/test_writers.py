import errno
import importlib
import importlib.util
import inspect
import json
import sys
import types

import numpy as np
import pytest

from moviegen.storage import writers
from moviegen.storage.writers import Progress, Writer, read_metrics


@pytest.fixture
def metric_writers(monkeypatch):
    """clu's metric writers without the package's own __init__, which wants TensorFlow."""
    (folder,) = importlib.util.find_spec("clu").submodule_search_locations
    package = types.ModuleType("clu.metric_writers")
    package.__path__ = [f"{folder}/metric_writers"]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    for name in ("interface", "logging_writer", "multi_writer"):
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
        setattr(package, name, importlib.import_module(f"{package.__name__}.{name}"))
    yield package
    for name in ("interface", "logging_writer", "multi_writer"):
        del sys.modules[f"{package.__name__}.{name}"]


def send_everything(writer):
    writer.write_hparams({"seed": 3, "optim.betas": (0.9, 0.95)})
    writer.write_scalars(7, {"loss": np.float32(0.5), "bad": float("nan")})
    writer.write_images(7, {"clip": np.zeros((8, 12, 3), np.uint8), "clips": np.zeros((2, 8, 12, 3), np.uint8)})
    writer.write_videos(7, {"one": np.zeros((3, 8, 12, 3), np.uint8), "two": np.zeros((2, 3, 8, 12, 3), np.uint8)})
    writer.write_texts(7, {"prompt": "a red circle"})
    writer.close()


def test_methods_and_arguments_are_those_of_clu(metric_writers):
    theirs = metric_writers.interface.MetricWriter
    ours = [name for name in vars(Writer) if not name.startswith("_")]
    assert ours == [
        *(f"write_{what}" for what in ("scalars", "images", "videos", "texts", "hparams")),
        "flush",
        "close",
    ]
    for name in ours:
        parameters = [list(inspect.signature(getattr(of, name)).parameters) for of in (Writer, theirs)]
        assert parameters[0] == parameters[1], name


def test_a_writer_of_clu_gets_all_that_ours_gets(metric_writers, tmp_path, caplog):
    logging_writer = metric_writers.logging_writer.LoggingWriter("run")
    with caplog.at_level("INFO", logger="absl"):
        send_everything(Writer(tmp_path, "tae", also=metric_writers.multi_writer.MultiWriter([logging_writer])))
    lines = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert lines == [
        "[Hyperparameters] collection=run {'seed': 3, 'optim.betas': (0.9, 0.95)}",
        "[7] collection=run bad=nan, loss=0.5",
        "[7] collection=run Got images: {'clip': (8, 12, 3), 'clips': (2, 8, 12, 3)}.",
        "[7] collection=run Got videos: {'one': (3, 8, 12, 3), 'two': (2, 3, 8, 12, 3)}.",
        "[7] collection=run Got texts: {'prompt': 'a red circle'}.",
    ]
    assert [line["loss"] for line in read_metrics(tmp_path)] == [0.5]


def test_the_other_writer_is_flushed_and_stays_open(tmp_path):
    other = Recorder()
    send_everything(Writer(tmp_path, also=other))
    assert [name for name, *_ in other.calls][-2:] == ["write_texts", "flush"]


class Recorder:
    """Notes what is called on it."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args: self.calls.append((name, *args))


def test_scalars_are_one_json_line_each(tmp_path):
    writer = Writer(tmp_path, "tae")
    writer.write_scalars(1, {"loss": 0.5, "lr": np.float32(0.25)})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1  # on disk at once, not at the end
    writer.write_scalars(2, {"loss": float("nan")})
    writer.close()
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["stage"], first["step"], first["loss"], first["lr"]) == ("tae", 1, 0.5, 0.25)
    assert second["loss"] is None


def test_resume_drops_the_later_steps_of_its_own_stage(tmp_path):
    for name in ("tae", "t2v"):
        writer = Writer(tmp_path, name)
        for step in (1, 2, 3):
            writer.write_scalars(step, {"loss": step})
        writer.close()
    writer = Writer(tmp_path, "tae", resume_step=1)
    writer.write_scalars(2, {"loss": 20})
    writer.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path, "tae")] == [(1, 1), (2, 20)]
    assert [line["step"] for line in read_metrics(tmp_path, "t2v")] == [1, 2, 3]


def test_a_torn_last_line_is_healed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "", "step": 1, "loss": 1.0}\n{"stage": "", "st')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    writer = Writer(tmp_path)
    writer.write_scalars(2, {"loss": 2})
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert read_metrics(tmp_path / "none") == []


@pytest.mark.parametrize("damage", [bytes(40), b"\xff\xfe", b"[1]", b'{"loss": 1}', b"[" * 200_000])
def test_a_damaged_line_is_dropped_and_told(tmp_path, capsys, damage):
    line = b'{"stage": "tae", "step": %d, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(line % 1 + damage + b"\n" + line % 2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    Writer(tmp_path, "tae", resume_step=2).close()
    assert capsys.readouterr().out == f"{tmp_path}/metrics.jsonl: 1 damaged lines dropped\n"
    assert (tmp_path / "metrics.jsonl").read_bytes() == line % 1 + line % 2


def test_a_full_disk_does_not_block_the_run(tmp_path, monkeypatch):
    """Far more events than tensorboardX's queue takes: its thread would have died, and the run waited for it."""
    writer = Writer(tmp_path)

    def full(event):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer._events, "add_event", full)
    for _ in range(30):
        with pytest.raises(OSError) as error:
            writer.write_scalars(1, {"loss": 1})
    assert error.value.filename == f"{tmp_path}/metrics.jsonl"


def test_opening_a_whole_file_leaves_another_writer_of_it_alone(tmp_path):
    first = Writer(tmp_path, "a")
    first.write_scalars(1, {"x": 1})
    second = Writer(tmp_path, "b")
    first.write_scalars(2, {"x": 2})
    second.write_scalars(1, {"x": 3})
    assert [line["x"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_tensorboard_events_hold_what_was_sent(tmp_path):
    send_everything(Writer(tmp_path, "tae"))
    (events,) = (tmp_path / "tensorboard" / "tae").glob("events*")
    content = events.read_bytes()
    assert b"loss" in content and b"\x89PNG" in content and b"a red circle" in content
    assert content.count(b"GIF89a") == 2 and b"seed = 3\n" in content


@pytest.mark.parametrize("rank", [1, 7])
def test_other_ranks_are_silent(tmp_path, capsys, rank):
    other = Recorder()
    writer = Writer(tmp_path / "run", rank=rank, also=other)
    writer.write_scalars(1, {"loss": 1})
    writer.write_images(1, {"clip": np.zeros((8, 8, 3), np.uint8)})
    writer.write_texts(1, {"prompt": "x"})
    writer.write_videos(1, {"v": np.zeros((2, 8, 8, 3), np.uint8)})
    writer.write_hparams({"seed": 1})
    writer.flush()
    writer.close()
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == "" and other.calls == []


def test_progress_prints_seldom_and_always_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(writers.time, "monotonic", lambda: now[0])
    told = Progress("tae", 100)
    for done in range(1, 101):
        told.update(done, loss=1 / done)
        now[0] += 0.5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11  # the first, one each 10 steps = 5 s, the last
    assert lines[0] == "tae 1/100  loss 1"
    assert lines[1] == "tae 11/100  loss 0.09091  2.0/s  0:44 left"
    assert lines[-1] == "tae 100/100  loss 0.01  2.0/s  took 0:50"


def test_slow_steps_are_told_in_seconds_each(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(writers.time, "monotonic", lambda: now[0])
    told = Progress("big", 1000)
    for done in (1, 2):
        told.update(done)
        now[0] += 30
    assert capsys.readouterr().out.splitlines()[-1] == "big 2/1000  30.0 s each  8:19:00 left"


@pytest.mark.parametrize("rank", [1, 7])
def test_progress_of_other_ranks_prints_nothing(capsys, rank):
    Progress("tae", 1, rank).update(1)
    assert capsys.readouterr().out == ""
