"""Sampling with models whose answer is known: Euler, guidance, batches, statistics and files."""

import weakref

import numpy as np
import pytest

from moviegen import config as configs
from moviegen import flow, streams
from moviegen.data import video
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import sample
from moviegen.nn import backend
from moviegen.parallel.mesh import ONE, Group, Mesh
from moviegen.runner import Run
from moviegen.storage import checkpoint
from moviegen.streams import Stream

SHAPE = (2, 1, 2, 2)
ALONE = sample.share(ONE, True)
MEANS = {"shift": (0.5, -1.0), "scale": (2.0, 4.0)}


@pytest.fixture
def config():
    config = configs.load("experiments/tiny.py:quick").unlock()
    config.tae.latent_channels = 2
    config.sample.update(height=16, width=16, num_frames=4, batch_size=2, steps=3)
    config.sample.prompts = ("a red circle moves left", "a blue square", "a green cross moves up")
    return config


@pytest.fixture
def four_steps(config):
    config.sample.update(guidance_scale=3.0, schedule="linear", steps=4)
    return config


def text_of(values):
    """Text whose only content is one number for each sample."""
    values = np.array(values, np.float32).reshape(-1, 1, 1)
    return {"ul2": (values, np.ones(values.shape[:2], bool))}


def generate(config, texts, empty, indices, by=ALONE):
    return sample.generate({}, config, text_of(texts), text_of([empty]), SHAPE, indices, by)


def answer_with(monkeypatch, velocity):
    """Puts velocity(x, t, number of the text), all numpy (b ...), in the transformer's place."""

    def apply(params, cfg, x, t, text, comm):
        number = text["ul2"][0].asnumpy()[:, :1, :1, None, None]
        return backend.tensor(velocity(x.asnumpy(), np.reshape(t, (-1, 1, 1, 1, 1)), number).astype(np.float32))

    monkeypatch.setattr(sample.transformer, "apply", apply)


def test_guidance_meets_the_text_and_the_empty_text(monkeypatch, four_steps):
    """A constant velocity v adds exactly v: conditional 5 and 7, unconditional 1, guided 1 + 3 (v - 1)."""
    answer_with(monkeypatch, lambda x, t, number: number + 0 * x)
    four_steps.sample.guidance_scale = 0.0
    plain = generate(four_steps, [5, 7], 0, [0, 1])
    four_steps.sample.guidance_scale = 3.0
    made = generate(four_steps, [5, 7], 1, [0, 1])
    np.testing.assert_allclose(made - plain, np.reshape([13.0, 19.0], (2, 1, 1, 1, 1)) + 0 * made, atol=1e-5)


def test_without_guidance_the_empty_text_is_not_asked(monkeypatch, four_steps):
    batches = []
    answer_with(monkeypatch, lambda x, t, number: batches.append(len(x)) or number + 0 * x)
    four_steps.sample.guidance_scale = 1.0
    generate(four_steps, [5, 7], 1, [0, 1])
    assert set(batches) == {2} and len(batches) == four_steps.sample.steps


def test_two_ranks_on_the_data_axis_take_a_branch_each(monkeypatch, four_steps):
    """What the two compute without the sum over them adds up to what one rank computes."""
    answer_with(monkeypatch, lambda x, t, number: number + 0 * x)
    whole = generate(four_steps, [5, 7], 1, [0, 1])
    monkeypatch.setattr(sample.collectives, "all_reduce", lambda group: lambda x: x)
    noise, parts = None, []
    for rank in (0, 1):
        by = sample.share(Mesh(data=2, world=Group("", 2, rank), copies=Group("pair", 2, rank)), True)
        assert by[1:6] == (0, 1, rank, rank, 2)
        parts.append(generate(four_steps, [5, 7], 1, [0, 1], by))
    four_steps.sample.guidance_scale = 0.0
    noise = generate(four_steps, [0, 0], 0, [0, 1])
    np.testing.assert_allclose(sum(parts) - 2 * noise, whole - noise, atol=1e-5)


@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 1, 1), (2, 2, 2), (4, 1, 2), (1, 3, 2)])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("tiles", [1, 5])
def test_every_prompt_is_computed_and_decoded_exactly_once(axes, guided, tiles):
    data, zero, sp = axes
    decoded = []
    for rank in range(data * zero * sp):
        mesh = Mesh(*axes, world=Group("", data * zero * sp, rank), sequence=Group("", sp, rank % sp))
        by = sample.share(mesh, guided, tiles)
        assert by.decoders.size == (sp if tiles == 5 else 1)
        for start in range(by.part * 2, 12, 2 * by.parts):  # batches of two of twelve prompts
            decoded += [start, start + 1][by.first :: by.n] if by.decoders.rank == 0 else []
    assert sorted(decoded) == list(range(12))


@pytest.mark.parametrize("schedule", ["linear", "linear_quadratic"])
def test_euler_follows_the_schedule(monkeypatch, four_steps, schedule):
    """dx/dt = x (1 + t): each step multiplies by 1 + dt (1 + t)."""
    four_steps.sample.update(schedule=schedule, guidance_scale=1.0)
    answer_with(monkeypatch, lambda x, t, number: x * (1 + t))
    made = generate(four_steps, [0], 0, [3])
    times = flow.schedule(schedule, four_steps.sample.steps).astype(np.float64)
    factor = np.prod(1 + np.diff(times) * (1 + times[:-1]))
    answer_with(monkeypatch, lambda x, t, number: 0 * x)
    noise = generate(four_steps, [0], 0, [3])
    np.testing.assert_allclose(made, noise * factor, rtol=1e-5)
    assert made.dtype == np.float32


def test_noise_depends_on_seed_and_index_alone(monkeypatch, four_steps):
    answer_with(monkeypatch, lambda x, t, number: 0 * x)

    def noise(seed, indices):
        four_steps.seed = seed
        return generate(four_steps, [0] * len(indices), 0, indices)

    together = noise(0, [0, 1, 2])
    np.testing.assert_array_equal(noise(0, [2, 0]), together[[2, 0]])
    assert not np.allclose(noise(1, [0]), together[:1]) and not np.allclose(together[0], together[1])
    training, _ = flow.draw(0, 1, 0, SHAPE)
    assert not np.allclose(together[1], training)


@pytest.fixture
def toy(monkeypatch, config, tmp_path):
    """A run with a checkpoint, a transformer that leaves the noise alone and a decoder that notes what it is given."""
    meta = {"latent_shift": list(MEANS["shift"]), "latent_scale": list(MEANS["scale"])}
    checkpoint.save(tmp_path / "checkpoints", 7, {"ema": {"w": np.ones(1, np.float32)}}, meta)
    seen = []

    def stream(params, cfg, latents, num_frames, group):
        seen.append(latents.asnumpy())
        yield np.full((len(latents), 3, num_frames, 16, 16), float(len(seen)) / 10, np.float32)

    answer_with(monkeypatch, lambda x, t, number: 0 * x)
    monkeypatch.setattr(sample.transformer, "shapes", lambda cfg: {"w": (1,)})
    monkeypatch.setattr(sample.tae_tiles, "stream", stream)
    monkeypatch.setattr(sample.tae_weights, "load", lambda path, cfg: {})
    monkeypatch.setattr(sample.tae_weights, "configured", lambda config: "weights")
    return seen


def test_samples_come_one_for_each_prompt_whatever_the_batch(toy, config, tmp_path):
    first = [(i, prompt) for i, prompt, _ in sample.sample_videos(Run(config, tmp_path))]
    assert first == list(enumerate(config.sample.prompts))
    config.sample.batch_size = 8
    list(sample.sample_videos(Run(config, tmp_path)))
    assert len(toy) == 6
    np.testing.assert_array_equal(toy[:3], toy[3:])


def test_latents_are_scaled_back_by_the_checkpoints_statistics(toy, config, tmp_path):
    list(sample.sample_videos(Run(config, tmp_path)))
    noise = streams.rng(Stream.SAMPLING_NOISE, config.seed, 1).standard_normal(SHAPE, dtype=np.float32)
    shift, scale = (np.reshape(MEANS[key], (2, 1, 1, 1)) for key in ("shift", "scale"))
    np.testing.assert_allclose(toy[1][0], noise / scale + shift, rtol=1e-6)


def test_files(toy, config, tmp_path, capsys):
    assert sample.run(Run(config, tmp_path)) == {"samples": 3}
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    stems = ["00-a-red-circle-moves-left", "01-a-blue-square", "02-a-green-cross-moves-up"]
    assert names == sorted(stem + suffix for stem in stems for suffix in (".mp4", ".png"))
    frames, fps = video.read(tmp_path / "samples" / (stems[1] + ".mp4"))
    assert frames.shape == (4, 16, 16, 3) and fps == config.sample.fps
    assert abs(frames.astype(int) - (0.2 + 1) * 127.5).max() < 4  # the second video that was decoded
    assert "step 7" in capsys.readouterr().out


def test_a_video_is_written_as_its_pieces_come(tmp_path):
    frames = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3) * 20
    given = []

    def pieces():
        for piece in np.split(frames, [5, 6, 7, 9, 10]):
            assert sum(before() is not None for before in given) <= 3
            piece = piece.copy()
            given.append(weakref.ref(piece))
            yield piece

    base = sample.write(tmp_path, 3, "A dog!", pieces(), 12, 8.0)
    assert base == tmp_path / "03-a-dog" and len(given) == 6
    np.testing.assert_allclose(video.read(base.with_suffix(".mp4"))[0].mean((1, 2, 3)), frames.mean((1, 2, 3)), atol=3)
    sheet = video.read(base.with_suffix(".png"))[0][0]
    assert [int(sheet[0, 18 * i, 0]) // 20 for i in range(8)] == [0, 2, 3, 5, 6, 8, 9, 11]


def test_an_image_is_a_png_alone(toy, config, tmp_path):
    config.sample.num_frames = 1
    sample.run(Run(config, tmp_path))
    assert {path.suffix for path in (tmp_path / "samples").iterdir()} == {".png"}


def test_prompts_of_a_csv_experiment_come_as_files(toy, config, tmp_path):
    config.data.source = "csv"
    names = ("ul2", "metaclip")
    for name in names:
        for i, prompt in enumerate([*config.sample.prompts, "empty"]):
            (tmp_path / name).mkdir(exist_ok=True)
            values = np.full((2 + i, 3), float(i), np.float32)
            np.savez(tmp_path / name / f"{prompt}.npz", text_emb=values, mask=np.ones(2 + i, int))
    with config.unlocked():
        config.data.text_folders = {name: str(tmp_path / name) for name in names}
        config.data.empty_text = {name: str(tmp_path / name / "empty.npz") for name in names}
    text, empty = sample._encode(list(config.sample.prompts), config, ONE)
    assert text["ul2"][0].shape == (3, 64, 3) and empty["ul2"][0].shape == (1, 64, 3)
    np.testing.assert_array_equal(text["metaclip"][1].sum(1), [2, 3, 4])
    assert empty["ul2"][0].max() == 3 and text["ul2"][0][1].max() == 1

    config.sample.prompts = ("a dog",)
    with pytest.raises(DataError, match="a dog.npz: no metaclip embeddings of the prompt 'a dog'"):
        sample.run(Run(config, tmp_path))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompts": ()}, "sample.prompts is empty"),
        ({"height": 24}, "sample.height is 24.*multiple of 16"),
        ({"checkpoint": "nowhere"}, "sample.checkpoint is 'nowhere'.*no checkpoint"),
    ],
)
def test_wrong_settings(toy, config, tmp_path, values, words):
    config.sample.update(values)
    with pytest.raises(ConfigError, match=words):
        sample.run(Run(config, tmp_path))
