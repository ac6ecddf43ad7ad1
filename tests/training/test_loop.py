"""The loop by itself, around three numbers that are drawn to a target."""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.nn import backend
from moviegen.parallel.mesh import ONE
from moviegen.runner import Run
from moviegen.storage import checkpoint
from moviegen.storage.writers import read_metrics
from moviegen.training import loop, state as states


def settings(**train_settings):
    train = dict(steps=7, log_every=3, validate_every=4, checkpoint_every=2)
    train |= dict(keep_checkpoints=9, keep_every=0, keep_best=False) | train_settings
    optim = dict(learning_rate=0.1, schedule="constant", warmup_steps=0, betas=(0.9, 0.99), eps=1e-8)
    optim |= dict(weight_decay=0.0, no_decay="", clip_norm=1.0)
    return ConfigDict(dict(optim=optim, ema=dict(decay=0.9), train=train))


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


def lines(workdir):
    return [{key: value for key, value in line.items() if key != "time"} for line in read_metrics(workdir)]


def test_it_logs_validates_and_saves_when_due_and_at_the_end(tmp_path, capsys):
    stub = Stub()
    logged, validated = train(tmp_path, stub)
    assert stub.started == 1 and stub.steps == list(range(7)) and stub.validated == [4, 7]
    found = lines(tmp_path)
    assert [line["step"] for line in found if "stub/loss" in line] == [3, 6, 7]
    assert [line["step"] for line in found if "stub/distance" in line] == [4, 7]
    assert all(line.keys() >= {"stub/twice", "stub/norm", "stub/lr"} for line in found if "stub/loss" in line)
    assert logged == {"loss": found[-2]["stub/loss"], "twice": found[-2]["stub/twice"]}
    assert validated == {"distance": found[-1]["stub/distance"]}
    folder = tmp_path / "checkpoints"
    metas = {step: checkpoint.load(folder, step)[1] for step in (2, 4, 6, 7)}
    assert [meta["score"] for meta in metas.values()] == [None, -4.0, None, -7.0]
    assert metas[7] == {"step": 7, "score": -7.0, "plateau": None, "samples_seen": 14}
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


def test_losses_and_gradients_are_the_mean_over_micro_batches():
    stub = Stub()
    losses, grads = loop.loss_and_grads(stub.task(), {"w": backend.tensor(np.zeros(3, np.float32))}, 5)
    assert float(losses["loss"]) == (16 + 36) / 2
    np.testing.assert_array_equal(grads["w"].asnumpy(), [-5.0] * 3)


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path):
    def diverging(params, inputs, step):
        losses, grads = Stub().loss_and_grads(params, inputs, step)
        return {key: value / 0.0 if step == 2 else value for key, value in losses.items()}, grads

    with pytest.raises(FloatingPointError, match="the loss of step 2 is inf; the last checkpoint is in"):
        train(tmp_path, Stub(loss_and_grads=diverging), checkpoint_every=3)
    assert checkpoint.latest(tmp_path / "checkpoints") is None


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
    assert loop.resume(config, tmp_path / "checkpoints", Stub().task())[2] == meta["plateau"]


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
