import math

import pytest

from moviegen.data import pieces
from moviegen.data.pieces import Piece
from moviegen.errors import DataError


@pytest.mark.parametrize(
    ("start", "end", "piece", "name"),
    [
        ("3.20", "7.8", Piece("in/a.b.mp4", 3.2, 7.8), "in/a.b#3.2-7.8.mp4"),
        ("", "7", Piece("in/a.b.mp4", 0.0, 7.0), "in/a.b#0-7.mp4"),
        (" 3 ", None, Piece("in/a.b.mp4", 3.0, math.inf), "in/a.b#3-.mp4"),
        ("", "", None, "in/a.b.mp4"),
        (None, None, None, "in/a.b.mp4"),
    ],
)
def test_a_row_names_a_piece(start, end, piece, name):
    row = {"video": "in/a.b.mp4", "start": start, "end": end}
    assert (pieces.of(row), pieces.name(row)) == (piece, name)


@pytest.mark.parametrize(
    ("start", "end"), [("5", "5"), ("-1", "2"), ("nan", "2"), ("a", ""), ("1", "inf"), ("2e6", "")]
)
def test_what_is_no_piece_is_refused(start, end):
    with pytest.raises(DataError, match=f"start is '{start}' and end '{end}', expected seconds"):
        pieces.of({"video": "a.mp4", "start": start, "end": end})
