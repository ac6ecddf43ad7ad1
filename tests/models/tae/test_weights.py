import mindspore as ms
import numpy as np
import pytest

from experiments import common
from moviegen.data import clips
from moviegen.errors import ConfigError, DataError
from moviegen.models.tae import shapes, tiles, weights
from moviegen.storage import checkpoint, safetensors_io

CFG = common.tae("tiny")


def test_shipped_weights_are_found_by_their_name():
    path = weights.find("package:tiny_tae", "data.tae_weights")
    assert path.name == "tiny_tae.safetensors" and weights.load(path, CFG)


def test_weights_are_moved_to_the_card_once(card):
    found = weights.load(weights.find("package:tiny_tae", ""), CFG)
    assert sorted(map(id, card)) == sorted(map(id, found.values()))


@pytest.mark.parametrize("name", ["", "nowhere.safetensors", "package:nothing"])
def test_a_name_of_nothing_names_the_key(name):
    with pytest.raises(ConfigError, match=f"evaluate.weights is '{name}'"):
        weights.find(name, "evaluate.weights")


def test_a_checkpoint_gives_its_ema_without_the_discriminator(tmp_path):
    whole = safetensors_io.read(weights.find("package:tiny_tae", ""))
    other = {"discriminator/0/spatial/w": np.zeros((2, 3, 3, 3), np.float32)}
    trees = {"ema": whole | other, "params": {name: array + 1 for name, array in whole.items()}}
    checkpoint.save(tmp_path / "checkpoints", 3, trees, {})
    found = weights.load(tmp_path / "checkpoints", CFG)
    assert found.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name].asnumpy(), array.astype(np.float32))


@pytest.mark.slow  # 30 s; jobs/test_rehearsal.py runs the jobs that load them so
def test_weights_to_compute_with_are_in_the_dtypes_of_that_and_code_as_well(tmp_path):
    path, rehearsed = weights.find("package:tiny_tae", ""), common.tae("tiny", compute_dtype="float16")
    params, exact = weights.load_to_compute(path, rehearsed), weights.load_to_compute(path, CFG)
    assert {name: value.dtype for name, value in params.items()} == {
        name: getattr(ms, kind) for name, kind in shapes.parameter_dtypes(rehearsed).items()
    }
    video = np.stack([clips.heldout_clip(size=(16, 16))[:9]]).astype(np.float32).transpose(0, 4, 1, 2, 3) / 127.5 - 1
    (mean, logvar), (true_mean, true_logvar) = tiles.encode(params, rehearsed, video), tiles.encode(exact, CFG, video)
    assert mean.dtype == logvar.dtype == np.float32
    assert 0 < abs(mean - true_mean).max() < 1e-2 * abs(true_mean).max()
    assert abs(logvar - true_logvar).max() < 0.1
    made, truth = tiles.decode(params, rehearsed, true_mean, 9), tiles.decode(exact, CFG, true_mean, 9)
    assert made.dtype == np.float32 and 0 < abs(made - truth).max() < 2e-2
    with pytest.raises(ConfigError, match="tae.compute_dtype is 'bfloat16', which MindSpore's CPU"):
        weights.load_to_compute(path, common.tae("tiny", compute_dtype="bfloat16"))


STATISTICS = {"latent_shift": [0.5, -1, 0.0], "latent_scale": [1.5, 2, 1e-3], "step": 3}


def test_statistics_of_latents_are_a_number_for_each_channel():
    found = weights.latent_statistics(STATISTICS, 3, "runs/x")
    assert found == {"latent_shift": (0.5, -1, 0.0), "latent_scale": (1.5, 2, 1e-3)}


@pytest.mark.parametrize("key", ["latent_shift", "latent_scale"])
@pytest.mark.parametrize(
    "value", [None, "text", 0.5, [1.0, 2.0], [1.0, float("nan"), 2.0], [1.0, "2", 3.0], [1, 2, True]]
)
def test_other_statistics_are_named(key, value):
    with pytest.raises(DataError, match=rf"runs/x: {key} is .*, expected 3 (finite|positive) numbers"):
        weights.latent_statistics(STATISTICS | {key: value}, 3, "runs/x")
    with pytest.raises(DataError, match=r"latent_scale is \[1.0, 0.0, 1.0\], expected 3 positive numbers"):
        weights.latent_statistics(STATISTICS | {"latent_scale": [1.0, 0.0, 1.0]}, 3, "runs/x")


def test_a_checkpoint_without_an_average_gives_its_weights(tmp_path):
    whole = safetensors_io.read(weights.find("package:tiny_tae", ""))
    checkpoint.save(tmp_path / "checkpoints", 3, {"params": whole}, {})
    found = weights.load(tmp_path / "checkpoints", CFG)
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name].asnumpy(), array.astype(np.float32))


def test_weights_of_another_config_are_named(tmp_path):
    arrays = safetensors_io.read(weights.find("package:tiny_tae", ""))
    arrays["encoder/head/norm/scale"] = arrays["encoder/head/norm/scale"][:1]
    path = safetensors_io.write(arrays, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"encoder/head/norm/scale \(1 differ\)"):
        weights.load(path, CFG)


@pytest.mark.parametrize("folder", [True, False])
def test_weights_say_what_they_were_trained_with(tmp_path, capsys, folder):
    """Zeros for replicated frames, the seed's way, have the same shapes and give other pictures."""
    arrays, noted = safetensors_io.read(weights.find("package:tiny_tae", "")), {"tae": weights.settings(CFG)}
    if folder:
        checkpoint.save(tmp_path / "w", 1, {"ema": arrays}, noted)
    else:
        safetensors_io.write(arrays, tmp_path / "w", metadata=noted)
    weights.load(tmp_path / "w", common.tae("tiny", latent_scale=9.0, spatial_tile=4))
    assert capsys.readouterr().out == ""
    weights.load(tmp_path / "w", common.tae("tiny", "seed"))
    words = 'w was trained with other settings of `tae` (temporal_upsample_padding: "replicate" -> "zeros")'
    assert words in capsys.readouterr().out


def test_a_digest_is_that_of_the_content(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    a, b, c = (weights.digest(tmp_path / name) for name in "abc")
    assert a == b != c and weights.digest(tmp_path) not in (a, c)
