"""One training step of the transformer: the flow-matching loss, its gradients, and their exchange between ranks."""

from collections.abc import Callable, Mapping
from typing import Any

import mindspore as ms
from mindspore import ops

from moviegen.errors import ConfigError
from moviegen.models import flow
from moviegen.models.transformer import block, model, stages
from moviegen.models.transformer.model import Params, Text
from moviegen.models.transformer.shapes import recomputed
from moviegen.nn import backend, layerwise, tree
from moviegen.parallel import zero
from moviegen.parallel.comm import LOCAL, Comm


def loss_and_grads(
    params: Mapping[str, Any],
    cfg: Any,
    latents: Any,
    noise: Any,
    t: Any,
    text: Text,
    comm: Comm = LOCAL,
    recompute: str | int = "all",
    note: Callable[[ms.Tensor], Any] | None = None,
) -> tuple[ms.Tensor, Params]:
    """Flow-matching loss, the mean squared error of the velocity, and its gradient for every parameter.

    latents and noise (b c t h w), t (b,), text as in `model.apply`: this rank's samples. Of the blocks to `recompute`
    (`shapes.recomputed`) only the inputs are kept for the way back, of others those of their parts. Both results are those
    of the batch of all ranks; gradients are shards at ZeRO stage 2 and 3. `note` gets what each of this rank's samples adds
    to the loss, (b,).
    """
    params, latents, t, text, mask = model.check(params, cfg, latents, t, text, comm)
    noise = backend.tensor(noise)
    if noise.shape != latents.shape:
        raise ConfigError(f"noise has shape {noise.shape}, latents {latents.shape}: expected the same")
    stage = stages.build(cfg, latents.shape, bool(mask), comm)
    context_of, _ = stages.build_text(cfg, bool(mask))
    reduce = comm.reducer()
    noisy, target = flow.interpolate(latents, noise, t), flow.target(latents, noise)

    weights = zero.by_layer(params, comm.all_gather, cfg.num_layers, back=True)
    of_latents, of_text = model.split(weights())
    x, pos, time, modulation = layerwise.run(stage.start, of_latents, noisy, t)
    context = layerwise.run(context_of, of_text, *text, *mask)
    del of_latents, of_text

    def there(i, *inputs):
        if i in again:
            out = layerwise.run(stage.block, weights(), *inputs)
            return out, lambda p, dx: layerwise.pull(stage.block, p, inputs, (dx,), wrt=4)
        return layerwise.compose(block.compose, stage.parts, weights(), *inputs, wrt=4)

    again, pulls = recomputed(recompute, cfg.num_layers), []
    for i in range(cfg.num_layers):
        x, pull = there(i, x, pos, modulation, context, *mask[:1])
        pulls.append(pull)
    (loss, each), dfinal, (dx, dtime) = layerwise.value_and_grad(
        stage.loss, weights(), x, time, target, wrt=2, aux=True
    )
    if note is not None:
        note(each)
    del x, pull  # they hold what the last block kept, until it is done with

    grads = reduce(tree.join({"final": dfinal}))
    shared = [ops.zeros_like(pos), ops.zeros_like(modulation), ops.zeros_like(context)]
    for i in reversed(range(cfg.num_layers)):
        dblock, (dx, *dshared) = pulls.pop()(weights(), dx)
        grads |= reduce(tree.join({f"blocks/{i}": dblock}))
        del dblock  # or it would be there beside the next block's
        shared = [total + more for total, more in zip(shared, dshared, strict=True)]
    dpos, dmodulation, dcontext = shared
    of_latents, of_text = model.split(weights())
    dlatents, _ = layerwise.pull(stage.start, of_latents, (noisy, t), (dx, dpos, dtime, dmodulation), wrt=0)
    dtext, _ = layerwise.pull(context_of, of_text, (*text, *mask), (dcontext,), wrt=0)
    return comm.all_reduce(loss), grads | reduce(dlatents | dtext, last=True)
