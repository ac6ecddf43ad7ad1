"""Models whose answer is known, in the place of those that a sampling run loads."""

import numpy as np

from moviegen import config as configs
from moviegen.nn import backend
from moviegen.sampling import generate, sampler
from moviegen.storage import checkpoint

SHAPE = (2, 1, 2, 2)
MEANS = {"shift": (0.5, -1.0), "scale": (2.0, 4.0)}


def config():
    made = configs.load("experiments/tiny.py:quick").unlock()
    made.tae.latent_channels = 2
    made.sample.update(height=16, width=16, num_frames=4, batch_size=2, steps=3)
    made.sample.prompts = ("a red circle moves left", "a blue square", "a green cross moves up")
    return made


def answer_with(monkeypatch, velocity):
    """Puts velocity(x, t, number of the text), all numpy (b ...), in the transformer's place."""

    def attended(params, cfg, text, batch, comm):
        return text["ul2"][0].asnumpy()[:, :1, :1, None, None]

    def answer(params, cfg, x, t, number, comm):
        return backend.tensor(velocity(x, np.reshape(t, (-1, 1, 1, 1, 1)), number).astype(np.float32))

    monkeypatch.setattr(generate.transformer, "attended", attended)
    monkeypatch.setattr(generate.transformer, "velocity", answer)


def install(monkeypatch, workdir):
    """A checkpoint in `workdir`, a transformer that leaves the noise alone, a decoder that notes what it is given."""
    meta = {"latent_shift": list(MEANS["shift"]), "latent_scale": list(MEANS["scale"])}
    checkpoint.save(workdir / "checkpoints", 7, {"ema": {"w": np.ones(1, np.float32)}}, meta)
    seen = []

    def stream(params, cfg, latents, num_frames, group):
        seen.append(latents.asnumpy())
        yield np.full((len(latents), 3, num_frames, 16, 16), float(len(seen)) / 10, np.float32)

    answer_with(monkeypatch, lambda x, t, number: 0 * x)
    monkeypatch.setattr(sampler.transformer, "shapes", lambda cfg: {"w": (1,)})
    monkeypatch.setattr(sampler.tae_tiles, "stream", stream)
    monkeypatch.setattr(sampler.tae_weights, "load", lambda path, cfg: {})
    monkeypatch.setattr(sampler.tae_weights, "configured", lambda config: "weights")
    return seen
