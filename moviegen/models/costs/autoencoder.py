"""What one rank does in a step of the autoencoder, and to encode or decode a clip: counted from its settings alone."""

import math
from typing import Any

from moviegen.models.costs import work
from moviegen.models.costs.work import IMAGE, VIDEO, Work
from moviegen.models.tae import shapes
from moviegen.parallel import sharding

# VGG16's convolutions, as LPIPS takes features of them: (outputs, how often), after each of which sides are halved.
VGG = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
TILE, OVERLAP = 4, 2  # latent frames, of models/tae/tiles.py


def side(cfg: Any, name: str, frames: int, height: int, width: int) -> Work:
    """The "encoder" on a clip of so many pixels, or the "decoder" from its latents, forward."""
    levels = len(cfg.channel_multipliers) - 1
    size = frames, height, width
    if name == "decoder":
        size = -(-frames // 2**levels), height // 2**levels, width // 2**levels
    convolutions = products = attention = traffic = launches = 0.0
    each = 4 if cfg.get("compute_dtype", "float32") == "float32" else 2
    for block in shapes.plan(cfg, name):
        before = size[0]  # a kernel's spatial part is applied before time is halved or doubled
        if block.kind == "downsample":
            size = -(-size[0] // 2), size[1] // 2, size[2] // 2
        if block.kind == "upsample":
            size = 2 * size[0], 2 * size[1], 2 * size[2]
        pixels = math.prod(size)
        if block.kind.endswith("attention"):
            seen = size[0] if block.kind.startswith("temporal") else size[1] * size[2]
            products += 8 * pixels * block.outputs**2
            attention += 4 * pixels * seen * block.outputs
            # The norm, the order of the axes there and back, and the residual.
            traffic, launches = traffic + pixels * block.outputs * 10 * each, launches + 20
        for path, shape in shapes.parameters(block).items():
            if len(shape) > 2:
                at = pixels // size[0] * before if path.endswith("spatial/w") else pixels
                convolutions += 2 * math.prod(shape) * at
                # It reads and writes its pictures; norm, activation, padding and residual do so six times more.
                traffic, launches = traffic + 8 * at * shape[0] * each, launches + 6
    return Work(products, attention, convolutions, traffic, 0.0, launches)


def lpips(frames: int, height: int, width: int) -> Work:
    """LPIPS' network on the frames of one clip, forward."""
    convolutions = traffic = 0.0
    inputs = 3
    for level, (outputs, count) in enumerate(VGG):
        pixels = frames * (height >> level) * (width >> level)
        for _ in range(count):
            convolutions += 2 * 9 * inputs * outputs * pixels
            traffic += 16 * pixels * outputs
            inputs = outputs
    return Work(convolutions=convolutions, traffic=traffic, launches=40.0)


def discriminator(adversarial: Any, frames: int, height: int, width: int) -> Work:
    """The discriminator on one clip, forward."""
    convolutions = traffic = 0.0
    size = [frames, height, width]
    for block in shapes.discriminator_plan(adversarial):
        last = block.level == shapes.DISCRIMINATOR_LEVELS
        size = [-(-n // (1 if last or (axis == 0 and adversarial.dims == 2) else 2)) for axis, n in enumerate(size)]
        for shape in shapes.discriminator_parameters(adversarial, block).values():
            if len(shape) > 2:
                convolutions += 2 * math.prod(shape) * math.prod(size)
                traffic += 24 * math.prod(size) * shape[0]
    return Work(convolutions=convolutions, traffic=traffic, launches=40.0)


def training(config: Any, axes: dict[str, int]) -> dict[str, Work]:
    """A step of each kind that an experiment trains: "a video", "an image"."""
    data, loss, pieces = config.data, config.loss, axes["data"] * axes["zero"]
    adversarial, kinds = loss.get("adversarial"), {}
    if data.image_fraction < 1:
        kinds[VIDEO] = data.num_frames, config.train.batch_size
    if data.image_fraction:
        kinds[IMAGE] = 1, data.image_batch_size
    recomputed, found = 1.0 if config.train.get("recompute_levels") else 0.0, {}
    moved = work.exchanges(weights(config), config, axes)
    for kind, (frames, batch) in kinds.items():
        clip = frames, data.height, data.width
        # Forward, twice that back, and again all but the last operation of every block: counted over its graphs.
        parts = [(3.75 + recomputed, side(config.tae, name, *clip)) for name in ("encoder", "decoder")]
        if loss.get("lpips"):
            parts.append((5.0, lpips(*clip)))  # both pictures; of one again, and its slope
        if adversarial and adversarial.weight:
            parts.append(
                (12.0, discriminator(adversarial, *clip))
            )  # two for its own loss, one for the other's, and back
        done = [(times * batch / pieces, part) for times, part in parts]
        found[kind] = work.total(
            [*done, (config.optim.get("accumulate", 1), moved["micro-batch"]), (1, moved["update"])]
        )
    return found


def weights(config: Any) -> work.Weights:
    """The autoencoder's parameters, and its discriminator's."""
    adversarial = config.loss.get("adversarial")
    found = shapes.shapes(config.tae, adversarial if adversarial and adversarial.weight else None)
    values = [math.prod(shape) for shape in found.values()]
    each = 4 if config.tae.get("compute_dtype", "float32") == "float32" else 2
    return work.Weights(len(values), sum(values), each * sum(values), len(sharding.buckets(found.items())))


def decoding(cfg: Any, frames: int, height: int, width: int) -> tuple[int, Work]:
    """How many tiles a sampled video is decoded in, and the work of one."""
    latents = -(-frames // 8)
    if latents <= TILE:
        return 1, side(cfg, "decoder", frames, height, width)
    return -(-(latents - TILE) // (TILE - OVERLAP)) + 1, side(cfg, "decoder", 8 * TILE, height, width)
