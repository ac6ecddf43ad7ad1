"""The report of a run whose stages are made up: what it says must be what they noted."""

import base64
import json
import re

import numpy as np
import pytest

from moviegen import config as configs
from moviegen.data import synthetic, video
from moviegen.demo import course, report
from moviegen.evaluation import page
from moviegen.storage import files

TAE = {
    "tae.heldout_psnr": 22.5,
    "tae.heldout_ssim": 0.71,
    "tae.baseline_psnr": 18.0,
    "tae.baseline_ssim": 0.52,
    "tae.linear_psnr": 25.3,
    "tae.linear_ssim": 0.8,
    "tae.synthetic_psnr": 27.0,
    "tae.synthetic_ssim": 0.9,
    "tae.synthetic_baseline_psnr": 19.5,
    "tae.synthetic_baseline_ssim": 0.6,
    "tae.synthetic_linear_psnr": 26.0,
    "tae.synthetic_linear_ssim": 0.85,
    "tae.judged_colour": 1.0,
    "tae.judged_shape": 1.0,
    "tae.judged_direction": 1.0,
}


def finish(workdir, name, metrics, seconds=60.0, memory=2.0):
    done = {"metrics": metrics, "seconds": seconds, "peak_memory_gb": memory, "identity": ""}
    files.write_json(done, workdir / name / "done.json")


@pytest.fixture
def workdir(tmp_path):
    """A finished synthetic run: two samples, the second a green cross where a cyan one was asked for."""
    finish(tmp_path, "tae", TAE, seconds=200.0, memory=3.5)
    finish(tmp_path, "t2i", {"loss": 0.5}, seconds=100.0)
    finish(tmp_path, "t2v", {"loss": 0.4}, seconds=300.0)
    share = {"prompts.colour": 0.5, "prompts.shape": 1.0, "prompts.direction": 1.0, "prompts.samples": 2}
    finish(tmp_path, "sample", share)
    rng = np.random.default_rng(0)
    verdicts = []
    for i, (wanted, seen) in enumerate(
        [(("red", "circle", "left"),) * 2, (("cyan", "cross", "up"), ("green", "cross", "up"))]
    ):
        video.write_mp4(tmp_path / f"sample/samples/{i}.mp4", synthetic.render(seen, rng, 16, 64), 8)
        named = {
            k: dict(zip(("colour", "shape", "direction"), v, strict=True))
            for k, v in (("wanted", wanted), ("seen", seen))
        }
        verdicts.append({"prompt": synthetic.caption(wanted), "file": str(i)} | named)
    (tmp_path / "sample/samples.json").write_text(json.dumps(verdicts))
    wide = np.zeros((16, 128, 536, 3), np.uint8)
    for name in ("carphone", "traffic"):
        video.write_mp4(tmp_path / f"tae/reconstructions/{name}.mp4", wide, 12)
    write_curve(tmp_path / "tae", "tae", {"tae/psnr": [15.0, 20.0]})
    write_curve(tmp_path / "t2i", "t2i", {"t2i/image_loss": [1.5, 0.5], "t2i/heldout_loss": [1.6, 0.6]})
    write_curve(tmp_path / "t2v", "t2v", {"t2v/video_loss": [1.4, 0.4]})
    return tmp_path


def write_curve(folder, stage, curves):
    steps = range(len(next(iter(curves.values()))))
    lines = [{"stage": stage, "step": i + 1, "time": 0} | {key: v[i] for key, v in curves.items()} for i in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def config():
    return configs.load("experiments/tiny.py")


def test_numbers(workdir, config):
    numbers = report.build(config, workdir)
    told = json.loads((workdir / "report.json").read_text())
    assert told["tae"]["heldout_psnr"] == numbers["tae.heldout_psnr"] == 22.5
    assert told["tae"]["synthetic_linear_psnr"] == 26.0
    assert told["prompts"] == {"colour": 0.5, "shape": 1, "direction": 1, "samples": 2}
    assert 660.0 <= told["seconds"] < 690.0  # the stages' together, and the report's own
    assert told["peak_memory_gb"] == 3.5


def test_page_is_whole_and_needs_no_network(workdir, config):
    report.build(config, workdir)
    html = (workdir / "report.html").read_text()
    assert html.count("<video") == 2 + 2
    assert html.count("<svg") == 3
    assert not re.search(r'(src|href)="(?!data:)|https?://|<script|@import', html)
    assert "a cyan cross moves up" in html
    data = re.findall(r'src="data:video/mp4;base64,([^"]+)"', html)
    assert base64.b64decode(data[-2]) == (workdir / "sample/samples/1.mp4").read_bytes()  # sorted by prompt


def rows_of(html):
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)]


def test_targets_are_judged(workdir, config):
    report.build(config, workdir)
    rows = {row[0]: row for row in rows_of((workdir / "report.html").read_text()) if row}
    yes, no = page.mark(True), page.mark(False)
    assert rows["real clip, PSNR"][1:] == ["<b>22.50 dB</b>", "18.00 dB", "25.30 dB", "pooling + 3 dB", yes, no]
    assert rows["synthetic clips, PSNR"][-2:] == [yes, yes]
    assert rows["colour right"][-1] == no and rows["shape right"][-1] == yes
    assert rows["time"][-1] == yes


def test_verdicts_stand_below_the_videos(workdir, config):
    report.build(config, workdir)
    html = (workdir / "report.html").read_text()
    caption = re.search(r"a cyan cross moves up<br>(.*?)</figcaption>", html)[1]
    assert caption == f"{page.mark(False)} green {page.mark(True)} cross {page.mark(True)} up"


def test_clips(workdir, config):
    config = configs.load("experiments/tiny.py:data=clips")
    finish(workdir, "sample", {"clips.matched": 1, "clips.total": 2})
    verdicts = [
        {"prompt": "a bus", "file": "0", "wanted": "bus", "nearest": "bus", "psnr": 21.0, "matched": True},
        {"prompt": "a taxi", "file": "1", "wanted": "taxi", "nearest": "bus", "psnr": 11.0, "matched": False},
    ]
    (workdir / "sample/samples.json").write_text(json.dumps(verdicts))
    for name in ("bus", "taxi"):
        video.write_mp4(workdir / f"sample/originals/{name}.mp4", np.zeros((8, 64, 64, 3), np.uint8), 8)
    report.build(config, workdir)
    assert json.loads((workdir / "report.json").read_text())["clips"] == {"matched": 1, "total": 2}
    html = (workdir / "report.html").read_text()
    assert html.count("<video") == 2 + 4
    assert f"{page.mark(False)} nearest to bus, 11.0 dB" in html


def test_unfinished_stages_are_named(workdir, config):
    (workdir / "t2v/done.json").unlink()
    with pytest.raises(FileNotFoundError, match="t2v"):
        report.build(config, workdir)


def test_texts_are_escaped(workdir, config):
    path = workdir / "sample/samples.json"
    path.write_text(path.read_text().replace("a red circle", "<i>a red circle"))
    report.build(config, workdir)
    assert "&lt;i&gt;a red circle" in (workdir / "report.html").read_text()


def test_nested():
    assert report.nested({"a.b": 1.0, "a.c": 0.5, "d": 2.5}) == {"a": {"b": 1, "c": 0.5}, "d": 2.5}


def test_stages_of_the_report_are_the_demos(config):
    assert set(config.stages) == set(course.STAGES)
