import pytest
from ml_collections import ConfigDict

from moviegen.errors import ConfigError
from moviegen.models.text import shapes


@pytest.mark.parametrize("kind", [shapes.t5, shapes.clip])
def test_an_unknown_activation_is_named(kind):
    with pytest.raises(ConfigError, match="activation is 'relu'"):
        kind(ConfigDict(dict(activation="relu")))


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="num_heads is 3, which does not divide width 8"):
        shapes.clip(ConfigDict(dict(activation="gelu", width=8, num_heads=3)))
