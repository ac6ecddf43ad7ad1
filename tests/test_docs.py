"""The Python in the documentation runs."""

import re
from pathlib import Path

import numpy as np

from moviegen.data import video

ROOT = Path(__file__).parents[1]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL)


def test_the_autoencoder_from_python(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    video.write_mp4(tmp_path / "clip.mp4", rng.integers(0, 255, (20, 9, 12, 3), np.uint8).repeat(8, 1).repeat(8, 2), 8)
    (tmp_path / "moviegen").symlink_to(ROOT / "moviegen")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks("tae.md"):
        exec(block, names)  # noqa: S102
    for made in ("made.mp4", "long.mp4"):
        frames, fps = video.read(tmp_path / made)
        assert frames.shape == (16, 64, 64, 3) and fps == 8
    image, _ = names["video"].read("clip.mp4", num_frames=1, size=(64, 64))
    mean, _ = names["tae"].encode(names["params"], names["cfg"], names["video"].to_model(image)[None])
    assert mean.shape == (1, 16, 1, 8, 8)
    assert names["tae"].decode(names["params"], names["cfg"], mean, num_frames=1).shape == (1, 3, 1, 64, 64)


def test_the_extractor_of_the_evaluation_page():
    names: dict = {}
    for block in blocks("evaluate.md"):
        exec(block, names)  # noqa: S102
    assert names["brightness"](None)(np.zeros((5, 8, 8, 3), np.uint8)).shape == (5, 3)
