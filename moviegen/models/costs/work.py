"""What one rank does in one step of the generator: operations, bytes and messages, counted from its settings alone.

Each formula is the sum over the operations of models/transformer/ in their form for Ascend; tests hold them against
counts over compiled graphs (docs/plan.md).
"""

import functools
import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from moviegen.models.transformer import shapes as transformer
from moviegen.parallel import buckets, rules, sharding

VIDEO, IMAGE = "a video", "an image"  # kinds of steps, as `rules.kinds` names them


class Message(NamedTuple):
    """Messages of one kind in a step.

    Args:
        what: what they are for.
        size: bytes of the whole tensors, of which a rank has one of `ranks` parts before or after.
        count: how many there are.
        ranks: how many exchange.
        stride: how far apart these are.
        hidden: whether they travel while the rank computes.
        parts: whether every rank sends each other rank a part of its own (all-to-all).
    """

    what: str
    size: float
    count: float
    ranks: int
    stride: int
    hidden: bool = True
    parts: bool = False

    @property
    def received(self) -> float:
        """Bytes that a rank receives."""
        return self.size * (self.ranks - 1) / self.ranks


class Work(NamedTuple):
    """What one rank does.

    Args:
        products: operations (FLOP) of matrix products, but for those of attention.
        attention: operations of attention's two products and of their gradients.
        convolutions: operations of convolutions.
        traffic: bytes that all operations that are no products read and write in the card's memory.
        host: bytes that travel between the card and the host.
        launches: kernels that are started.
        messages: what is exchanged with other ranks.
    """

    products: float = 0.0
    attention: float = 0.0
    convolutions: float = 0.0
    traffic: float = 0.0
    host: float = 0.0
    launches: float = 0.0
    messages: tuple[Message, ...] = ()

    @property
    def flop(self) -> float:
        """Operations of all products."""
        return self.products + self.attention + self.convolutions


def total(works: Iterable[tuple[float, Work]]) -> Work:
    """The sum of some works, each done so many times."""
    numbers, messages = [0.0] * 6, {}
    for times, work in works:
        numbers = [a + times * b for a, b in zip(numbers, work[:6], strict=True)]
        for m in work.messages:
            key = m._replace(size=0, count=0)
            size, count = messages.get(key, (0.0, 0.0))
            messages[key] = size + times * m.size, count + times * m.count
    return Work(*numbers, tuple(key._replace(size=s, count=c) for key, (s, c) in messages.items()))


def texts(config: Any) -> dict[str, int]:
    """Tokens of a prompt for each encoder: at most its budget, or about what the toy's captions have."""
    budgets = config.text.budgets if "text" in config and config.data.source == "csv" else {}
    return {name: budgets.get(name, 16) for name in transformer.encoders(config.model)}


def block(cfg: Any, samples: int, patches: int, text: int, ranks: int = 1) -> Work:
    """One block's forward on one of so many ranks of a sequence, of `samples` with `patches` and `text` tokens each."""
    d, f, n = cfg.hidden_size, cfg.ffn_size, -(-patches // ranks)
    products = 12 * n * d * d + 4 * text * d * d + 6 * n * d * f  # q k v o, and q o; k v of the text; gate up down
    attention = 4 * n * patches * d + 4 * n * text * d  # a rank has 1/ranks of the heads, of all tokens
    # Bytes for each element, tokens in float32 between products in two bytes: adding positions 12, three norms 24, two
    # modulations 32, casts to the products' dtype 18, heads apart and back 20, three residual sums with gates 58, casts 16;
    # exchanged heads 16; gate and up joined, and SwiGLU, 14 of the wide ones; the text's cast, keys and values 14.
    traffic = n * (d * (180 if ranks > 1 else 164) + 14 * f) + 14 * text * d
    work = Work(products, attention, 0.0, traffic, 0.0, 54.0 / samples)
    messages = (Message("sequence", 4 * n * d * 2, 4 / samples, ranks, 1, False, True),) if ranks > 1 else ()
    return total([(samples, work._replace(messages=messages))])


def back(cfg: Any, samples: int, patches: int, text: int, ranks: int = 1) -> Work:
    """The gradients of one block, with nothing of its forward computed again."""
    there = block(cfg, samples, patches, text, ranks)
    d, f, n = cfg.hidden_size, cfg.ffn_size, -(-patches // ranks)
    # As above: of each element what the gradients of these operations read and write, counted over the graph.
    traffic = samples * (n * (d * 278 + 18 * f) + 28 * text * d)
    return there._replace(products=2 * there.products, attention=2.5 * there.attention, traffic=traffic, launches=71.0)


def pull(cfg: Any, samples: int, patches: int, text: int, ranks: int = 1, again: float = 1.0) -> Work:
    """One block's way back, with its forward computed `again` whole or, in this share of cases not, what its parts repeat."""
    there = block(cfg, samples, patches, text, ranks)
    d, f, n = cfg.hidden_size, cfg.ffn_size, -(-patches // ranks)
    # Attention, one of its four exchanges, norms and what is elementwise; sums of gradients that are made between graphs.
    traffic = samples * (n * (d * 102 + 10 * f) + 14 * text * d)
    parts = Work(attention=there.attention, traffic=traffic, launches=25.0)
    parts = parts._replace(messages=tuple(m._replace(size=m.size / 4, count=m.count / 4) for m in there.messages))
    return total([(again, there), (1 - again, parts), (1, back(cfg, samples, patches, text, ranks))])


def model(config: Any, samples: int, patches: int, ranks: int, text: bool = True) -> Work:
    """What is before and behind the blocks, forward: patches in and out, times and, if asked for, the text's projections."""
    cfg = config.model
    d, n, lengths = cfg.hidden_size, -(-patches // ranks), texts(config) if text else {}
    patch = cfg.latent_channels * math.prod(cfg.patch_size)
    products = 4 * n * patch * d + 2 * d * (transformer.TIME_WIDTH + 7 * d)
    products += sum(2 * length * cfg.text_dims[name] * d for name, length in lengths.items())
    traffic = n * d * 60 + sum(lengths.values()) * d * 40
    return total([(samples, Work(products, 0.0, 0.0, traffic, 0.0, 76.0 / samples))])


def training(config: Any, axes: dict[str, int], once: bool = False) -> dict[str, Work]:
    """A step of each of `rules.kinds`; `once`: without what is computed twice."""
    cfg, pieces = config.model, config.optim.get("accumulate", 1)
    unit = axes["data"] * axes["zero"] * pieces
    again, found = len(transformer.recomputed(config.train.recompute, cfg.num_layers)) / cfg.num_layers, {}
    moved = exchanges(weights(cfg), config, axes)
    for kind, bucket in rules.kinds(config, unit).items():
        samples, patches = max(1, bucket.batch_size // unit), buckets.tokens(bucket, config)
        shape = samples, patches, sum(texts(config).values()), axes["sp"]
        outer = model(config, samples, patches, axes["sp"])
        pulled = back(cfg, *shape) if once else pull(cfg, *shape, again=again)
        micro = total([(4, outer), (cfg.num_layers, block(cfg, *shape)), (cfg.num_layers, pulled)])
        found[kind] = total([(pieces, micro), (pieces, moved["micro-batch"]), (1, moved["update"])])
    return found


class Weights(NamedTuple):
    """A model's parameters: how many arrays and values, their bytes as they are computed with, messages for all of them."""

    arrays: int
    values: int
    size: int
    messages: int


def weights(cfg: Any) -> Weights:
    """The generator's parameters."""
    return _weights(cfg.to_json())


@functools.lru_cache(maxsize=8)
def _weights(text: str) -> Weights:
    cfg = ConfigDict(json.loads(text))
    kinds = transformer.parameter_dtypes(cfg)
    values = {path: math.prod(shape) for path, shape in transformer.shapes(cfg).items()}
    size = sum(n * (4 if kinds[path] == "float32" else 2) for path, n in values.items())
    return Weights(len(values), sum(values.values()), size, len(sharding.buckets(transformer.shapes(cfg).items())))


def exchanges(model: Weights, config: Any, axes: dict[str, int]) -> dict[str, Work]:
    """What ranks exchange of a model's weights and gradients in each micro-batch, and the update: {"micro-batch", "update"}."""
    stage, shard = config.train.zero_stage, axes["zero"] * axes["sp"]
    world, state = axes["data"] * shard, model.values / (shard if stage else 1)
    count, gradients, micro, update, copied = model.messages, 4 * model.values, [], [], 0.0
    if stage == 3:
        micro.append(Message("gathers", 2 * model.size, 2 * count, shard, 1))  # for both ways
        copied += 4 * model.size * (shard > 1)
    if stage < 2:  # a sum, that is twice the way: parts to whom they belong, sums to all
        micro.append(Message("gradients", 2 * gradients, count, world, 1))
    else:
        micro.append(Message("gradients", gradients, count, shard, 1))
        micro.append(Message("gradients", 2 * gradients / shard, count, axes["data"], shard))
    if world > 1:  # cast to float32, and joined for a message
        copied += (6 + 8) * model.values
    if stage in (1, 2):
        update.append(Message("weights", model.size, count, shard, 1, False))
    averaged, moved = bool(config.ema.decay), 0.0
    if config.train.get("offload_optimizer"):
        moved = state * (24 if averaged else 16)  # moments, and the average, there and back
    # The norm 4, decay 8, Adam 28, the copy to compute with 6, the average 20 bytes of each value.
    traffic = state * (46 + 20 * averaged)
    return {
        "micro-batch": Work(
            traffic=copied, launches=3.0 * model.arrays, messages=tuple(m for m in micro if m.ranks > 1)
        ),
        "update": Work(0, 0, 0, traffic, moved, model.arrays / 4, tuple(m for m in update if m.ranks > 1)),
    }


def velocity(config: Any, axes: dict[str, int], samples: int, patches: int) -> Work:
    """One call of the generator in sampling, of so many samples; what depends on the text alone was computed before."""
    cfg, shard, text = config.model, axes["zero"] * axes["sp"], sum(texts(config).values())
    own = block(cfg, samples, patches, text, axes["sp"])
    own = own._replace(products=own.products - samples * 4 * text * cfg.hidden_size**2)
    found = total([(1, model(config, samples, patches, axes["sp"], text=False)), (cfg.num_layers, own)])
    if config.train.zero_stage == 3 and shard > 1:
        own = weights(cfg)
        gathers = Message("gathers", own.size, own.messages, shard, 1)
        found = total([(1, found), (1, Work(traffic=2 * own.size, messages=(gathers,)))])
    return found
