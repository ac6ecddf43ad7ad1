from types import SimpleNamespace

import numpy as np
import pytest

from moviegen.errors import ConfigError
from moviegen.evaluation import features

FRAMES = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)


@pytest.fixture
def named(tmp_path):
    """A config with a function of a user's file."""
    (tmp_path / "mine.py").write_text(
        "def corner(config):\n    return lambda frames: frames[:, 0, 0, : config.wide]\n"
        "def whole(config):\n    return lambda frames: frames\n"
    )

    def config(function):
        return SimpleNamespace(wide=2, evaluate=SimpleNamespace(features=f"{tmp_path}/mine.py:{function}"))

    return config


def test_a_function_of_a_file_gets_the_config(named):
    found = features.extractor(named("corner"), None)(FRAMES)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, FRAMES[:, 0, 0, :2])


def test_features_of_a_wrong_shape_are_named(named):
    with pytest.raises(ConfigError, match=r"whole': its function gave an array of shape \(5, 4, 4, 3\), expected"):
        features.extractor(named("whole"), None)(FRAMES)


def test_no_name_is_no_extractor():
    assert features.extractor(SimpleNamespace(evaluate=SimpleNamespace(features="")), None) is None
