"""Compiles the graphs of a generator's training before its first step, so that no step waits for one later."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moviegen.models.transformer import model as transformer, shapes, step as transformer_step
from moviegen.nn import backend
from moviegen.parallel import buckets
from moviegen.parallel.buckets import Bucket
from moviegen.parallel.comm import Comm
from moviegen.parallel.mesh import Mesh
from moviegen.text import source

Tree = Mapping[str, Any]
WORTH_IT = 10  # steps for each case: a shorter run is over before it has met them all


class Case(NamedTuple):
    """A micro-batch: its bucket, samples on this rank, what its texts are padded to by encoder, tokens of the context."""

    bucket: Bucket
    samples: int
    lengths: dict[str, int]
    context: int


def cases(config: Any, mesh: Mesh, used: Sequence[Bucket]) -> list[Case]:
    """The fewest micro-batches of which every graph of the buckets `used` is in one."""
    unit, found, seen = mesh.batch.size * config.optim.accumulate, [], set()  # graphs by what they differ in
    for bucket in used:
        samples = max(1, bucket.batch_size // unit)
        for lengths in source.possible_lengths(config):
            places = sum(lengths.values())
            # The toy's captions fit into half of their places.
            for context in transformer.context_lengths(places)[: 1 if source.is_toy(config) else 2]:
                graphs = {(samples, bucket.latents), (samples, places, context)}
                graphs.add((samples, "block", buckets.tokens(bucket, config), context))
                if not graphs <= seen:
                    found.append(Case(bucket, samples, lengths, context))
                    seen |= graphs
    return found


def compile_all(
    config: Any,
    mesh: Mesh,
    exchange: Comm,
    used: Sequence[Bucket],
    validates: bool,
    name: str,
    params: Tree,
    steps: int,
) -> None:
    """Takes a model of one layer through every case: steps and, where the run `validates`, velocities, of zeros.

    It has the parameters of the first layer, of the first two where not all are computed again, and nothing of it is kept.
    A run of one case, or of fewer than WORTH_IT steps for each, is left to compile what it meets. Every rank calls it.
    """
    found, said = cases(config, mesh, used), mesh.world.rank == 0
    if not 1 < len(found) <= steps / WORTH_IT:
        return
    recompute, begun, before = config.train.recompute, time.monotonic(), backend.compiled()
    model = config.model.copy_and_resolve_references().unlock()
    model.num_layers = min(model.num_layers, 2 if len(shapes.recomputed(recompute, 2)) == 1 else 1)
    own = {path: params[path] for path in shapes.shapes(model)}
    if said:
        print(f"{name}: {told(config, found)}", flush=True)
    for number, case in enumerate(found, 1):
        if said:
            print(
                f"{name}: compiling {number} of {len(found)}: {case.bucket.name}, text of {case.context} tokens",
                flush=True,
            )
        latents = np.zeros((case.samples, model.latent_channels, *case.bucket.latents), np.float32)
        t, text = np.zeros(case.samples, np.float32), zero_text(config, case)
        transformer_step.loss_and_grads(own, model, latents, latents, t, text, exchange, recompute)
        if validates:
            transformer.apply(own, model, latents, t, text, exchange)
    if said:
        seconds = time.monotonic() - begun
        print(f"{name}: {backend.compiled() - before} graphs compiled in {seconds:.0f} s", flush=True)


def told(config: Any, found: list[Case]) -> str:
    """The shapes that graphs are compiled for, in a line."""
    shapes_of = {case.bucket: f"{case.samples} of {case.bucket.name}" for case in found}
    texts = sorted({case.context for case in found})
    blocks = {(buckets.tokens(case.bucket, config), case.samples, case.context) for case in found}
    return (
        f"{len(shapes_of)} shapes ({', '.join(shapes_of.values())}; on each rank), texts of {', '.join(map(str, texts))} "
        f"tokens: a block has {len(blocks)} graphs each way, to be compiled before the first step"
    )


def zero_text(config: Any, case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Embeddings of texts with so many tokens, and the masks, as text.source gives them."""
    at, text = 0, {}
    for name, length in case.lengths.items():
        mask = np.arange(at, at + length) < case.context
        text[name] = (
            np.zeros((case.samples, length, config.model.text_dims[name]), np.float32),
            np.broadcast_to(mask, (case.samples, length)),
        )
        at += length
    return text
