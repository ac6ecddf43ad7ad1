"""The loop by itself, around three numbers that are drawn to a target."""

import _thread
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.errors import ConfigError, DataError, Stopped
from moviegen.nn import backend
from moviegen.parallel import signals
from moviegen.parallel.mesh import ONE
from moviegen.runner import Run
from moviegen.storage import checkpoint
from moviegen.storage.writers import read_metrics
from moviegen.training import loop, meters, optim, state as states, stop
from tests.training.logs import lines


def settings(**train_settings):
    train = dict(steps=7, max_bad_steps=3, log_every=3, validate_every=4, checkpoint_every=2)
    train |= dict(keep_checkpoints=9, keep_every=0, keep_best=False) | train_settings
    optim = dict(learning_rate=0.1, schedule="constant", warmup_steps=0, betas=(0.9, 0.99), eps=1e-8)
    optim |= dict(weight_decay=0.0, no_decay="", clip_norm=1.0)
    return ConfigDict(dict(data={}, optim=optim, ema=dict(decay=0.9), train=train))


class Stub:
    """A model and what the loop asked of it."""

    def __init__(self, **changes):
        self.layout = states.Layout({"w": (3,)}, ONE, 0)
        self.steps, self.validated, self.started = [], [], 0
        self.changes = changes

    def first_state(self):
        self.started += 1
        return states.fresh({"w": backend.tensor(np.ones(3, np.float32))}, self.layout)

    def micro_batches(self, step):
        self.steps.append(step)
        yield from np.full((2, 3), step, np.float32) + [[-1], [1]]

    def loss_and_grads(self, params, inputs, step):
        slope = params["w"] - backend.tensor(inputs)
        return {"loss": (slope**2).mean()}, {"w": slope}

    def validate(self, ema, step, writer):
        self.validated.append(step)
        return {"distance": float(np.abs(ema["w"].asnumpy()).sum())}, -float(step)

    def task(self):
        own = dict(
            name="stub",
            layout=self.layout,
            first_state=self.first_state,
            micro_batches=self.micro_batches,
            loss_and_grads=self.loss_and_grads,
            numbers=lambda losses, step: (losses, {"loss": losses["loss"], "twice": 2 * losses["loss"]}),
            names=lambda step: [f"{step}a.mp4", f"{step}b.mp4"],
            validate=self.validate,
            meta=lambda step: {"samples_seen": 2 * step},
        )
        return loop.Task(**own | self.changes)


def train(workdir, stub, **train_settings):
    return loop.train(Run(settings(**train_settings), workdir), stub.task())


def test_a_start_removes_what_a_kill_left_half_written(tmp_path):
    train(tmp_path, Stub())
    left = tmp_path / "checkpoints" / "step-00000006.tmp-1"
    shutil.copytree(tmp_path / "checkpoints" / "step-00000007", left)
    train(tmp_path, Stub())
    assert not left.exists() and checkpoint.latest(tmp_path / "checkpoints") == 7


def test_what_a_stage_starts_from_is_validated_before_its_first_step(tmp_path):
    for _ in range(2):  # the second finds nothing to do
        stub = Stub()
        train(tmp_path, stub, init_from="somewhere")
    assert stub.validated == []
    assert [line["step"] for line in lines(tmp_path) if "stub/distance" in line] == [0, 4, 7]


def test_it_logs_validates_and_saves_when_due_and_at_the_end(tmp_path, capsys):
    stub = Stub()
    logged, validated = train(tmp_path, stub)
    assert stub.started == 1 and stub.steps == list(range(7)) and stub.validated == [4, 7]
    found = lines(tmp_path)
    assert [line["step"] for line in found if "stub/loss" in line] == [3, 6, 7]
    assert [line["step"] for line in found if "stub/distance" in line] == [4, 7]
    assert all(line.keys() >= {"stub/twice", "stub/norm", "stub/lr"} for line in found if "stub/loss" in line)
    assert [line["stub/skipped_steps"] for line in found if "stub/loss" in line] == [0, 0, 0]
    before = np.linalg.norm(checkpoint.load(tmp_path / "checkpoints", 2)[0]["params"]["w"])
    assert found[0]["stub/weight_norm"] == pytest.approx(before, rel=1e-6)
    assert logged == {"loss": found[-2]["stub/loss"], "twice": found[-2]["stub/twice"]}
    assert validated == {"distance": found[-1]["stub/distance"]}
    folder = tmp_path / "checkpoints"
    metas = {step: checkpoint.load(folder, step)[1] for step in (2, 4, 6, 7)}
    assert [meta["score"] for meta in metas.values()] == [None, -4.0, None, -7.0]
    notes = {"plateau": None, "skipped_steps": 0, "learning_rate": 0.1}
    assert metas[7] == {"step": 7, "score": -7.0, "samples_seen": 14} | notes
    said = capsys.readouterr().out
    assert said.endswith(f"stub: 7 steps done; checkpoints in {folder}\n")
    assert "| w    | (3,)  | float32 | 3    |" in said and "Total: 3 -- 12 bytes" in said


def test_a_resumed_run_ends_as_an_unbroken_one_and_a_finished_one_is_not_run_again(tmp_path, monkeypatch):
    save = states.save

    def whole_when_it_returns(*args):
        saving = save(*args)
        saving.result()
        return saving

    monkeypatch.setattr(states, "save", whole_when_it_returns)

    class Killed(Exception):
        pass

    class Dying(Stub):
        def micro_batches(self, step):
            if step == 5:
                raise Killed
            return super().micro_batches(step)

    whole, resumed = Stub(), Stub()
    ended = train(tmp_path / "whole", whole)
    with pytest.raises(Killed):
        train(tmp_path / "cut", Dying())
    assert checkpoint.latest(tmp_path / "cut" / "checkpoints") == 4
    assert train(tmp_path / "cut", resumed) == ended
    assert resumed.started == 0 and resumed.steps == [4, 5, 6] and resumed.validated == [7]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    (found, meta), (expected, its_meta) = (checkpoint.load(tmp_path / run / "checkpoints") for run in ("cut", "whole"))
    assert meta == its_meta and found.keys() == expected.keys() == {"params", "ema", "opt/m", "opt/v"}
    for tree, values in expected.items():
        np.testing.assert_array_equal(found[tree]["w"], values["w"], err_msg=tree)
    assert train(tmp_path / "cut", resumed) == ({}, {}) and resumed.steps == [4, 5, 6]


def test_samples_are_shown_when_due_and_at_the_end_and_parts_are_means_since_the_last_line(tmp_path, capsys):
    config, shown = settings(), []
    config.valid = dict(every=3)
    show = lambda ema, step, writer: shown.append((step, float(ema["w"].asnumpy().sum())))  # noqa: E731
    parts = lambda losses, step: {"loss/even": (float(step), 1.0)} if step % 2 == 0 else {}  # noqa: E731
    loads = dict(parts=parts, load=lambda step: meters.Load(2, 10))
    loop.train(Run(config, tmp_path), Stub(show=show, **loads).task())
    assert [step for step, _ in shown] == [3, 6, 7]
    average = checkpoint.load(tmp_path / "checkpoints", 6)[0]["ema"]["w"]
    assert shown[1][1] == pytest.approx(float(average.sum()), rel=1e-6)
    found = [line for line in lines(tmp_path) if "stub/loss" in line]
    assert [line["stub/loss/even"] for line in found] == [1.0, 4.0, 6.0]  # of steps 0 and 2, of 4, of 6
    assert re.search(
        r"stub 7/7  loss \S+  norm \S+  lr 0.1  \S+ samples/s  \S+ tokens/s  waits ", capsys.readouterr().out
    )
    shown.clear()
    with pytest.raises(Stopped):  # a run that is to end does not start what may take minutes
        loop.train(Run(config, tmp_path / "cut"), Signalled(signal.SIGTERM, 2, show=show).task())
    assert not shown


def test_losses_and_gradients_are_the_mean_over_micro_batches():
    stub = Stub()
    params = {"w": backend.tensor(np.zeros(3, np.float32))}
    losses, grads = loop.loss_and_grads(stub.task(), params, stub.micro_batches(5), 5)
    assert float(losses["loss"]) == (16 + 36) / 2
    np.testing.assert_array_equal(grads["w"].asnumpy(), [-5.0] * 3)


# ---- inputs that are made ahead


def fed(workdir, stub, workers, prefetch, **train_settings):
    config = settings(**train_settings)
    config.data = dict(workers=workers, prefetch=prefetch)
    return loop.train(Run(config, workdir), stub.task())


def same_weights(one, two):
    (found, meta), (expected, its_meta) = (checkpoint.load(workdir / "checkpoints") for workdir in (one, two))
    assert meta == its_meta and found.keys() == expected.keys()
    for tree, values in expected.items():
        np.testing.assert_array_equal(found[tree]["w"], values["w"], err_msg=tree)


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (3, 1), (1, 4), (3, 4)])
def test_how_inputs_are_fed_changes_no_result(tmp_path, workers, prefetch):
    ended = train(tmp_path / "whole", Stub())
    assert fed(tmp_path / "fed", Stub(), workers, prefetch) == ended
    assert lines(tmp_path / "fed") == lines(tmp_path / "whole")
    same_weights(tmp_path / "fed", tmp_path / "whole")


class Torn(Stub):
    """The file of one step cannot be read."""

    def __init__(self, step):
        super().__init__()
        self.torn = step

    def micro_batches(self, step):
        if step == self.torn:
            raise DataError("train.csv, line 9: b.mp4 is damaged")
        yield from super().micro_batches(step)


@pytest.mark.parametrize(("prefetch", "saved"), [(0, 4), (1, 5), (9, 5)])
def test_inputs_that_cannot_be_made_end_the_run_after_the_steps_before(tmp_path, capsys, prefetch, saved):
    """Made ahead, the last of them is saved; else they are those of the last checkpoint."""
    with pytest.raises(DataError, match="train.csv, line 9: b.mp4 is damaged"):
        fed(tmp_path / "cut", Torn(5), 2, prefetch)
    checkpoint.in_background(lambda: None).result()  # as a process that ends does
    folder = tmp_path / "cut" / "checkpoints"
    said = f"stub: step 5 of 7 is saved in {folder}; the same command continues from it\n"
    assert checkpoint.latest(folder) == saved and (said in capsys.readouterr().out) == bool(prefetch)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("inputs")]
    ended = train(tmp_path / "whole", Stub())
    assert fed(tmp_path / "cut", Stub(), 2, prefetch) == ended
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    same_weights(tmp_path / "cut", tmp_path / "whole")


def test_waiting_for_inputs_is_logged(tmp_path):
    class Slow(Stub):
        def micro_batches(self, step):
            time.sleep(0.03)
            return super().micro_batches(step)

    for prefetch in (0, 8):
        fed(tmp_path / str(prefetch), Slow(), 8, prefetch, log_every=1)
    alone, ahead = ([x for x in read_metrics(tmp_path / run) if "stub/data_wait" in x] for run in ("0", "8"))
    assert len(alone) == len(ahead) == 7
    assert all(line["stub/data_wait"] >= 0.03 and 0.3 < line["stub/data_wait_share"] <= 1 for line in alone[1:])
    assert all(line["stub/data_wait"] >= 0 for line in ahead)


# ---- steps that are skipped


class Failing(Stub):
    """The loss or the gradient, as `what` says, is `value` in these steps."""

    def __init__(self, what, value, *steps, **changes):
        super().__init__(**changes)
        self.what, self.value, self.failing = what, value, steps

    def loss_and_grads(self, params, inputs, step):
        losses, grads = super().loss_and_grads(params, inputs, step)
        if step in self.failing:
            broken = losses if self.what == "loss" else grads
            broken.update({key: tensor + self.value for key, tensor in broken.items()})
        return losses, grads


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_told(tmp_path, capsys, what, value):
    """It is not one that is logged, and a checkpoint is written after it."""
    stub = Failing(what, value, 3)
    train(tmp_path, stub, checkpoint_every=1, log_every=5)
    (before, _), (after, meta), (end, _) = (checkpoint.load(tmp_path / "checkpoints", step) for step in (3, 4, 7))
    assert after.keys() == {"params", "ema", "opt/m", "opt/v"}
    for tree, values in after.items():
        np.testing.assert_array_equal(values["w"], before[tree]["w"], err_msg=tree)
        assert np.isfinite(end[tree]["w"]).all() and (end[tree]["w"] != values["w"]).all(), tree
    assert stub.steps == list(range(7)) and meta["skipped_steps"] == 1
    said = f"stub: skipped step 3 ({'loss' if what == 'loss' else 'norm'} {value}), samples 3a.mp4, 3b.mp4\n"
    assert said in capsys.readouterr().out
    found = {line["step"]: line for line in lines(tmp_path) if "stub/skipped_steps" in line}
    assert {step: line["stub/skipped_steps"] for step, line in found.items()} == {4: 1, 5: 1, 7: 1}
    assert "stub/loss" not in found[4] and found[5]["stub/loss"] > 0


def test_the_count_of_skipped_steps_survives_a_resume(tmp_path):
    train(tmp_path, Failing("loss", np.nan, 1), steps=2)
    train(tmp_path, Failing("loss", np.nan, 3), steps=5)
    assert checkpoint.load(tmp_path / "checkpoints")[1]["skipped_steps"] == 2


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path):
    stub = Failing("gradient", np.inf, 2, 4, 5, 6)
    message = (
        r"^3 steps in a row had a loss or gradients that are not finite \(train.max_bad_steps is 3\), the last one "
        r"step 6 \(norm inf\), samples 6a.mp4, 6b.mp4; the last checkpoint is that of step 4 in .*/checkpoints: "
    )
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, stub, steps=100, checkpoint_every=4)
    assert stub.steps == list(range(7)) and checkpoint.latest(tmp_path / "checkpoints") == 4


def test_a_short_run_of_bad_steps_alone_does_not_pass_for_a_trained_one(tmp_path):
    with pytest.raises(ConfigError, match="2 steps in a row .*; the last checkpoint is none in"):
        train(tmp_path, Failing("loss", np.nan, 0, 1), steps=2, max_bad_steps=10, checkpoint_every=2)


def test_many_names_are_cut(tmp_path, capsys):
    train(tmp_path, Failing("loss", np.nan, 1, names=lambda step: [f"{i}.mp4" for i in range(560)]), steps=2)
    assert "14.mp4, 15.mp4 and 544 more\n" in capsys.readouterr().out


def test_what_is_not_finite_is_never_committed(tmp_path):
    """Whatever made it so: here the weights themselves break after they were updated."""

    class Breaking(Stub):
        def validate(self, ema, step, writer):
            if step == 4:
                self.state.master["w"].assign_value(backend.tensor(np.float32([1, np.nan, 1])))
            return super().validate(ema, step, writer)

        def first_state(self):
            self.state = super().first_state()
            return self.state

    with pytest.raises(DataError, match="array params/w has numbers that are not finite.*; step 2 is still there"):
        train(tmp_path, Breaking())
    assert checkpoint.latest(tmp_path / "checkpoints") == 2
    assert np.isfinite(checkpoint.load(tmp_path / "checkpoints")[0]["params"]["w"]).all()


# ---- signals


# Python's handler runs as after signal.raise_signal. That would not do for SIGINT: MindSpore puts a handler of its own below
# Python's whenever a graph runs, which sends SIGTERM instead.
comes = _thread.interrupt_main


class Signalled(Stub):
    """A signal comes within a step; `after` is what is done then."""

    def __init__(self, signum, step, after=lambda: None, **changes):
        super().__init__(**changes)
        self.signum, self.step, self.after = signum, step, after

    def micro_batches(self, step):
        if step == self.step:
            comes(self.signum)
            self.after()
        return super().micro_batches(step)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_its_step_which_is_saved(tmp_path, capfd, signum, code):
    ended = train(tmp_path / "whole", Stub())
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "cut", Signalled(signum, 4))
    assert stopped.value.code == code and [signal.getsignal(each) for each in signals.SIGNALS] == before
    folder = tmp_path / "cut" / "checkpoints"
    assert checkpoint.latest(folder) == 5
    said = capfd.readouterr()
    assert said.out.endswith(f"stub: step 5 of 7 is saved in {folder}; the same command continues from it\n")
    assert "a second signal ends at once" in said.err
    resumed = Stub()
    assert train(tmp_path / "cut", resumed) == ended and resumed.steps == [5, 6]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    found, expected = (checkpoint.load(tmp_path / run / "checkpoints")[0] for run in ("cut", "whole"))
    for tree, values in expected.items():
        np.testing.assert_array_equal(found[tree]["w"], values["w"], err_msg=tree)


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch):
    class Ended(Exception):
        pass

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(stop.os, "_exit", end)
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    with pytest.raises(Ended, match="130"):
        train(tmp_path, Signalled(signal.SIGTERM, 1, lambda: comes(signal.SIGINT)))
    assert [signal.getsignal(each) for each in signals.SIGNALS] == before
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")  # to a rank the scheduler and the launcher both send it
    with pytest.raises(Stopped):
        train(tmp_path, Signalled(signal.SIGTERM, 1, lambda: comes(signal.SIGTERM)))


def test_a_signal_in_the_last_step_changes_nothing(tmp_path):
    train(tmp_path, Signalled(signal.SIGTERM, 6))
    assert checkpoint.latest(tmp_path / "checkpoints") == 7


def test_an_ignored_signal_stays_ignored_and_other_threads_see_none(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.requests() as asked:
            comes(signal.SIGINT)
            assert asked == {"SIGINT": 0.0, "SIGTERM": 0.0}
    finally:
        signal.signal(signal.SIGINT, before)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, tmp_path, Stub()).result()
    assert checkpoint.latest(tmp_path / "checkpoints") == 7


# ---- settings that change from run to run


def cosine(steps, **optim):
    config = settings(steps=steps)
    config.optim.update(schedule="cosine", final_learning_rate=0.01, **optim)
    return config


def test_another_rate_on_resuming_is_told(tmp_path, capsys):
    loop.train(Run(cosine(4), tmp_path), Stub().task())
    loop.train(Run(cosine(4), tmp_path), Stub().task())
    assert "learning rate" not in capsys.readouterr().out
    loop.train(Run(cosine(8), tmp_path), Stub().task())
    rate = optim.learning_rate(cosine(8).optim, 4, 8)
    said = "optim or train.steps changed: the learning rate of step 4 was 0.01 and is "
    assert f"{said}{rate:g}\n" in capsys.readouterr().out and rate > 0.04
    assert next(line for line in lines(tmp_path) if line["step"] == 6)["stub/lr"] < rate


def test_an_average_that_is_turned_on_starts_from_the_weights_and_one_turned_off_is_dropped(tmp_path, capsys):
    def run(steps, decay):
        config = settings(steps=steps)
        config.ema.decay = decay
        stub = Stub()
        stub.layout = stub.layout._replace(averaged=bool(decay))
        loop.train(Run(config, tmp_path), stub.task())
        return checkpoint.load(tmp_path / "checkpoints")[0]

    assert run(3, 0.0).keys() == {"params", "opt/m", "opt/v"}
    before = checkpoint.load(tmp_path / "checkpoints")[0]["params"]["w"]
    capsys.readouterr()
    found = run(4, 0.25)
    assert "it has no average of the weights, which starts from them now" in capsys.readouterr().out
    np.testing.assert_allclose(found["ema"]["w"], 0.25 * before + 0.75 * found["params"]["w"], rtol=1e-6)
    assert run(5, 0.0).keys() == {"params", "opt/m", "opt/v"}


@pytest.mark.parametrize("validates", [True, False])
def test_the_plateau_rule_acts_on_the_score_and_is_in_the_checkpoint(tmp_path, capsys, validates):
    config = settings(steps=6, log_every=1, validate_every=1)
    config.optim.plateau = dict(factor=0.5, patience=2, min_delta=100.0, min_learning_rate=0.03)
    changes = {} if validates else {"validate": None}
    loop.train(Run(config, tmp_path), Stub(**changes).task())
    rates = [line["stub/lr"] for line in lines(tmp_path) if "stub/lr" in line]
    # The first score is better than infinity; every second one after it halves the rate, down to the floor.
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.03] if validates else [0.1] * 6)
    meta = checkpoint.load(tmp_path / "checkpoints")[1]
    assert meta["plateau"]["factor"] == (0.25 if validates else 1.0)
    assert ("optim.plateau cannot act" in capsys.readouterr().out) != validates
    assert loop.resume(config, tmp_path / "checkpoints", Stub().task())[2]["plateau"] == meta["plateau"]


def test_what_is_exported_is_said_at_the_end(tmp_path, capsys):
    def export(ema):
        np.save(tmp_path / "w.npy", ema["w"].asnumpy())
        return tmp_path / "w.npy"

    train(tmp_path, Stub(export=export))
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), checkpoint.load(tmp_path / "checkpoints")[0]["ema"]["w"])
    assert f"stub: 7 steps done; averaged weights in {tmp_path}/w.npy, checkpoints in" in capsys.readouterr().out


def test_a_long_table_of_parameters_goes_to_a_file(tmp_path):
    said = loop.parameter_table({f"blocks/{i}/q": (4096, 4096) for i in range(61)}, tmp_path)
    assert said.startswith("parameters: Total: 1,023,410,176 ") and str(tmp_path / "parameters.txt") in said
    assert "| blocks/60/q | (4096, 4096) | float32 | 16,777,216 |" in (tmp_path / "parameters.txt").read_text()
