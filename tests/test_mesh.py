import pytest

from moviegen import mesh
from moviegen.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "ranks", "data"), [(None, 1, 1), ("", 4, 4), ("data=2", 2, 2), ("sp=1,zero=1, data=3", 3, 3)]
)
def test_parse(text, ranks, data):
    assert mesh.parse(text, ranks) == {"data": data, "zero": 1, "sp": 1}


@pytest.mark.parametrize(
    ("text", "ranks", "words"),
    [
        ("data=2", 1, "2 ranks.*--workers=2"),
        ("data=1", 4, "has 1 ranks.*are 4"),
        ("tensor=2", 2, "tensor=2"),
        ("data=two", 2, "data=two"),
        ("data=0", 1, "data=0"),
        ("data", 1, "'data'"),
        ("zero=2", 2, "zero must be 1"),
        ("data=1,zero=1,sp=8", 8, "sp must be 1"),
    ],
)
def test_parse_refuses(text, ranks, words):
    with pytest.raises(ConfigError, match=words):
        mesh.parse(text, ranks)
