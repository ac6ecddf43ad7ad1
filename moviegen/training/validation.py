"""The generator's held-out loss: noise and times are always the same, every sample counts once, the ranks share the work."""

from typing import Any

import numpy as np

from moviegen.data import feeding, pipeline
from moviegen.models import flow
from moviegen.models.transformer import model as transformer
from moviegen.nn import backend
from moviegen.parallel.comm import Comm
from moviegen.parallel.mesh import Group

TIMES = tuple(np.linspace(0, 1, 12)[1:-1])  # ten times without the ends, as the seed's


def heldout_loss(params: Any, config: Any, data: pipeline.Data, exchange: Comm, piece: Group) -> dict[str, float]:
    """Flow-matching loss, a mean over the held-out samples; by time, and by bucket where they are of several.

    The pieces of the ranks share the samples, in batches as large as those that are trained on.
    """
    names = [each.name for each in data.buckets]
    found = np.zeros((len(names), len(TIMES), 2))  # sum and count
    batches = pipeline.heldout_batches(data, TIMES, config.optim.accumulate, piece)
    for batch, counted in feeding.ahead(batches, feeding.of(config.data)[1]):
        noisy = flow.interpolate(batch.latents, batch.noise, batch.t)
        velocity = transformer.apply(params, config.model, noisy, batch.t, batch.text, exchange).asnumpy()
        error = (velocity - flow.target(batch.latents, batch.noise)) ** 2
        time = np.argmin(np.abs(np.float32(TIMES) - batch.t[0]))
        found[names.index(batch.bucket.name), time] += (
            error[:counted].mean((1, 2, 3, 4), dtype=np.float64).sum(),
            counted,
        )
    # The ranks of a sequence count each sample as often as there are of them, in sums and counts.
    found = exchange.all_reduce(backend.tensor(found)).asnumpy().astype(np.float64)
    metrics = {"heldout_loss": _mean(found)}
    metrics |= {f"heldout_loss/t{t:.2f}": _mean(found[:, i]) for i, t in enumerate(TIMES)}
    there = {name: of for name, of in zip(names, found, strict=True) if of[..., 1].any()}
    return metrics | ({f"heldout_loss/{name}": _mean(of) for name, of in there.items()} if len(there) > 1 else {})


def _mean(pairs: np.ndarray) -> float:
    total, count = pairs.reshape(-1, 2).sum(0)
    return float(total / count)
