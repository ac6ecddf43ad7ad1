"""Every job that computes, in float16: what a card computes in bfloat16, where types that do not fit break first.

From prompts and videos to samples, each job on what those before it have left.
"""

import math

import numpy as np
import pytest

import moviegen
from experiments import common, tae as tae_experiment
from moviegen import config as configs, runner, settings
from moviegen.data import video
from moviegen.models.tae import model as tae
from moviegen.storage import safetensors_io
from tests.text import tiny_encoders

CAPTIONS = {
    "a.mp4": "a red circle moves left",
    "b.mp4": 'a blue square rests, and "OPEN" is written on it',
    "c.mp4": "x",
}
COMPUTING = [job for job in settings.NEEDS if {"model", "tae", "text"} & set(settings.NEEDS[job].split())]
# Some compute nothing; training/test_autoencoder.py and jobs/test_demo.py have the others.
ELSEWHERE = {"fetch_text_encoder", "average_weights", *runner.ANY_MESH, "train_tae", "demo"}
TAE = common.tae("tiny", base_channels=4, channel_multipliers=(1, 1, 1, 1), norm_groups=2)


def in_float16(config):
    """With every dtype that something computes in."""
    keys = [key for key in configs.flat(config) if key.endswith("compute_dtype") or key == "text.dtype"]
    return configs.apply_overrides(config, dict.fromkeys(keys, "float16"))


def autoencoder(root):
    config = tae_experiment.get_config(tiny=True)
    config.tae = TAE
    config.data.update(height=16, width=16)
    config.evaluate.update(weights=str(root / "tae.safetensors"), video_folder=str(root / "videos"))
    config.evaluate.update(num_frames=8, max_clips=1, linear_baseline=False)
    return in_float16(config)


def generator(root):
    config = common.shrink(common.stage("1b", 2))
    config.tae = TAE
    config.model.update(hidden_size=24, num_layers=2, num_heads=2, ffn_size=32, position_lengths=(1, 1, 1))
    config.model.text_dims = tiny_encoders.WIDTHS
    config.text.update(encoders={name: str(root / "encoders" / name) for name in tiny_encoders.WIDTHS})
    config.data.update(source="csv", csv=str(root / "train.csv"), video_folder=str(root / "videos"))
    config.data.update(height=16, width=16, num_frames=8, image_fraction=0.0, latent_folder=str(root / "latents"))
    config.data.text_folders = {name: str(root / "embeddings" / name) for name in tiny_encoders.WIDTHS}
    config.data.tae_weights = str(root / "tae.safetensors")
    config.sample.update(num_frames=8, height=16, width=16, steps=2, prompts=("a green cross",), batch_size=1)
    config.train.update(steps=2, batch_size=2, validate_every=2)
    config.valid.update(prompts=config.sample.prompts, every=1)
    config.import_weights.path = str(root / "run/export")
    return in_float16(config)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("rehearsal")


@pytest.fixture(scope="module")
def done(root):
    """The metrics of each job."""
    tiny_encoders.make(root / "encoders")
    for name in CAPTIONS:
        pixels = np.random.default_rng(0).integers(0, 255, (8, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        video.write_mp4(root / "videos" / name, pixels, 8)
    rows = [f'{name},"{caption.replace(chr(34), chr(34) * 2)}"' for name, caption in CAPTIONS.items()]
    (root / "train.csv").write_text("\n".join(["video,caption", *rows]))
    safetensors_io.write(tae.init(TAE, 0), root / "tae.safetensors")
    found = {"evaluate": moviegen.run(autoencoder(root), "evaluate", root / "evaluated")}
    for job in ("encode_text", "encode_video", "train", "sample", "export", "import_weights", "look"):
        found[job] = moviegen.run(generator(root), job, root / "run")
    return found


def test_training_samples_its_prompts_as_it_goes(root, done):
    """With text encoders at hand; the last samples are those that --job=sample makes of the same weights."""
    folders = ("previews/step-00000001", "previews/step-00000002", "samples")
    _, last, sampled = (video.read(root / "run" / each / "00-a-green-cross.mp4")[0] for each in folders)
    np.testing.assert_array_equal(last, sampled)
    page = (root / "run/samples.html").read_text()
    assert [page.count(text) for text in ("a green cross<", "<video", "step 1<", "step 2<")] == [1, 2, 1, 1]


def test_every_job_that_computes_is_rehearsed(done):
    assert done.keys() == set(COMPUTING) - ELSEWHERE
    for job, metrics in done.items():
        assert metrics and all(map(math.isfinite, metrics.values())), job
