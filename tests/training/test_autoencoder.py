from pathlib import Path

import numpy as np
import pytest

from experiments import common, tae as tae_experiment
from moviegen import config as configs
from moviegen.data import crops
from moviegen.errors import ConfigError, DataError
from moviegen.evaluation import reconstruction
from moviegen.models import lpips
from moviegen.models.tae import (
    discriminator,
    linear_start,
    model as tae,
    shapes as tae_shapes,
    step as tae_step,
    weights as tae_weights,
)
from moviegen.nn import backend
from moviegen.parallel.mesh import ALONE
from moviegen.runner import Run
from moviegen.storage import checkpoint, safetensors_io
from moviegen.storage.writers import read_metrics
from moviegen.training import autoencoder, loop, state as states


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


def small_lpips(*_):
    rng = np.random.default_rng(0)
    return {
        name: np.abs(rng.standard_normal(shape)).astype(np.float32) * 0.2
        for name, shape in lpips.shapes((2, 2, 2, 2, 2)).items()
    }


def every_loss(**train_settings):
    config = settings(**train_settings).copy_and_resolve_references().unlock()
    config.seed = 1  # while every verdict is within the hinge's margin the last bias has no gradient
    config.loss.update(lpips=0.5, outlier=10.0, outlier_radius=0.1, outlier_start=1)
    config.loss.adversarial.update(weight=0.5, start=1, dims=3, channels=2)
    return config.lock()


def final(workdir):
    return checkpoint.load(workdir / "checkpoints")[0]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, autoencoder.train(Run(settings(), workdir))


def test_a_resumed_run_ends_exactly_as_an_unbroken_one(unbroken, tmp_path, monkeypatch):
    workdir, metrics = unbroken
    saved = checkpoint.save

    def killed_after_saving(*args, **kwargs):
        saved(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed_after_saving)
        with pytest.raises(Killed):
            autoencoder.train(Run(settings(), tmp_path))
    assert checkpoint.latest(tmp_path / "checkpoints") == 2
    config = settings().unlock()
    config.data.update(workers=3, prefetch=1)  # the others have 2 and 2, and no result depends on it
    assert autoencoder.train(Run(config, tmp_path)) == metrics
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
    exported = tae_weights.load(workdir / "tae.safetensors", settings().tae)
    assert safetensors_io.lazy(workdir / "tae.safetensors")[1] == {"tae": tae_weights.settings(settings().tae)}
    for path, value in ema.items():
        np.testing.assert_array_equal(exported[path].asnumpy(), value)
    assert {array.dtype.name for array in safetensors_io.read(workdir / "tae.safetensors").values()} == {"float32"}
    measured = reconstruction.evaluate(exported, settings().tae, reconstruction.validation_clips(settings()), None)
    assert measured == metrics  # of what is written
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


def test_every_loss_trains_and_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(lpips, "load", small_lpips)
    metrics = autoencoder.train(Run(every_loss(), tmp_path / "whole"))
    assert set(metrics) == {"synthetic_psnr", "synthetic_ssim", "synthetic_lpips"}
    lines = [line for line in read_metrics(tmp_path / "whole") if "tae/loss" in line]
    late = {"tae/outlier", "tae/adversarial", "tae/discriminator", "tae/verdict_real", "tae/verdict_fake"}
    assert not late & lines[0].keys() and "tae/lpips" in lines[0]  # both start after one step
    assert all(late <= line.keys() and line["tae/outlier"] > 0 for line in lines[1:])

    monkeypatch.setattr(states, "save", killed(states.save))
    with pytest.raises(Killed):
        autoencoder.train(Run(every_loss(), tmp_path / "cut"))
    monkeypatch.undo()
    monkeypatch.setattr(lpips, "load", small_lpips)
    assert autoencoder.train(Run(every_loss(), tmp_path / "cut")) == metrics
    found, expected = final(tmp_path / "cut"), final(tmp_path / "whole")
    prefix, adversarial = tae_shapes.DISCRIMINATOR, every_loss().loss.adversarial
    for tree, values in expected.items():
        assert {path for path in values if path.startswith(prefix)} == discriminator.shapes(adversarial).keys()
        for path, value in values.items():
            np.testing.assert_array_equal(found[tree][path], value, err_msg=f"{tree}/{path}")
    start = backend.to_numpy(discriminator.init(adversarial, every_loss().seed))
    assert all(abs(expected["params"][path] - value).max() > 1e-4 for path, value in start.items())
    exported = tae_weights.load(tmp_path / "whole" / "checkpoints", every_loss().tae)
    assert exported.keys() == tae.shapes(every_loss().tae).keys()


@pytest.mark.parametrize("settings_of", [settings, pytest.param(every_loss, marks=pytest.mark.slow)])
def test_float16_rehearses_ten_steps_validations_and_a_resume(settings_of, tmp_path, monkeypatch):
    """The discriminator joins for the last two steps, as its weight, a quotient of norms, sways the loss."""
    monkeypatch.setattr(lpips, "load", small_lpips)

    def losses(name, dtype, *ends):
        for steps in ends:
            config = settings_of(steps=steps, checkpoint_every=5, validate_every=5).copy_and_resolve_references()
            config.tae.compute_dtype = dtype
            config.optim.learning_rate = 3e-4
            config.loss.adversarial.start = 8
            autoencoder.train(Run(config, tmp_path / name))
        return [line["tae/loss"] for line in read_metrics(tmp_path / name) if "tae/loss" in line]

    exact, found = losses("exact", "float32", 10), losses("rehearsed", "float16", 5, 10)
    assert len(found) == 10 and found[:8] != exact[:8]
    np.testing.assert_allclose(found[:8], exact[:8], rtol=1e-2)
    np.testing.assert_allclose(found[8:], exact[8:], rtol=0.1)
    for values in final(tmp_path / "rehearsed").values():
        assert all(value.dtype == np.float32 for value in values.values())


def test_a_precision_that_this_device_lacks_is_refused_before_anything_is_read(tmp_path):
    config = settings().copy_and_resolve_references()
    config.tae.compute_dtype = "bfloat16"
    config.data.source = "nowhere"
    with pytest.raises(ConfigError, match=r"tae.compute_dtype is 'bfloat16'.*--config.tae.compute_dtype=float32"):
        autoencoder.train(Run(config, tmp_path))


class Killed(Exception):
    pass


def killed(save):
    def then(*args, **kwargs):
        save(*args, **kwargs).result()
        raise Killed

    return then


def test_the_discriminator_learns_to_tell(monkeypatch, tmp_path):
    """Against an autoencoder that hardly moves, its loss falls from chance."""
    batch = crops.batch
    monkeypatch.setattr(crops, "batch", lambda source, data, seed, step, *rest: batch(source, data, seed, 0, *rest))
    config = settings(steps=40, checkpoint_every=100, validate_every=100).copy_and_resolve_references()
    config.loss.update(l1=0.0, mse=1e-6, kl=0.0)
    config.loss.adversarial.update(weight=1e-9, start=0, channels=4)
    config.optim.clip_norm = 0.0
    autoencoder.train(Run(config, tmp_path))
    lines = [line for line in read_metrics(tmp_path) if "tae/loss" in line]
    first, last = lines[0], lines[-1]
    assert last["tae/discriminator"] < 0.5 * first["tae/discriminator"], (first, last)
    assert last["tae/verdict_real"] > last["tae/verdict_fake"] + 1


def test_micro_batches_are_the_whole_batch(tmp_path):
    whole = settings(batch_size=2)
    parts = whole.copy_and_resolve_references()
    parts.optim.accumulate = 2
    tasks = [autoencoder.make(Run(config, tmp_path)) for config in (whole, parts)]
    state = tasks[0].first_state()
    found = [loop.loss_and_grads(task, state.params, task.micro_batches(0), 0) for task in tasks]
    for key, value in found[0][0].items():
        assert float(found[1][0][key]) == pytest.approx(float(value), rel=1e-5)
    largest = max(abs(g.asnumpy()).max() for g in found[0][1].values())
    for path, g in found[0][1].items():
        np.testing.assert_allclose(found[1][1][path].asnumpy(), g.asnumpy(), atol=1e-5 * largest, err_msg=path)
    parts.optim.accumulate = 3
    with pytest.raises(ConfigError, match="optim.accumulate is 3, which does not divide the 2 clips"):
        next(tasks[1].micro_batches(0))


def test_lpips_without_weights_is_refused_before_anything_is_read(tmp_path):
    config = settings().copy_and_resolve_references()
    config.loss.lpips = 1.0
    config.data.source = "nowhere"
    with pytest.raises(ConfigError, match=r"loss.lpips_weights is ''.*vgg16-397923af.pth.*--config.loss.lpips=0"):
        autoencoder.train(Run(config, tmp_path))


def test_without_an_adversarial_loss_there_is_no_discriminator(monkeypatch, tmp_path):
    monkeypatch.setattr(lpips, "load", small_lpips)
    config = every_loss()

    def shapes():
        return autoencoder.make(Run(config, tmp_path)).layout.shapes

    assert shapes() == tae.shapes(config.tae) | discriminator.shapes(config.loss.adversarial)
    config.loss.adversarial.weight = 0.0
    assert shapes() == tae.shapes(config.tae)
    with config.unlocked():
        del config.loss["adversarial"]
    assert shapes() == tae.shapes(config.tae)


def test_overfitting_one_batch(tmp_path, monkeypatch):
    batch = crops.batch
    monkeypatch.setattr(crops, "batch", lambda source, data, seed, step, *rest: batch(source, data, seed, 0, *rest))
    autoencoder.train(Run(settings(steps=12, checkpoint_every=100, validate_every=100), tmp_path))
    losses = [line["tae/loss"] for line in read_metrics(tmp_path) if "tae/loss" in line]
    assert losses[-1] < 0.6 * losses[0], losses


def test_a_gradient_that_is_not_finite_leaves_autoencoder_and_discriminator_as_they_are(tmp_path, monkeypatch):
    """That of the discriminator alone, in step 1; the losses are finite."""
    monkeypatch.setattr(lpips, "load", small_lpips)
    loss_and_grads = tae_step.loss_and_grads

    def broken(*args):
        losses, grads = loss_and_grads(*args)
        for path in grads:
            if path.startswith(tae_shapes.DISCRIMINATOR):
                grads[path] = grads[path] + np.nan
        return losses, grads

    monkeypatch.setattr(tae_step, "loss_and_grads", broken)
    with pytest.raises(
        ConfigError,
        match=r"2 steps in a row .* step 2 \(discriminator/norm nan\); the last checkpoint is that of step 2 ",
    ):
        autoencoder.train(Run(every_loss(max_bad_steps=2, checkpoint_every=1), tmp_path))
    assert checkpoint.latest(tmp_path / "checkpoints") == 2
    (one, _), (two, meta) = (checkpoint.load(tmp_path / "checkpoints", step) for step in (1, 2))
    assert meta["skipped_steps"] == 1
    for tree, values in one.items():
        for path, value in values.items():
            np.testing.assert_array_equal(value, two[tree][path], err_msg=f"{tree}/{path}")


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint folder"])
def test_starting_from_weights(unbroken, tmp_path, kind):
    workdir, _ = unbroken
    given = workdir / ("tae.safetensors" if kind == "safetensors" else "checkpoints")
    config = settings(init_from=str(given))
    step, state, _ = loop.resume(config, tmp_path / "checkpoints", autoencoder.make(Run(config, tmp_path)))
    assert step == 0 and state.params.keys() == tae.shapes(config.tae).keys()
    for path, value in final(workdir)["ema"].items():
        np.testing.assert_array_equal(state.params[path].asnumpy(), value)
        np.testing.assert_array_equal(state.ema[path].asnumpy(), state.params[path].asnumpy())
        assert state.ema[path] is not state.params[path]
    assert not any(v.asnumpy().any() for moment in state.moments.values() for v in moment.values())


def test_weights_of_another_config_are_refused(unbroken):
    cfg = common.tae("tiny")
    with pytest.raises(DataError, match=r"tae.safetensors: these weights are not of this tae config: .* differ\)"):
        tae_weights.load(unbroken[0] / "tae.safetensors", cfg)


def test_posterior_noise_depends_on_the_step_and_fits_the_latents():
    config = settings()
    for frames, latent in ((1, 1), (8, 1), (9, 2)):
        clips = np.zeros((2, 3, frames, 16, 24), np.float32)
        assert autoencoder._noise(config, 0, clips, 0).shape == (2, 16, latent, 2, 3)
    noise = [autoencoder._noise(config, step, clips, 0) for step in (1, 1, 2)]
    np.testing.assert_array_equal(noise[0], noise[1])
    assert not np.array_equal(noise[0], noise[2])


def start_settings(**train):
    config = tae_experiment.get_config(tiny=True)
    config.tae = common.tae("tiny", base_channels=4, channel_multipliers=(1, 1, 1, 1), norm_groups=4)
    config.data.update(num_frames=8, height=16, width=24)
    config.train.update(init_from="", linear_start=0)
    config.train.update(train)
    return config


def start_weights(config):
    return autoencoder.start_weights(config, crops.source(config.data), ALONE)


def test_training_begins_with_random_weights_where_nothing_is_asked_for():
    assert start_weights(start_settings()) == {}


def test_weights_of_a_file_come_before_fitted_ones(tmp_path):
    arrays = {path: np.full(shape, 0.5, np.float32) for path, shape in tae_shapes.shapes(start_settings().tae).items()}
    path = safetensors_io.write(arrays, tmp_path / "tae.safetensors")
    found = start_weights(start_settings(init_from=str(path), linear_start=2))
    assert found.keys() == arrays.keys() and all((value.asnumpy() == 0.5).all() for value in found.values())


def test_the_linear_start_is_fitted_to_clips_of_four_times_the_size(monkeypatch):
    monkeypatch.setattr(linear_start, "init", lambda cfg, clips, seed: clips)
    first, second = start_weights(start_settings(linear_start=2))
    assert first.shape == second.shape and set(first.shape) == {3, 8, 32, 48}
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, start_weights(start_settings(linear_start=1))[0])
