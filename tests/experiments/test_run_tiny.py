"""Every experiment that takes `:tiny` runs its three steps to the end; of each stage one size by default.

What these runs read of their config is noted: a key that nobody reads is a lie.
"""

import fnmatch
import math
import re
from pathlib import Path

import pytest

import moviegen
from experiments import common
from moviegen import config as configs, settings
from tests.experiments import reading

FILES = sorted(p for p in Path(common.__file__).parent.glob("*.py") if re.search("_stage[0-9]|^tae", p.name))
# Shrunk, the sizes are one; the 30B's stage offloads the optimizer and makes no EMA.
DEFAULT = ("1b_stage1", "5b_stage2", "30b_stage3", "tae")
assert set(DEFAULT) <= {p.stem for p in FILES}
# Jobs that are run in the folder of a training as well, to see what they read.
LATER = {
    "1b_stage1": {"sample": {}, "export": {}, "import_weights": {"import_weights.path": "run/export"}},
    "tae": {},
}
# Keys that none of these runs reads -> the files of the package that do, for data, weights or ranks that are not here.
ELSEWHERE = {
    "job": "runner.py",
    "name": "runner.py",
    "train.rank_timeout": "runner.py",  # of several ranks
    "plan.*": "runner.py jobs/plan.py",
    "optim.final_learning_rate": "training/optim.py",  # of a cosine
    "optim.no_decay": "training/optim.py",  # where weight_decay is not 0
    "optim.plateau.patience": "training/optim.py",  # from the second validation on
    "tae.latent_s*": "data/sources.py",  # of latents that come without statistics; in the autoencoder's own files no use
    "data.csv": "data/*.py",
    "data.video_folder": "data/*.py",
    "data.validation_csv": "data/*.py",
    "data.text_folders.*": "text/*.py",
    "data.empty_text.*": "text/*.py",
    "data.max_bad_fraction": "data/*.py",
    "data.allow_outside": "data/captions.py",
    "data.synthetic_fraction": "data/crops.py",  # of source="clips"
    "data.image_batch_size": "data/crops.py",  # of image steps, of which the first three are none
    "data.buckets.*": "parallel/buckets.py data/fit.py",  # where data.buckets.resolution is not 0
    "data.stride": "data/crops.py",  # these three of source="csv"
    "data.resize": "data/crops.py",
    "data.flip": "data/crops.py",
    "text.*": "[tj]*/*.py",  # text/ and jobs/
    "convert.*": "jobs/convert.py",
    "average_weights.*": "jobs/average_weights.py",
    "loss.lpips_weights": "training/autoencoder.py",  # these two where the weight is not 0
    "loss.adversarial.*": "models/tae/shapes.py training/autoencoder.py",
    "runtime.*": "nn/runtime.py",  # on a card
    "evaluate.*": "evaluation/*.py",  # tests/jobs/test_evaluate.py runs it
    "curate.*": "data/*.py jobs/curate.py",  # tests/jobs/test_curate.py runs it
    "look.*": "jobs/look.py",
    "data.metadata": "data/metadata.py",  # of source="csv"
    "valid.every": "training/loop.py",  # where valid.prompts has some
}
# What a job reads besides what `settings.NEEDS` says that it must find.
OPTIONAL = {
    "train": """runtime.* optim.plateau.* data.text_drop_each.* data.fps data.latent_dtype data.num_samples data.buckets.*
        data.tokens_per_batch data.workers data.prefetch valid.* model.* train.*""",
    "train_tae": "runtime.* data.* train.recompute_levels train.linear_start train.profile_steps optim.accumulate loss.*",
    "sample": "runtime.* data.* model.* tae.*",
    "export": "runtime.*",
    "import_weights": "runtime.* data.fps text.*",
}
PACKAGE = Path(moviegen.__file__).parent


def covers(patterns, key):
    return any(fnmatch.fnmatch(key, pattern) for pattern in patterns)


def needed(job, source):
    """Patterns of the keys that a job must find."""
    names = f"{settings.NEEDS[job]} {settings.NEEDS.get(f'{job}/{source}', '')}".split()
    return [pattern for name in names for pattern in (name, f"{name}.*")]


def is_named(key, files):
    """Whether a source mentions a key: its last piece, or the section's where that is the name of an encoder."""
    *_, section, last = ("", *key.split("."))
    name = section if last in ("ul2", "metaclip", "byt5") else last
    sources = [path for pattern in files.split() for path in PACKAGE.glob(pattern)]
    return any(re.search(rf"[.\"']{name}\b", path.read_text(encoding="utf-8")) for path in sources)


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=() if p.stem in DEFAULT else pytest.mark.slow) for p in FILES]
)
def test_tiny_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MindSpore leaves folders where it runs
    config, read = configs.load(f"{path}:tiny"), {}
    with reading.noted() as read[config.job]:
        metrics = moviegen.run(config, workdir=tmp_path / "run")
    assert metrics and all(math.isfinite(value) for value in metrics.values())
    assert sorted(int(p.name.removeprefix("step-")) for p in (tmp_path / "run").rglob("step-*")) == [2, 3]
    for job, overrides in LATER.get(path.stem, {}).items():
        with reading.noted() as read[job]:
            moviegen.run(configs.apply_overrides(config, overrides), job, workdir=tmp_path / "run")
    keys = set(configs.flat(config))
    for job, noted in read.items():
        patterns = needed(job, config.data.source)
        lies = [key for key in keys - noted if key in patterns and not covers(ELSEWHERE, key)]
        assert not sorted(lies), f"--job={job} needs and never reads"
        wanted = [key for key in noted & keys if not covers(patterns + OPTIONAL[job].split(), key)]
        assert not sorted(wanted), f"settings.NEEDS[{job!r}] lacks"
    if path.stem in LATER:
        unread = keys - set().union(*read.values())
        lies = [key for key in unread if not any(covers([p], key) and is_named(key, ELSEWHERE[p]) for p in ELSEWHERE)]
        assert not sorted(lies), "no job reads"
