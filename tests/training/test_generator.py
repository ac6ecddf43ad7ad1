"""Training runs of a few steps on made-up latents, so that no autoencoder is compiled."""

import math

import mindspore as ms
import numpy as np
import pytest

from experiments import common
from moviegen.data import pipeline, sources
from moviegen.errors import ConfigError, DataError
from moviegen.models.transformer import model as transformer, step as transformer_step
from moviegen.models.transformer.shapes import parameter_dtypes
from moviegen.nn import backend, layerwise
from moviegen.parallel.mesh import ONE
from moviegen.runner import Run
from moviegen.storage import checkpoint, safetensors_io
from moviegen.storage.writers import read_metrics
from moviegen.training import generator, loop, optim, state as states, validation
from moviegen.training.state import Layout
from tests.data import made_up
from tests.training.logs import lines

BUCKET = "16x16x16"


def settings(**train_settings):
    config = common.shrink(common.stage("1b", 2))
    config.model.update(hidden_size=24, num_layers=2, num_heads=2, ffn_size=32, position_lengths=(2, 2, 2))
    config.model.update(latent_channels=4, text_dims=dict(ul2=8, metaclip=8, byt5=8))
    config.data.update(num_frames=16, height=16, width=16, image_fraction=0.0)
    config.optim.update(learning_rate=1e-2, weight_decay=0.1, warmup_steps=2)
    config.train.update(steps=4, batch_size=4, checkpoint_every=2, validate_every=2)
    config.train.update(train_settings)
    config.ema.decay = 0.9
    return config.lock()


def made_up_tables(config, workdir, world):
    rng = np.random.default_rng(0)
    shapes = {"video": (6, 4, 2, 2, 2), "image": (6, 4, 1, 2, 2), "heldout": (5, 4, 2, 2, 2)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    captions = {name: [f"a clip number {i}" for i in range(len(a))] for name, a in arrays.items()}
    return made_up.tables(arrays, captions, config.model.text_dims, [0.0] * 4, [1.0] * 4)


@pytest.fixture(autouse=True, scope="module")
def no_autoencoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "open_tables", made_up_tables)
        yield


def final(workdir):
    return checkpoint.load(workdir / "checkpoints")


def same_everywhere(one, two):
    assert one.keys() == two.keys() == {"params", "ema", "opt/m", "opt/v"}
    for tree in one:
        assert one[tree].keys() == two[tree].keys()
        for path, value in one[tree].items():
            np.testing.assert_array_equal(value, two[tree][path], err_msg=f"{tree}/{path}")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder and metrics of four steps in one go."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, generator.train(Run(settings(), workdir))


def test_a_resumed_run_ends_exactly_as_an_unbroken_one(unbroken, tmp_path):
    workdir, metrics = unbroken

    class Killed(Exception):
        pass

    saved = checkpoint.save

    def killed_after_saving(*args, **kwargs):
        saved(*args, **kwargs)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", killed_after_saving)
        with pytest.raises(Killed):
            generator.train(Run(settings(), tmp_path))
    assert checkpoint.latest(tmp_path / "checkpoints") == 2
    config = settings().unlock()
    config.data.update(workers=3, prefetch=1)  # the others have 2 and 2, and no result depends on it
    resumed = generator.train(Run(config, tmp_path))
    (trees, meta), (expected, expected_meta) = final(tmp_path), final(workdir)
    same_everywhere(trees, expected)
    assert meta == expected_meta and resumed == metrics
    assert lines(tmp_path) == lines(workdir)


def test_a_run_killed_amid_an_epoch_of_each_bucket_ends_exactly_as_an_unbroken_one(tmp_path, monkeypatch):
    """Whatever is read ahead of the step; gradients are stood in for by the weights times what all of a batch goes into."""

    def tables(config, workdir, world):
        shapes = {"video/1": (7, 4, 2, 4, 4), "video/2": (5, 4, 1, 4, 4), "image": (9, 4, 1, 4, 4)}
        return made_up.of_shapes(config, shapes)

    def loss_and_grads(params, cfg, latents, noise, t, text, exchange, recompute, note):
        note(backend.tensor(np.zeros(len(t), np.float32)))
        parts = latents, noise, t, *(array for pair in text.values() for array in pair)
        loss = backend.tensor(np.float32(sum(np.sin(array.astype(np.float32)).mean() for array in parts)))
        return loss, {path: value * loss for path, value in params.items()}

    def config(**train_settings):
        made = settings(steps=11, checkpoint_every=4, **train_settings).unlock()
        made.data.image_fraction = 0.25
        made.data.buckets.update(resolution=32, aspect_ratios=("1:1",), frames=(16, 8), max_fps=(16.0, 16.0))
        made.data.buckets.batch_sizes = ("8x.*=3", "1x.*=2")
        return made.lock()

    monkeypatch.setattr(sources, "open_tables", tables)
    monkeypatch.setattr(transformer_step, "loss_and_grads", loss_and_grads)
    metrics = generator.train(Run(config(), tmp_path / "unbroken"))
    saved, killed = checkpoint.save, []

    def kill_once(*args, **kwargs):
        saved(*args, **kwargs)
        if not killed:
            killed.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", kill_once)
    with pytest.raises(KeyboardInterrupt):
        generator.train(Run(config(), tmp_path / "killed"))
    step = checkpoint.latest(tmp_path / "killed" / "checkpoints")
    noted = checkpoint.load(tmp_path / "killed" / "checkpoints")[1]["position"]
    assert step == 4 and sum(0 < place["index"] < place["rows"] for place in noted.values()) == 3
    assert generator.train(Run(config(), tmp_path / "killed")) == metrics
    (trees, meta), (expected, expected_meta) = (final(tmp_path / name) for name in ("killed", "unbroken"))
    same_everywhere(trees, expected)
    assert meta == expected_meta


def test_float16_rehearses_ten_steps_validations_and_a_resume(tmp_path, monkeypatch):
    """Graphs are given the weights in the dtype that they are computed with in, and nobody casts them there."""
    cast, given, astype, flat = [], {}, ms.Tensor.astype, layerwise._flat
    monkeypatch.setattr(ms.Tensor, "astype", lambda self, kind: cast.append(kind) or astype(self, kind))
    monkeypatch.setattr(layerwise, "_flat", lambda params, inputs: given.update(params) or flat(params, inputs))

    def losses(name, dtype, *ends):
        for steps in ends:
            config = settings(steps=steps, checkpoint_every=5, validate_every=5)
            config.model.compute_dtype = dtype
            generator.train(Run(config, tmp_path / name))
        keys = "train/video_loss", "train/heldout_loss"
        return [line[key] for line in read_metrics(tmp_path / name) for key in keys if key in line]

    exact, found = losses("exact", "float32", 10), losses("whole", "float16", 10)
    model = settings().model.copy_and_resolve_references()
    model.compute_dtype = "float16"
    kinds = [*parameter_dtypes(model).values()]
    assert cast.count(ms.float16) == (1 + 10 + 2) * kinds.count("float16")  # the start, updates and validations
    assert {str(given[name].dtype) for name in ("attn/q", "mlp/down", "proj", "patch")} == {"Float16"}
    assert {str(given[name].dtype) for name in ("attn/norm", "modulation", "time/in")} == {"Float32"}
    assert len(exact) == 12 and found != exact
    np.testing.assert_allclose(found, exact, rtol=1e-2)
    assert losses("parts", "float16", 5, 10) == found
    same_everywhere(final(tmp_path / "parts")[0], final(tmp_path / "whole")[0])


def test_what_a_run_leaves(unbroken):
    workdir, metrics = unbroken
    trees, meta = final(workdir)
    assert meta["step"] == 4 and meta["position"].keys() == {BUCKET}  # no step is of images
    assert meta["position"][BUCKET]["epoch"] == 2 and meta["position"][BUCKET]["index"] == 4
    assert meta["score"] == metrics["heldout_loss"] and checkpoint.best(workdir / "checkpoints") in (2, 4)
    assert meta["latent_shift"] == [0.0] * 4 and meta["latent_scale"] == [1.0] * 4
    assert set(metrics) == {"loss", "video_loss", "heldout_loss"} and np.isfinite(list(metrics.values())).all()
    losses = [line["train/video_loss"] for line in read_metrics(workdir) if "train/video_loss" in line]
    assert len(losses) == 4 and losses[-1] == metrics["loss"]
    start = backend.to_numpy(transformer.init(settings().model, settings().seed))
    for path, value in trees["params"].items():
        assert not np.array_equal(value, start[path]), path
        assert not np.array_equal(value, trees["ema"][path]), path


def test_all_that_graphs_are_given_is_on_the_card(unbroken, tmp_path, card):
    """Of a run that begins, validates and goes on; and its state is moved there once."""
    for steps in (2, 3):
        card.clear()
        generator.train(Run(settings(steps=steps, validate_every=1), tmp_path))
        weights = transformer.shapes(settings().model)
        sizes = [tuple(x.shape) for x in card]
        for shape in map(tuple, weights.values()):  # weights, average and two moments
            same = sum(tuple(other) == shape for other in weights.values())
            assert len(shape) == 1 or sizes.count(shape) == 4 * same, shape


def test_a_finished_run_is_not_run_again(unbroken, tmp_path, monkeypatch):
    workdir, _ = unbroken
    before = final(workdir)
    monkeypatch.setattr(transformer_step, "loss_and_grads", None)
    generator.train(Run(settings(), workdir))
    same_everywhere(final(workdir)[0], before[0])


def test_gradient_accumulation_is_the_same_batch_in_pieces(tmp_path):
    config = settings()
    params = transformer.init(config.model, 0)
    rng = np.random.default_rng(0)  # at the start most gradients are zero
    params = {
        p: backend.tensor(v.asnumpy() + 0.1 * rng.standard_normal(v.shape).astype("f")) for p, v in params.items()
    }

    def of_batch(config):
        task = generator.make(Run(config, tmp_path))
        return loop.loss_and_grads(task, params, task.micro_batches(3), 3)

    losses, grads = of_batch(config)
    assert generator._positions(config, ONE, 4) == [range(0, 4)]
    pieces = config.copy_and_resolve_references()
    pieces.optim.accumulate = 2
    assert generator._positions(pieces, ONE, 4) == [range(0, 2), range(2, 4)]
    means, accumulated = of_batch(pieces)
    assert float(means["loss"]) == pytest.approx(float(losses["loss"]), rel=1e-6)
    assert accumulated.keys() == grads.keys() == params.keys()
    for path, value in grads.items():
        value = value.asnumpy()
        assert abs(value).max() > 0, path
        np.testing.assert_allclose(accumulated[path].asnumpy(), value, atol=2e-5 * abs(value).max(), err_msg=path)


def test_a_step_of_several_micro_batches_waits_for_the_device_once(tmp_path, monkeypatch):
    """Whatever reads a tensor waits until all that was asked for before is done."""
    config, read = settings(batch_size=8), []
    config.optim.accumulate = 2
    task = generator.make(Run(config, tmp_path))
    state = task.first_state()
    for name in ("asnumpy", "item", "tolist", "__float__", "__int__", "__bool__", "__index__"):
        was = getattr(ms.Tensor, name)
        monkeypatch.setattr(ms.Tensor, name, lambda self, *args, was=was: read.append(self.shape) or was(self, *args))
    for step in range(2):
        losses, grads = loop.loss_and_grads(task, state.params, task.micro_batches(step), step)
        states.update(state, grads, step, 1e-3, config, task.layout, task.starts, losses)
        assert len(read) == 1 + step


def test_overfitting_one_batch(tmp_path, monkeypatch):
    batch = pipeline.batch
    monkeypatch.setattr(pipeline, "batch", lambda data, config, step, part: batch(data, config, 0, part))
    generator.train(Run(settings(steps=16, checkpoint_every=100, validate_every=100), tmp_path))
    losses = [line["train/video_loss"] for line in read_metrics(tmp_path) if "train/video_loss" in line]
    assert losses[-1] < 0.2 * losses[0]


def test_the_next_stage_starts_from_the_averaged_weights_with_grown_tables(unbroken, tmp_path):
    workdir, _ = unbroken
    config = settings(init_from=str(workdir / "checkpoints"))
    config.unlock()
    config.model.position_lengths = (3, 2, 4)
    state = generator.first_state(config, Layout(transformer.shapes(config.model), ONE, 3))
    params, average = state.params, state.ema
    ema = final(workdir)[0]["ema"]
    for path, value in ema.items():
        found = params[path].asnumpy()
        np.testing.assert_array_equal(average[path].asnumpy(), found)
        assert average[path] is not params[path]
        if path in ("position/t", "position/w"):
            assert len(found) == {"position/t": 3, "position/w": 4}[path]
            np.testing.assert_allclose(found[[0, -1]], value[[0, -1]], atol=1e-6)
        else:
            np.testing.assert_array_equal(found, value)
    assert not any(v.asnumpy().any() for moment in state.moments.values() for v in moment.values())


def test_the_plateau_rule_lowers_the_rate_and_survives_a_resume(tmp_path, monkeypatch):
    def config(steps):
        made = settings(steps=steps, validate_every=1, checkpoint_every=1)
        made.optim.plateau.update(factor=0.5, patience=1, min_delta=100.0, min_learning_rate=3e-3)
        made.optim.warmup_steps = 0
        return made

    monkeypatch.setattr(validation, "heldout_loss", lambda *args: {"heldout_loss": 1.0})
    generator.train(Run(config(2), tmp_path))
    generator.train(Run(config(4), tmp_path))
    rates = [line["train/lr"] for line in read_metrics(tmp_path) if "train/lr" in line]
    # The first validation is better than infinity; each one after it halves the rate, down to the floor.
    assert rates == pytest.approx([1e-2, 1e-2, 5e-3, 3e-3])


def test_weights_follow_adamw_on_the_gradients(unbroken):
    """The first step by hand: what the job does between a batch and a checkpoint."""
    config, (workdir, _) = settings(), unbroken
    params = transformer.init(config.model, config.seed)
    state, data = optim.init_state(params), pipeline.open_data(config, "unused")
    for step in range(4):
        batch = pipeline.batch(data, config, step, range(4))
        _, grads = transformer_step.loss_and_grads(params, config.model, *batch[:4])
        rate = 1e-2 * min(1, (step + 1) / 2)
        norm = math.sqrt(sum(optim.means(optim.square_sums(grads))))
        optim.adamw_update(params, grads, state, step, rate, config.optim, norm)
    for path, value in final(workdir)[0]["params"].items():
        np.testing.assert_array_equal(params[path].asnumpy(), value)


def test_the_next_stage_of_another_model_is_refused(unbroken):
    config = settings(init_from=str(unbroken[0] / "checkpoints"))
    config.unlock()
    config.model.ffn_size = 48
    layout = Layout(transformer.shapes(config.model), ONE, 3)
    with pytest.raises(DataError, match=r"\(ema of step 4\) is not of this model config: blocks/0/mlp/down"):
        generator.first_state(config, layout)


def test_losses_that_are_no_numbers_end_the_run_with_the_samples_of_the_step(tmp_path, monkeypatch):
    batch = pipeline.batch
    monkeypatch.setattr(
        pipeline, "batch", lambda *args: (made := batch(*args))._replace(noise=np.full_like(made.noise, np.nan))
    )
    with pytest.raises(
        ConfigError, match=r"2 steps in a row .*step 1 \(loss nan, norm nan\), samples (video/\d, ){3}video"
    ):
        generator.train(Run(settings(max_bad_steps=2), tmp_path))
    assert checkpoint.latest(tmp_path / "checkpoints") is None


def restored(workdir, config, meta):
    """Runs a resume's `restore` with this meta and returns what the task then notes at its step."""
    task = generator.make(Run(config, workdir))
    task.restore(meta)
    return task, task.meta(meta["step"])


def changed_tables(monkeypatch, **changes):
    """Other latent statistics, or rows, than those that the runs here have."""

    def tables(*args):
        return made_up_tables(*args)._replace(**changes)

    monkeypatch.setattr(sources, "open_tables", tables)


def test_the_statistics_of_the_weights_win_over_those_of_the_data(unbroken, tmp_path, monkeypatch, capsys):
    """One dark clip in the cache changed what the weights are shown: shift 0.65 for 0, scale 0.746 for 1, unsaid."""
    workdir, _ = unbroken
    meta = final(workdir)[1]
    changed_tables(monkeypatch, statistics=([0.65] * 4, [0.746] * 4))
    assert generator.make(Run(settings(), tmp_path)).meta(0)["latent_scale"] == [0.746] * 4  # a run that begins
    task, noted = restored(workdir, settings(), meta)
    assert noted == {key: meta[key] for key in ("latent_shift", "latent_scale", "trained_with", "position")}
    said = capsys.readouterr().out
    assert said.count("shift 0, the data's 0.65 (") == said.count("scale 1, the data's 0.746 (") == 1
    latents = next(iter(task.micro_batches(4))).latents
    monkeypatch.undo()
    task, _ = restored(workdir, settings(), meta)
    np.testing.assert_array_equal(latents, next(iter(task.micro_batches(4))).latents)
    assert "the data's" not in capsys.readouterr().out


def test_the_next_stage_normalizes_as_the_stage_before(unbroken, tmp_path, monkeypatch, capsys):
    changed_tables(monkeypatch, statistics=([0.65] * 4, [0.746] * 4), autoencoder="ab12")
    task = generator.make(Run(settings(init_from=str(unbroken[0])), tmp_path))
    task.first_state()
    noted = task.meta(0)
    assert noted["latent_shift"] == [0.0] * 4 and noted["latent_scale"] == [1.0] * 4
    assert noted["position"] == final(unbroken[0])[1]["position"]  # it has the same samples, and goes on with them
    assert "scale 1, the data's 0.746" in capsys.readouterr().out


def test_other_statistics_of_nobody_knows_whose_latents_end_a_stage(unbroken, tmp_path, monkeypatch):
    changed_tables(monkeypatch, statistics=([0.65] * 4, [0.746] * 4))
    task = generator.make(Run(settings(init_from=str(unbroken[0])), tmp_path))
    with pytest.raises(
        ConfigError, match="scale 1, the data's 0.746.*which autoencoder made the latents.*encode_video"
    ):
        task.first_state()


def test_a_stage_from_nowhere_ends_before_the_data_is_opened_and_goes_on_without(tmp_path, monkeypatch):
    config = settings(init_from=str(tmp_path / "gone"))
    with monkeypatch.context() as patch:
        patch.delattr(sources, "open_tables")
        with pytest.raises(DataError, match="train.init_from: .*gone: is not there, expected the workdir of a run"):
            generator.make(Run(config, tmp_path / "run"))
    checkpoint.save(tmp_path / "run" / "checkpoints", 1, {"params": {"w": np.ones(1)}}, {})
    generator.make(Run(config, tmp_path / "run"))


def test_weights_of_others_are_scaled_as_the_config_says(tmp_path, capsys):
    config = settings(init_from=str(tmp_path / "x.safetensors")).unlock()
    config.tae.update(latent_channels=4, latent_shift=0.0, latent_scale=1.01)
    arrays = {path: np.ones(shape, np.float32) for path, shape in transformer.shapes(config.model).items()}
    safetensors_io.write(arrays, tmp_path / "x.safetensors")
    task = generator.make(Run(config, tmp_path / "run"))
    np.testing.assert_array_equal(task.first_state().master["patch"].asnumpy(), arrays["patch"])
    assert task.meta(0)["latent_scale"] == [1.01] * 4
    assert "does not say how its latents were scaled" in capsys.readouterr().out


def test_weights_of_another_model_or_autoencoder_are_refused_or_named(unbroken, tmp_path, monkeypatch, capsys):
    meta = final(unbroken[0])[1] | {"trained_with": final(unbroken[0])[1]["trained_with"] | {"tae_weights": "ab12"}}
    changed_tables(monkeypatch, autoencoder="cd34")
    restored(tmp_path, settings(), meta)
    assert 'was trained with something else (tae_weights: "ab12" -> "cd34")' in capsys.readouterr().out
    config = settings().unlock()
    config.model.norm_eps = 1e-6
    with pytest.raises(ConfigError, match=r"model.norm_eps: 1e-05 -> 1e-06"):
        restored(tmp_path, config, meta)


def test_a_checkpoint_that_says_nothing_goes_on(tmp_path, capsys):
    _, noted = restored(tmp_path, settings(), {"step": 7, "samples_seen": 28})
    assert noted["position"][BUCKET] == noted["position"][BUCKET] | {"epoch": 0, "index": 0}
    said = capsys.readouterr().out
    assert "does not say what its weights were trained with" in said and "which samples it has seen" in said


def test_another_batch_goes_on_where_the_samples_were(unbroken, capsys):
    """4 steps of 4 are 2 epochs of 6 and 4 samples; 2 steps of 2 more end the third and begin the fourth."""
    workdir, _ = unbroken
    config = settings(batch_size=2)
    task = generator.make(Run(config, workdir))
    step, _, _ = loop.resume(config, workdir / "checkpoints", task)
    assert step == 4 and task.meta(4)["position"] == final(workdir)[1]["position"]
    now = task.meta(6)["position"][BUCKET]
    assert (now["epoch"], now["index"]) == (3, 2)
    assert "others than those of the checkpoint" not in capsys.readouterr().out


def test_rows_that_are_new_or_gone_are_named(unbroken, tmp_path, monkeypatch, capsys):
    workdir, _ = unbroken
    generator.make(Run(settings(), tmp_path)).first_state()
    rows = made_up_tables(settings(), None, None).rows[BUCKET]
    changed_tables(monkeypatch, rows={BUCKET: [*rows[1:], rows[1]._replace(video="new.mp4")]})
    restored(tmp_path, settings(), final(workdir)[1])
    said = capsys.readouterr().out
    assert "6 then, 6 now; 1 new: new.mp4; 1 gone: video/0" in said and "images" not in said
    restored(tmp_path, settings(), final(workdir)[1])
    assert "1 new" not in capsys.readouterr().out  # names are compared with those of the last start


def test_an_average_in_host_memory_is_moved_once_a_validation(tmp_path, monkeypatch):
    moved, config = [], settings(offload_optimizer=True)
    task = generator.make(Run(config, tmp_path))
    to_tensors = backend.to_tensors
    monkeypatch.setattr(backend, "to_tensors", lambda tree: moved.append(type(tree["patch"])) or to_tensors(tree))
    monkeypatch.setattr(validation.transformer, "apply", lambda params, cfg, x, *rest: backend.tensor(0 * x))
    task.validate({"patch": np.ones(3, np.float32)}, 0, None)
    assert moved == [np.ndarray]
