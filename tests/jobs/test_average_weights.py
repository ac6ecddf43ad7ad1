"""The mean of several checkpoints as one, and what does not go together."""

import re

import numpy as np
import pytest

from moviegen.errors import ConfigError, DataError
from moviegen.jobs import average_weights, export
from moviegen.models.transformer import model as transformer
from moviegen.parallel.mesh import ONE
from moviegen.runner import Run
from moviegen.storage import checkpoint, safetensors_io, trained
from moviegen.training import generator, state as states
from tests.jobs.test_export import META, settings


def make(folder, seed, step=5, average=True, **meta):
    """Saves weights as of a training, and returns those that count: the average, where there is one."""
    rng = np.random.default_rng(seed)
    shapes = transformer.shapes(settings().model)
    trees = {
        tree: {path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}
        for tree in ("params", "ema")[: 1 + average]
    }
    checkpoint.save(folder, step, trees, META | meta)
    return trees["ema" if average else "params"]


def of(*checkpoints, **values):
    config = settings()
    config.average_weights.update(checkpoints=tuple(map(str, checkpoints)), **values)
    return config


@pytest.mark.parametrize("weights", [(), (1, 1, 2)])
def test_the_mean_of_a_run_a_step_and_an_export(tmp_path, weights):
    one = make(tmp_path / "one" / "checkpoints", 1)
    two = make(tmp_path / "two", 2, 3, average=False)
    make(tmp_path / "two", 3, 4)
    three = make(tmp_path / "three", 4)
    config = settings(checkpoint=str(tmp_path / "three"))
    export.run(Run(config, tmp_path / "three"))
    sources = tmp_path / "one", tmp_path / "two" / "step-00000003", tmp_path / "three" / "export"
    config = of(*sources, weights=weights)
    for _ in range(2):  # the second takes the place of the first
        assert average_weights.run(Run(config, tmp_path / "mean")) == {"checkpoints": 3, "arrays": len(one)}
    trees, meta = checkpoint.load(tmp_path / "mean" / "checkpoints")
    shares = np.array(weights or (1, 1, 1)) / sum(weights or (1, 1, 1))
    assert trees.keys() == {"params"} and {key: meta[key] for key in META if key != "position"} == {
        key: META[key] for key in META if key != "position"
    }
    assert [(each["step"], each["weight"]) for each in meta["average_of"]] == list(zip((5, 3, 5), shares, strict=True))
    for path, found in trees["params"].items():
        arrays = [each[path].astype(np.float64) for each in (one, two, three)]
        np.testing.assert_array_equal(found, sum(w * x for w, x in zip(shares, arrays, strict=True)).astype(np.float32))

    config.train.init_from = str(tmp_path / "mean")  # as a start, of another run or of a run in its workdir
    layout = states.Layout(transformer.shapes(config.model), ONE, 3)
    resumed, _ = states.restore(tmp_path / "mean" / "checkpoints", 0, layout)
    for state in (generator.first_state(config, layout), resumed):
        for path, found in trees["params"].items():
            np.testing.assert_array_equal(state.master[path].asnumpy(), found)
            np.testing.assert_array_equal(state.ema[path].asnumpy(), found)
            assert not state.moments["v"][path].asnumpy().any()


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"latent_scale": [1.9] * 16}, "two (ema of step 5) and .*one (ema of step 5) know latents of other scales"),
        (
            {"trained_with": META["trained_with"] | {"tae_weights": "other"}},
            "one (ema of step 5) were trained with .*tae_weights",
        ),
    ],
)
def test_what_was_trained_otherwise_is_named(tmp_path, meta, words):
    make(tmp_path / "one", 1)
    make(tmp_path / "two", 2, **meta)
    with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace(")", r"\)")):
        average_weights.run(Run(of(tmp_path / "one", tmp_path / "two"), tmp_path / "mean"))
    assert not (tmp_path / "mean").exists()


def test_what_cannot_be_averaged(tmp_path):
    make(tmp_path / "one" / "checkpoints", 1)
    pair = tmp_path / "one", tmp_path / "one"
    with pytest.raises(ConfigError, match="average_weights.checkpoints is .*expected two or more"):
        average_weights.run(Run(of(tmp_path / "one"), tmp_path / "mean"))
    with pytest.raises(ConfigError, match="average_weights.weights has 3 numbers for 2 average_weights.checkpoints"):
        average_weights.run(Run(of(*pair, weights=(1, 2, 3)), tmp_path / "mean"))
    with pytest.raises(ConfigError, match="one/checkpoints holds step 5 of a training.*take another --workdir"):
        average_weights.run(Run(of(*pair), tmp_path / "one"))
    assert checkpoint.latest(tmp_path / "one") == 5
    config = of(*pair)
    config.model.position_lengths = (4, 4, 9)
    with pytest.raises(ConfigError, match=r"wrong shape: position/w is \(4, 24\), expected \(9, 24\); .*one \(ema of"):
        average_weights.run(Run(config, tmp_path / "mean"))


def test_a_number_that_is_not_finite_leaves_no_checkpoint(tmp_path):
    make(tmp_path / "one", 1)
    arrays = {path: np.asarray(array) for path, array in trained.find(tmp_path / "one").arrays.items()}
    arrays["patch"] = np.full_like(arrays["patch"], np.nan)
    file = safetensors_io.write(arrays, tmp_path / "bad.safetensors", metadata=META)
    with pytest.raises(DataError, match=re.escape(f"{file}: patch has numbers that are not finite")):
        average_weights.run(Run(of(tmp_path / "one", file), tmp_path / "mean"))
    assert not list((tmp_path / "mean" / "checkpoints").iterdir())
