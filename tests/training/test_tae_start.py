import numpy as np

from experiments import common, tae
from moviegen.data import crops
from moviegen.models.tae import linear_start, shapes
from moviegen.parallel.mesh import ALONE
from moviegen.storage import safetensors_io
from moviegen.training import tae_start


def settings(**train):
    config = tae.get_config(tiny=True)
    config.tae = common.tae("tiny", base_channels=4, channel_multipliers=(1, 1, 1, 1), norm_groups=4)
    config.data.update(num_frames=8, height=16, width=24)
    config.train.update(init_from="", linear_start=0)
    config.train.update(train)
    return config


def weights(config):
    return tae_start.weights(config, crops.source(config.data), ALONE)


def test_training_begins_with_random_weights_where_nothing_is_asked_for():
    assert weights(settings()) == {}


def test_weights_of_a_file_come_before_fitted_ones(tmp_path):
    arrays = {path: np.full(shape, 0.5, np.float32) for path, shape in shapes.shapes(settings().tae).items()}
    path = safetensors_io.write(arrays, tmp_path / "tae.safetensors")
    found = weights(settings(init_from=str(path), linear_start=2))
    assert found.keys() == arrays.keys() and all((value.asnumpy() == 0.5).all() for value in found.values())


def test_the_linear_start_is_fitted_to_clips_of_four_times_the_size(monkeypatch):
    monkeypatch.setattr(linear_start, "init", lambda cfg, clips, seed: clips)
    first, second = weights(settings(linear_start=2))
    assert first.shape == second.shape and set(first.shape) == {3, 8, 32, 48}
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, weights(settings(linear_start=1))[0])
