import pytest
from ml_collections import ConfigDict

from moviegen.data import clips, rates
from moviegen.errors import DataError
from moviegen.text import prompts


@pytest.mark.parametrize(
    ("text", "rate"),
    [(None, 0), ("", 0), (" ", 0), ("24", 24), (" 23.976 ", 23.976), ("30000/1001", 30000 / 1001), ("0.5", 0.5)],
)
def test_rates_as_people_write_them(text, rate):
    assert rates.parse(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["nan", "-24", "inf", "-inf", "0", "fast", "1/0", "24/x", "24/nan", "1e9", "2/1/3"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(DataError, match=f"fps is '{text}', expected a number above 0"):
        rates.parse(text)


CARPHONE = next(clip.path for clip in clips.real_clips() if "carphone" in clip.path.name)  # 29.97 frames a second


def test_the_rate_that_is_shown_is_the_one_that_is_told():
    data = ConfigDict(dict(fps=0.0, video_folder=str(CARPHONE.parent)))
    row = {"video": CARPHONE.name, "fps": ""}
    assert rates.of(row, data, {}) == pytest.approx(30000 / 1001)
    assert prompts.prepare("a man", rates.of(row, data, {}))["ul2"] == "FPS-30 a man"
    assert rates.of(row | {"fps": "30000/1001"}, data, {}) == pytest.approx(30000 / 1001)
    data.fps = 16.0
    assert rates.of(row, data, {}) == 16 and rates.of(row | {"fps": "24"}, data, {}) == 24
    assert rates.of(row | {"video": "gone.mp4"}, data, {"gone.mp4": 12.5}) == 12.5  # no file is needed
    assert rates.of({"video": CARPHONE.name}, data, {}) == 16  # a csv without the column


def test_a_csv_that_contradicts_the_latents_is_refused():
    data, row = ConfigDict(dict(fps=0.0, video_folder="")), {"video": "a.mp4", "fps": "24"}
    assert rates.of(row, data, {"a.mp4": 24000 / 1001}) == 24000 / 1001
    with pytest.raises(DataError, match="fps is 24, but its latents are shown at 30: encode them anew"):
        rates.of(row, data, {"a.mp4": 30.0})


def test_a_rate_that_nobody_knows(tmp_path):
    data, row = ConfigDict(dict(fps=0.0, video_folder="")), {"video": "a.mp4", "fps": ""}
    with pytest.raises(DataError, match="its frame rate is not known: set data.fps"):
        rates.of(row, data, {})
    data.video_folder = str(tmp_path)
    with pytest.raises(DataError, match="a.mp4"):
        rates.of(row, data, {})
    with pytest.raises(DataError, match="leads out of"):
        rates.of(row | {"video": "../a.mp4"}, data, {})
