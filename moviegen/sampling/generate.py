"""Latents of one batch: Euler steps through the flow from noise, with classifier-free guidance."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moviegen import streams
from moviegen.models import flow
from moviegen.models.transformer import model as transformer
from moviegen.nn import backend
from moviegen.parallel import collectives
from moviegen.parallel.comm import LOCAL, Comm
from moviegen.sampling.assignment import Assignment
from moviegen.streams import Stream
from moviegen.text.source import Embeddings


def noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Returns what the samples of these indices start from, float32 (b, *shape): a function of (seed, index) alone."""
    rngs = [streams.rng(Stream.SAMPLING_NOISE, seed, index) for index in indices]
    return np.stack([rng.standard_normal(tuple(shape), dtype=np.float32) for rng in rngs])


def generate(
    params: Any, config: Any, text: Embeddings, start: np.ndarray, by: Assignment, comm: Comm = LOCAL
) -> np.ndarray:
    """Returns latents (b c t h w), in the transformer's space and float32 like `start`, the noise.

    text: {encoder: (embeddings (b+1 l d), mask (b+1 l))}, last the empty prompt, or any where there is no guidance.
    `config.sample` has steps, schedule and guidance_scale. With guidance the model sees every sample with its prompt and
    with the empty one: in one batch, or each on a half of the mesh, as `by.branch` says.
    """
    settings, count = config.sample, len(start)
    scale = settings.guidance_scale
    prompted, empty = list(range(count)), [count] * count
    both = scale != 1 and by.branch is None  # at scale 1 the empty prompt would count nothing
    rows = prompted + empty if both else empty if by.branch == 1 else prompted
    text = {name: (backend.tensor(values[rows]), mask[rows]) for name, (values, mask) in text.items()}
    context = transformer.attended(params, config.model, text, len(rows), comm)

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        x = np.concatenate([x, x]) if both else x
        times = np.full(len(x), t, np.float32)
        out = transformer.velocity(params, config.model, x, times, context, comm)
        if by.branch is not None:
            out = collectives.all_reduce(by.mesh.replicas)(out * (1 - scale if by.branch else scale))
        out = out.asnumpy()
        return flow.guide(out[:count], out[count:], scale) if both else out

    return flow.euler(velocity, start, flow.schedule(settings.schedule, settings.steps))
