"""Pieces of the report's page: what they contain, and that text cannot become markup."""

import base64
import re

import pytest

from moviegen.evaluation import page


def test_chart_puts_points_where_they_belong():
    """A log axis: 1, 10 and 100 are equally far apart; the ends of x reach the ends of the plot."""
    svg = page.chart("title", {"line": [(0, 1.0), (50, 10.0), (100, 100.0)]}, log=True)
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1) and x2 > x0
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y2 < y0
    assert [float(t) for t in re.findall(r'text-anchor="end">([\d.e+]+)</text>', svg)] == [1, 2, 5, 10, 20, 50, 100]


@pytest.mark.parametrize(("low", "high"), [(14.2, 22.9), (0.0, 1.0), (3.0, 3.0)])
def test_linear_ticks_lie_inside(low, high):
    ticks = page._ticks(low, high, log=False)
    assert all(low <= tick <= high for tick in ticks)
    assert len(ticks) >= (2 if high > low else 1)


def test_a_chart_without_points_says_so():
    assert "no points" in page.chart("loss", {}, log=True)


def test_a_flat_line_and_a_single_point_have_a_place():
    assert "nan" not in page.chart("flat", {"a": [(0, 2.0), (1, 2.0)], "b": [(1, 2.0)]}, log=False)


def test_titles_are_escaped():
    for made in (page.document("<b>", []), page.section("<b>", ""), page.chart("<b>", {"<b>": [(0, 1.0)]}, log=False)):
        assert "&lt;b&gt;" in made


def test_videos_are_inside_the_page(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"moving")
    assert f"base64,{base64.b64encode(b'moving').decode()}" in page.video(path)


def test_table():
    assert page.table(["a", "b"], [["1", "2"]]).count("<td>") == 2


def test_a_bar_is_as_long_as_its_parts_and_marks_the_limit():
    """3 and 1 of a limit of 8: three eighths, one eighth beside it, and the mark at the end."""
    svg = page.bar("memory", {"weights": 3.0, "<b>": 1.0}, "GB", limit=8.0)
    (x0, w0), (x1, w1) = ((float(x), float(w)) for x, w in re.findall(r'rect x="([\d.]+)" y="6" width="([\d.]+)"', svg))
    assert (x0, w0, x1, w1) == (10, pytest.approx(700 * 3 / 8), pytest.approx(10 + w0, abs=0.1), pytest.approx(700 / 8))
    assert 'x1="710.0"' in svg and "weights 3 GB" in svg and "&lt;b&gt;" in svg
    assert "nan" not in page.bar("nothing", {"weights": 0.0}, "GB")
