"""The memory that a run will take on every rank, by kind, from its settings alone: without MindSpore, and at once.

For a CPU it is what a process has resident at its peak, within 10% of measured ones (benchmarks/memory.py); for a card, on
which nothing of ours has run, it is counted by the same rules and unproved: what a compiler adds or saves there is not known.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moviegen.models.costs import activations
from moviegen.models.costs.activations import FLOAT, Needs
from moviegen.models.tae import shapes as tae
from moviegen.models.transformer import shapes as transformer
from moviegen.parallel import rules
from moviegen.parallel.sharding import BUCKET, shard_shape
from moviegen.storage import safetensors_io

KINDS = (
    "weights",  # float32 shards, and what of them is there in the compute dtype besides
    "gradients",
    "moments",
    "average",
    "gathered layers",  # whole while they are computed with, and the message that brings them
    "kept activations",  # from the way there to the way back
    "working set",  # of the graph that takes most
    "allocator",  # what it has lost between tensors of different sizes
    "communicators",
    "process",  # interpreter, libraries, compiled graphs and what these keep
    "checkpoint",  # the copy that is written in the background
)
FRAMES = 32  # of a tile, of models/tae/tiles.py
CLIPS, CLIP_PIXELS = 8, 1 << 19  # that are encoded at once, of data/encode.py
LAYER = re.compile(r"(blocks/\d+|final|(?:en|de)coder/.*|discriminator/\d+)/")  # what is in none is a layer too
SIDES = ("encoder", "decoder")
VALIDATED = (16, 64, 64), (32, 64, 64)  # clips that the autoencoder is validated on, of evaluation/reconstruction.py
MB = 2**20
# Of a process on a CPU: fitted to runs of benchmarks/memory.py, and held against those of them that were unseen.
PROCESS = {"train": 690 * MB, "sample": 540 * MB, "train_tae": 780 * MB, "encode_video": 540 * MB}
RANKS = 45 * MB  # what it takes to exchange with others
GRAPH = 8 * MB  # a compiled graph of the autoencoder, of which there are many
LOST = 0.3  # of what a step allocates
ALLOCATED = ("gradients", "gathered layers", "kept activations", "working set")


class Memory(NamedTuple):
    """Bytes by kind, of KINDS, on the card and in the host's memory of one rank; a CPU has both in one memory."""

    device: dict[str, int]
    host: dict[str, int]

    @property
    def total(self) -> tuple[int, int]:
        """Bytes on the card and in the host."""
        return sum(self.device.values()), sum(self.host.values())


def of(config: Any, job: str, axes: dict[str, int], card: Any) -> Memory:
    """Memory of one rank at its peak; job "train", "train_tae", "sample" or "encode_video".

    `axes` are the mesh's {"data", "zero", "sp"}, `card` one of costs/cards.py. A kind that takes nothing is left out.
    """
    on_card, count = (
        card.name != "CPU",
        {"train": _train, "train_tae": _train_tae, "sample": _sample, "encode_video": _encode},
    )
    device, host = count[job](config, axes, on_card)
    host["process"] = host.get("process", 0) + PROCESS[job]
    if on_card:
        channels = rules.communicators(axes, config.train.get("zero_stage", 0), job)
        buffer = MB * config.get("runtime", {}).get("hccl_buffer_mb", 200)  # of which a communicator has two
        device["communicators"] = 2 * buffer * len(channels)
    else:
        device["allocator"] = LOST * sum(device.get(kind, 0) for kind in ALLOCATED)
        host["process"] += RANKS * (max(axes.values()) > 1)
    return Memory(*({kind: round(table[kind]) for kind in KINDS if table.get(kind)} for table in (device, host)))


def _train(config: Any, axes: dict[str, int], on_card: bool) -> tuple[dict, dict]:
    cfg, train = config.model, config.train
    shapes, kinds = transformer.shapes(cfg), transformer.parameter_dtypes(cfg)
    device, host = _state(config, axes, shapes, kinds, on_card, train.offload_optimizer)
    if not on_card and config.data.source != "csv":  # the first rank encodes an embedded set
        host["process"] += sum(_graphs(config.tae, *clips, SIDES[:1], 1) for clips in _clips(config))
    given = activations.sequences(config, "train", axes)
    needs = [activations.generator(cfg, each, axes["sp"], True, train.recompute, on_card) for each in given]
    return _with_activations(device, max(needs, key=sum)), host


def _train_tae(config: Any, axes: dict[str, int], on_card: bool) -> tuple[dict, dict]:
    cfg, loss, data = config.tae, config.loss, config.data
    adversarial = loss.get("adversarial")
    shapes = tae.shapes(cfg, adversarial if adversarial and adversarial.weight else None)
    device, host = _state(config, axes, shapes, {}, on_card, False)
    pieces = axes["data"] * axes["zero"] * config.optim.get("accumulate", 1)
    batches = [(data.num_frames, config.train.batch_size)] if data.image_fraction < 1 else []
    batches += [(1, data.image_batch_size)] if data.image_fraction else []
    sizes = [(-(-batch // pieces), (frames, data.height, data.width)) for frames, batch in batches]
    needs = [activations.tae_step(cfg, loss, *each) for each in sizes]
    if loss.get("lpips"):
        device["weights"] += FLOAT * activations.LPIPS_VALUES
    if not on_card:
        host["process"] += sum(_graphs(cfg, batch, size, SIDES, 2) for batch, size in sizes)
        host["process"] += sum(_graphs(cfg, 1, size, SIDES, 1) for size in VALIDATED)
    return _with_activations(device, max(needs, key=sum)), host


def _graphs(cfg: Any, batch: int, size: tuple[int, int, int], sides: tuple[str, ...], of_each: int) -> float:
    """What the autoencoder's compiled graphs take on a CPU: their code, and what they were given and gave last."""
    links = {link.graph: link for side in sides for link in activations.links(cfg, side, *size)}
    return of_each * GRAPH * len(links) + FLOAT * batch * sum(link.inputs + link.outputs for link in links.values())


def _sample(config: Any, axes: dict[str, int], on_card: bool) -> tuple[dict, dict]:
    cfg, s = config.model, config.sample
    shapes, kinds = transformer.shapes(cfg), transformer.parameter_dtypes(cfg)
    ranks = axes["zero"] * axes["sp"] if config.train.zero_stage == 3 else 1
    own = _bytes(shapes, kinds, ranks)
    device = {"weights": own + activations.width(config.tae) * _values(tae.shapes(config.tae))}
    device["gathered layers"] = _gathered(shapes, kinds, ranks, on_card)
    given = activations.sequences(config, "sample", axes)[0]
    velocity = activations.generator(cfg, given, axes["sp"], False, "all", on_card)
    size = _tile(config.tae, s.num_frames, s.height, s.width)
    device["kept activations"] = velocity.kept
    device["working set"] = max(velocity.working, sum(activations.autoencoder(config.tae, 1, size, SIDES[1:], False)))
    host = {} if on_card else {"process": _graphs(config.tae, 1, size, SIDES[1:], 1)}
    encoder = _largest_encoder(config) / ranks  # which is let go before the generator is read
    return ({"weights": encoder} if encoder > sum(device.values()) else device), host


def _encode(config: Any, axes: dict[str, int], on_card: bool) -> tuple[dict, dict]:
    device: dict[str, float] = {"weights": activations.width(config.tae) * _values(tae.shapes(config.tae))}
    batch, size = max(_clips(config), key=lambda clips: clips[0] * math.prod(clips[1]))
    needs = activations.autoencoder(config.tae, batch, size, SIDES[:1], False)
    host = {} if on_card else {"process": _graphs(config.tae, batch, size, SIDES[:1], 1)}
    return device | {"kept activations": needs.kept, "working set": needs.working}, host


def _clips(config: Any) -> list[tuple[int, tuple[int, int, int]]]:
    """How many clips, and of what size, are encoded at once: videos and images."""
    data, found = config.data, []
    for frames in {data.num_frames or FRAMES, 1}:
        batch = min(CLIPS, max(1, CLIP_PIXELS // (frames * data.height * data.width)))
        found.append((batch, _tile(config.tae, frames, data.height, data.width)))
    return found


def _tile(cfg: Any, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """What of a clip goes through the autoencoder at once."""
    tile = 8 * cfg.get("spatial_tile", 0) or max(height, width)
    return min(frames, FRAMES), min(height, tile), min(width, tile)


def _largest_encoder(config: Any) -> float:
    """Bytes of the largest text encoder's weights, of those whose folder is named and there."""
    text = config.get("text")
    folders = [Path(folder) for folder in text.encoders.values() if folder] if text else []
    found = [safetensors_io.lazy(folder)[0] for folder in folders if folder.is_dir()]
    each = FLOAT if text and text.dtype == "float32" else 2
    return each * max((sum(math.prod(array.shape) for array in arrays.values()) for arrays in found), default=0)


def _state(
    config: Any, axes: dict[str, int], shapes: Mapping, kinds: Mapping[str, str], on_card: bool, offload: bool
) -> tuple[dict, dict]:
    """Weights, gradients, moments and average, what is gathered of them, and the copy of all but the gradients."""
    stage, all_ranks = config.train.zero_stage, math.prod(axes.values())
    ranks = axes["zero"] * axes["sp"] if stage else 1
    own, whole = FLOAT * _values(shapes, ranks), FLOAT * _values(shapes)
    sharded = stage == 3 and ranks > 1
    # A whole copy in the compute dtype, but for what is whole and float32 already.
    copied = {path: shape for path, shape in shapes.items() if ranks > 1 or kinds.get(path, "float32") != "float32"}
    copy = 0 if sharded else _bytes(copied, kinds)
    gradients = (own if stage > 1 else whole) * (2 if config.optim.get("accumulate", 1) > 1 else 1)
    if all_ranks > 1:
        gradients += _in_flight(shapes, kinds, on_card)
    kept = {"moments": 2 * own, "average": own if config.ema.decay else 0}
    device = {"weights": own + copy, "gradients": gradients}
    device["gathered layers"] = _gathered(shapes, kinds, ranks if sharded else 1, on_card)
    host = {"checkpoint": own + sum(kept.values())}
    if not on_card:
        if config.train.checkpoint_every >= config.train.steps:
            host["checkpoint"] = 0  # the last one is written from where the state lies
        # A compiled graph keeps what it was given and gave last: a layer's gradients, and four parts of its state.
        host["process"] = FLOAT * max(map(_values, _layers(shapes))) * (1 + 4 / ranks)
    (host if offload else device).update(kept)
    return device, host


def _layers(shapes: Mapping) -> list[dict]:
    """The parameters that are gathered together, and whose gradients come together."""
    layers: dict[str, dict] = {}
    for path, shape in shapes.items():
        found = LAYER.match(path)
        layers.setdefault(found[1] if found else "", {})[path] = shape
    return list(layers.values())


def _gathered(shapes: Mapping, kinds: Mapping[str, str], ranks: int, on_card: bool) -> float:
    """Layers that are whole at one time, and the largest message that brings one."""
    if ranks == 1:
        return 0
    most = max(_bytes(layer, kinds) for layer in _layers(shapes))
    message = min(most, FLOAT * max(BUCKET, *map(math.prod, shapes.values())))
    # A card gathers the next layer while it computes with one. A CPU's gather is a sum of what every rank has padded: there
    # are a message's zeros and values, their sum, and its pieces.
    return 2 * most + message if on_card else most + 3 * message


def _in_flight(shapes: Mapping, kinds: Mapping[str, str], on_card: bool) -> float:
    """Whole gradients of a layer, in float32 besides the dtype that they come in, until there is a message of them."""
    layer = max(_layers(shapes), key=_values)
    waiting = min(_values(shapes), _values(layer) + (BUCKET if _values(layer) < BUCKET else 0))
    message = min(waiting, max(BUCKET, *map(math.prod, shapes.values())))
    came = _bytes(layer, kinds) if "bfloat16" in kinds.values() or "float16" in kinds.values() else 0
    # Put in order for the ranks and joined; on a CPU the sum is a third of them.
    return FLOAT * (waiting + (2 if on_card else 3) * message) + came


def _with_activations(device: dict, needs: Needs) -> dict:
    """What a rank holds, with the activations of a step."""
    return device | {"kept activations": needs.kept, "working set": needs.working}


def _values(shapes: Mapping[str, tuple], ranks: int = 1) -> int:
    return sum(math.prod(shard_shape(shape, ranks)) for shape in shapes.values())


def _bytes(shapes: Mapping[str, tuple], kinds: Mapping[str, str], ranks: int = 1) -> int:
    wide = {path: shape for path, shape in shapes.items() if kinds.get(path, "float32") == "float32"}
    return 2 * _values(shapes, ranks) + 2 * _values(wide, ranks)
