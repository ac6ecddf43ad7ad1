from pathlib import Path

import numpy as np
import pytest

from experiments import common
from moviegen import backend, checkpoint, reconstruction
from moviegen import config as configs
from moviegen import state as states
from moviegen.data import crops
from moviegen.errors import DataError
from moviegen.jobs import train_tae
from moviegen.mesh import ONE
from moviegen.models import tae
from moviegen.writers import read_metrics


def settings(**train_settings):
    config = configs.load(f"{Path(common.__file__).parent}/tae.py:tiny").unlock()
    config.tae = common.tae("tiny", base_channels=8, channel_multipliers=(1, 1, 2, 2), norm_groups=4)
    config.data.update(num_frames=8, height=24, width=24, image_fraction=0.0)
    config.optim.update(learning_rate=3e-3, warmup_steps=0)
    config.train.update(steps=4, batch_size=1, log_every=1, checkpoint_every=2, validate_every=4)
    config.train.update(train_settings)
    config.loss.update(l1=0.5, mse=2.0, kl=1e-4)
    config.ema.decay = 0.9
    return config.lock()


@pytest.fixture(autouse=True, scope="module")
def small_validation():
    """One clip of the training's shape, so that nothing more is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        whole = reconstruction.validation_clips
        patch.setattr(
            reconstruction,
            "validation_clips",
            lambda config: {name: clip[:8, :24, :24] for name, clip in list(whole(config).items())[:2]},
        )
        yield


def final(workdir):
    return checkpoint.load(workdir / "checkpoints")[0]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train_tae.run(settings(), workdir)


def test_a_resumed_run_ends_exactly_as_an_unbroken_one(unbroken, tmp_path, monkeypatch):
    workdir, metrics = unbroken
    saved = checkpoint.save

    class Killed(Exception):
        pass

    def killed_after_saving(*args, **kwargs):
        saved(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed_after_saving)
        with pytest.raises(Killed):
            train_tae.run(settings(), tmp_path)
    assert checkpoint.latest(tmp_path / "checkpoints") == 2
    assert train_tae.run(settings(), tmp_path) == metrics
    found, expected = final(tmp_path), final(workdir)
    assert found.keys() == expected.keys() == {"params", "ema", "opt/m", "opt/v"}
    for tree, values in expected.items():
        assert found[tree].keys() == values.keys()
        for path, value in values.items():
            np.testing.assert_array_equal(found[tree][path], value, err_msg=f"{tree}/{path}")


def test_what_a_run_leaves(unbroken):
    workdir, metrics = unbroken
    assert set(metrics) == {"synthetic_psnr", "synthetic_ssim"}
    assert checkpoint.load(workdir / "checkpoints")[1]["score"] == -metrics["synthetic_psnr"]
    ema = final(workdir)["ema"]
    exported = train_tae.load_weights(workdir / "tae.safetensors", settings().tae)
    for path, value in ema.items():
        np.testing.assert_allclose(exported[path].asnumpy(), value, rtol=2**-10, atol=1e-7)  # stored as float16
    assert {path.name for path in (workdir / "samples").iterdir()} == {"recons-synthetic0.png", "recons-synthetic1.png"}
    lines = [line for line in read_metrics(workdir) if "tae/loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["tae/loss"] > 0 and line["tae/kl"] > 0 and np.isfinite(line["tae/psnr"]) for line in lines)


def test_every_weight_moves(unbroken):
    start = backend.to_numpy(tae.init(settings().tae, settings().seed))
    trees = final(unbroken[0])
    fixed = {path for path, value in trees["params"].items() if np.array_equal(value, start[path])}
    # One latent frame: temporal attention has no choice to make, so that nothing moves its queries and keys but noise.
    assert all("temporal_attention/q" in path or "attention/k" in path for path in fixed)
    assert all(not np.array_equal(v, trees["ema"][p]) for p, v in trees["params"].items() if p not in fixed)


def test_overfitting_one_batch(tmp_path, monkeypatch):
    batch = crops.batch
    monkeypatch.setattr(crops, "batch", lambda source, data, seed, step, *rest: batch(source, data, seed, 0, *rest))
    train_tae.run(settings(steps=12, checkpoint_every=100, validate_every=100), tmp_path)
    losses = [line["tae/loss"] for line in read_metrics(tmp_path) if "tae/loss" in line]
    assert losses[-1] < 0.6 * losses[0], losses


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint folder"])
def test_starting_from_weights(unbroken, tmp_path, kind):
    workdir, _ = unbroken
    given = workdir / ("tae.safetensors" if kind == "safetensors" else "checkpoints")
    config = settings(init_from=str(given))
    step, state = train_tae._start(config, tmp_path / "checkpoints", states.Layout(tae.shapes(config.tae), ONE, 0))
    assert step == 0
    tolerance = dict(rtol=2**-10, atol=1e-7) if kind == "safetensors" else dict(rtol=0, atol=0)
    for path, value in final(workdir)["ema"].items():
        np.testing.assert_allclose(state.params[path].asnumpy(), value, **tolerance)
        np.testing.assert_array_equal(state.average[path].asnumpy(), state.params[path].asnumpy())
        assert state.average[path] is not state.params[path]
    assert not any(v.asnumpy().any() for moment in state.moments.values() for v in moment.values())


def test_weights_of_another_config_are_refused(unbroken):
    cfg = common.tae("tiny")
    with pytest.raises(DataError, match=r"tae.safetensors: these weights are not of this tae config: .* differ\)"):
        train_tae.load_weights(unbroken[0] / "tae.safetensors", cfg)


def test_posterior_noise_depends_on_the_step_and_fits_the_latents():
    config = settings()
    for frames, latent in ((1, 1), (8, 1), (9, 2)):
        clips = np.zeros((2, 3, frames, 16, 24), np.float32)
        assert train_tae._noise(config, 0, clips, 0).shape == (2, 16, latent, 2, 3)
    noise = [train_tae._noise(config, step, clips, 0) for step in (1, 1, 2)]
    np.testing.assert_array_equal(noise[0], noise[1])
    assert not np.array_equal(noise[0], noise[2])
