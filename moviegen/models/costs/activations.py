"""What graphs need beside weights: activations that are kept for the way back, and the working set of the largest graph.

Counted by hand over the operations of models/transformer/block.py, nn/layers.py and models/tae/blocks.py, in units of their
largest tensors; those for a CPU are held against measured peaks (tests/models/costs), those for a card are not.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from moviegen.models.costs import work
from moviegen.models.tae import shapes as tae
from moviegen.models.transformer import shapes as transformer
from moviegen.parallel import buckets

FLOAT = 4  # bytes of float32
TEXT_STEP = (
    32  # that texts as long as their budgets are padded to a multiple of: twice moviegen/text/source.py's HALF_STEP
)
SCORES = 1 << 28  # bytes of scores that attention on a CPU has at a time, of nn/layers.py
STATISTICS = 64  # bytes of a token and head that FlashAttentionScore keeps: maxima and sums, 8 float32 of each
# LPIPS' network, of models/lpips.py: values of its parameters, and frames at a time; (width, convolutions) between poolings.
LPIPS_VALUES, LPIPS_FRAMES, LPIPS = 14_716_160, 8, ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class Needs(NamedTuple):
    """Bytes: of what is kept from the way there for the way back, and of the largest graph's own tensors."""

    kept: float
    working: float


def width(cfg: Any) -> int:
    """Bytes of a number in a model's compute dtype."""
    return {"bfloat16": 2, "float16": 2}.get(cfg.get("compute_dtype", "float32"), FLOAT)


class Sequence(NamedTuple):
    """What one rank has of a batch of sequences.

    Args:
        batch: samples.
        tokens: of each on this rank, padding included.
        whole: tokens of each on all ranks together.
        context: text tokens of each.
        embedded: values of the text's embeddings of each.
    """

    batch: int
    tokens: int
    whole: int
    context: int
    embedded: int


def sequences(config: Any, job: str, axes: dict[str, int]) -> list[Sequence]:
    """A micro-batch of each kind of step of a generator's training, or the batch of sampling."""
    ranks, model = axes["data"] * axes["zero"], config.model
    if job == "sample":
        sides = (config.sample[key] // 8 for key in ("height", "width"))
        latents = -(-config.sample.num_frames // 8), *sides
        count = math.prod(n // p for n, p in zip(latents, model.patch_size, strict=True))
        # With guidance both branches go in one batch, but where each half of the mesh computes one; teams share the prompts.
        guided = config.sample.guidance_scale != 1
        halves = guided and axes["data"] == 2
        prompts = -(-max(1, len(config.sample.prompts)) // (axes["zero"] if halves else ranks))
        found = [(min(config.sample.batch_size, prompts) * (2 if guided and not halves else 1), count)]
    else:
        unit = ranks * config.optim.get("accumulate", 1)
        table = buckets.table(config, unit)
        found = [(-(-each.batch_size // unit), buckets.tokens(each, config)) for each in table]
    texts = {name: -(-count // TEXT_STEP) * TEXT_STEP for name, count in work.texts(config).items()}
    embedded = sum(count * model.text_dims[name] for name, count in texts.items())
    return [Sequence(batch, -(-n // axes["sp"]), n, sum(texts.values()), embedded) for batch, n in found]


def generator(cfg: Any, s: Sequence, sp: int, back: bool, recompute: str | int, on_card: bool) -> Needs:
    """A step of the generator's training on this rank or, not `back`, one velocity; `recompute` is `train.recompute`."""
    inner, wide = s.batch * s.tokens * cfg.hidden_size, s.batch * s.tokens * cfg.ffn_size
    text, low = s.batch * s.context, width(cfg)
    # Latents, noise, noisy and target; embeddings; what all blocks see: positions, context, time and modulation.
    given = s.batch * (s.whole * 4 * cfg.latent_channels * math.prod(cfg.patch_size) + s.embedded)
    given += (s.tokens + text + 7 * s.batch) * cfg.hidden_size
    fused = on_card and low < FLOAT  # attention: the kernel takes no float32
    parts = _on_card(cfg, s, sp, inner, wide, text, low) if fused else _on_cpu(cfg, s, sp, inner, wide)
    if not back:  # the text's keys and values of all blocks are there for all steps
        keys = 2 * cfg.num_layers * text * cfg.hidden_size
        return Needs(FLOAT * (given + 2 * inner) + low * keys, parts.forward)
    again = len(transformer.recomputed(recompute, cfg.num_layers))
    # Of a block that is not computed again what its parts are given (models/transformer/block.py): float32 tokens before each
    # of three sums; q, k, v, the text's q, and what self-attention and the MLP add; gate and up; the text's k and v. What
    # the gradients of gate and up need besides is computed again.
    own = 3 * FLOAT * inner + low * (6 * inner + 2 * wide + 2 * text * cfg.hidden_size)
    kept = again * FLOAT * inner + (cfg.num_layers - again) * own
    back = parts.back + (parts.saved if again else 2 * low * wide)
    return Needs(FLOAT * given + kept, max(parts.forward, back, parts.attention_back))


class _Block(NamedTuple):
    """Bytes of one block.

    Args:
        forward: at the peak of its way there.
        saved: what its way back needs of its way there, where it is computed again whole.
        back: at the peak of its way back, in the MLP, besides what is saved.
        attention_back: at that of its way back through self-attention, with what is then left of what was saved.
    """

    forward: float
    saved: float
    back: float
    attention_back: float = 0.0


def _on_card(cfg: Any, s: Sequence, sp: int, inner: int, wide: int, text: int, low: int) -> _Block:
    """With attention in one kernel, which keeps no scores."""
    # float32: the residual and its norm, three times each. Compute dtype: what goes into q, k and v; these; what attention
    # gives, before and after its axes are put in order; what is gated (self-attention, 7). The same of cross-attention
    # without k and v, and its norm (4), which has the text's k and v. The MLP's input and output (2), gate and up joined, and
    # their product.
    saved = 6 * FLOAT * inner + low * (13 * inner + 2 * text * cfg.hidden_size + 3 * wide)
    saved += 2 * STATISTICS * s.batch * s.tokens * cfg.num_heads
    # The MLP: the residual, its norm and their sum; its input, gate and up, and these joined. Self-attention: the residual
    # and its norm; what goes into q, k and v, these, and these after the exchange.
    mlp = 3 * FLOAT * inner + low * (inner + 4 * wide)
    attention = 2 * FLOAT * inner + low * inner * (4 + 3 * (sp > 1))
    # Gradients of the product, of gate and up joined, and split; of their input twice; of the residual, the norm, the sum.
    return _Block(max(mlp, attention), saved, low * (5 * wide + 2 * inner) + 3 * FLOAT * inner)


def _on_cpu(cfg: Any, s: Sequence, sp: int, inner: int, wide: int) -> _Block:
    """In float32 throughout, with the scores of all queries, or of some of them at a time."""
    chunked = FLOAT * s.batch * cfg.num_heads * s.whole**2 // sp > SCORES
    scores, cross = (
        min(SCORES, FLOAT * s.batch * cfg.num_heads * rows * columns)
        for rows, columns in ((s.whole // sp, s.whole), (s.tokens, s.context))
    )
    # As counted by what MindSpore's allocator gave out, at shapes of which each has another part as its largest.
    forward = max(2 * scores + 6 * FLOAT * inner, FLOAT * (4 * wide + 2 * inner))
    saved = FLOAT * (24 * inner + 5 * wide) + cross + (0 if chunked else scores)
    return _Block(forward, saved, FLOAT * 2 * wide, 3 * scores + 9 * FLOAT * inner)


class Link(NamedTuple):
    """A graph of the autoencoder: values that go in and come out of it for one clip."""

    graph: tuple
    inputs: int
    outputs: int


def links(cfg: Any, side: str, frames: int, height: int, wide: int) -> Iterator[Link]:
    """The graphs of the "encoder" or the "decoder" in order, given a clip's pixels."""
    levels = len(cfg.channel_multipliers) - 1
    size = (frames, height, wide)
    if side == "decoder":
        size = -(-frames // 2**levels), height >> levels, wide >> levels
    for block in tae.plan(cfg, side):
        before = math.prod(size)
        if block.kind == "downsample":
            size = -(-size[0] // 2), size[1] // 2, size[2] // 2
        if block.kind == "upsample":
            size = 2 * size[0], 2 * size[1], 2 * size[2]
        ends = block.inputs * before, block.outputs * math.prod(size)
        kind = "head" if block.kind == "residual" else block.kind
        yield Link((kind, block.inputs, block.outputs, size), *ends)
        if block.kind == "residual":
            yield Link((kind, block.outputs, block.outputs, size), ends[1], ends[1])
            if block.inputs != block.outputs:
                yield Link(("conv", block.inputs, block.outputs, size), *ends)


def autoencoder(cfg: Any, batch: int, size: tuple[int, int, int], sides: tuple[str, ...], back: bool) -> Needs:
    """Encoder and decoder on a batch of clips of `size` pixels (t h w), with the way back or without it."""
    low = batch * width(cfg)
    found = [link for side in sides for link in links(cfg, side, *size)]
    most = max(max(link.inputs, link.outputs) for link in found)
    pixels = 3 * math.prod(size) * batch * FLOAT
    if not back:
        return Needs(pixels, 3 * low * most)  # of a norm: its input, centred, and its output
    # Every link's input is kept. A norm and convolution on the way back: input, centred, normed, activated, and of the last
    # two and both convolutions' results the gradients.
    return Needs(low * sum(link.inputs for link in found) + 3 * pixels, 8 * low * most)


def tae_step(cfg: Any, loss: Any, batch: int, size: tuple[int, int, int]) -> Needs:
    """A step of the autoencoder's training on a batch of clips of `size` pixels, with the networks that its losses need."""
    own = autoencoder(cfg, batch, size, ("encoder", "decoder"), True)
    adversarial = loss.get("adversarial")
    others = [_lpips(*size[1:])] if loss.get("lpips") else []
    others += [_discriminator(adversarial, batch, size)] if adversarial and adversarial.weight else []
    return Needs(own.kept, max([own.working, *map(sum, others)]))


def _lpips(height: int, wide: int) -> Needs:
    """Of one picture every convolution's input is kept, of both their features; a convolution's way back has four of them."""
    kept, most, inputs = 0, 0, 3
    for level, (outputs, count) in enumerate(LPIPS):
        pixels = (height >> level) * (wide >> level)
        kept += pixels * (inputs + (count + 1) * outputs)
        most, inputs = max(most, 4 * pixels * outputs), outputs
    return Needs(FLOAT * LPIPS_FRAMES * kept, FLOAT * LPIPS_FRAMES * most)


def _discriminator(cfg: Any, batch: int, size: tuple[int, int, int]) -> Needs:
    """Of originals and reconstructions every block's input is kept."""
    kept = most = 0
    for block in tae.discriminator_plan(cfg):
        inputs, before = block.inputs * math.prod(size), math.prod(size)
        size = tuple(-(-n // (2 if axis or cfg.dims == 3 else 1)) for axis, n in enumerate(size))
        kept, most = kept + 2 * inputs, max(most, 8 * max(inputs, block.outputs * before // 4))
    return Needs(FLOAT * batch * kept, FLOAT * batch * most)
