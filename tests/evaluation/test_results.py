"""The files of a made-up evaluation."""

import csv
import json

import numpy as np
import pytest

from moviegen.data import video
from moviegen.evaluation import results
from moviegen.evaluation.comparison import RECONSTRUCTIONS


@pytest.fixture
def summary(tmp_path):
    rows = [
        {"clip": f"<{name}>", "frames": 1, "fps": 0.0, "psnr": psnr, "ssim": 0.5, "file": f"{name}.png"}
        for name, psnr in (("good", 30.0), ("bad", 10.0), ("fair", 20.0))
    ]
    for row in rows:
        video.write_png(tmp_path / RECONSTRUCTIONS / row["file"], np.zeros((8, 16, 3), np.uint8))
    mean = {"clips": 3, "bad": 1, "psnr": 20.0, "ssim": 0.5}
    return {"of": {"frames": 1, "fps": 0.0}, "mean": mean, "clips": rows, "bad": ["gone.mp4: no such file"]}


def test_the_table_ends_with_the_mean(summary, tmp_path):
    results.write(tmp_path, summary)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == summary
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open()))
    assert [(row["clip"], row["psnr"]) for row in rows[-2:]] == [("<fair>", "20.0"), ("mean", "20.0")]
    assert list(rows[0]) == ["clip", "frames", "fps", "psnr", "ssim", "file"]


def test_the_page_begins_with_the_worst(summary, tmp_path):
    results.write(tmp_path, summary)
    text = (tmp_path / "worst.html").read_text()
    places = [text.index(f"<b>&lt;{name}&gt;</b>") for name in ("bad", "fair", "good")]
    assert places == sorted(places) and text.count("<img") == 3


def test_a_frechet_distance_stands_with_what_it_is_of(summary, tmp_path):
    summary["frechet"] = {"value": 1.5, "of": "features mine (2)"}
    summary["mean"]["frechet"] = 1.5
    results.write(tmp_path, summary)
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open()))
    assert (rows[-1]["frechet"], rows[-1]["frechet_of"], rows[0]["frechet"]) == ("1.5", "features mine (2)", "")
    assert "Fréchet distance 1.5: features mine (2)" in (tmp_path / "worst.html").read_text()


def test_no_cell_of_the_table_is_a_formula(summary, tmp_path):
    clips = ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "a=b"]
    summary["clips"] = [summary["clips"][0] | {"clip": clip, "psnr": -1.0} for clip in clips]
    results.write(tmp_path, summary)
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open(newline="")))
    assert [row["clip"] for row in rows] == [*(f"'{clip}" for clip in clips[:-1]), "a=b", "mean"]
    assert {row["psnr"] for row in rows[:-1]} == {"-1.0"}
