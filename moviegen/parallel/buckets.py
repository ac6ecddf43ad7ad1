"""The shapes that an experiment trains on, a table made from its config alone: each step is of one of them, on all ranks."""

import math
import re
from typing import Any, NamedTuple

from moviegen.errors import ConfigError

SIDE = 16  # that sides are multiples of: the autoencoder takes 8, a patch of two latents 2
SLOWEST = 16  # frames a second; paper: 16 to 32


class Bucket(NamedTuple):
    """A shape of samples: frames (1: an image), height and width in pixels.

    Args:
        rates: frames a second at which its clips may be shown, rising, so that `frames / rates[-1]` seconds fill it; (): any.
        batch_size: samples of a step, on all ranks together.
        weight: how often its samples are drawn: 0.5 keeps one of two in an epoch of the others, each epoch others; 2 draws all
            twice.
    """

    frames: int
    height: int
    width: int
    rates: tuple[float, ...] = ()
    batch_size: int = 1
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Such as "128x256x448"."""
        return f"{self.frames}x{self.height}x{self.width}"

    @property
    def kind(self) -> str:
        """What a step of it trains on: "image" or "video"."""
        return "image" if self.frames == 1 else "video"

    @property
    def latents(self) -> tuple[int, int, int]:
        """Frames, height and width of its latents."""
        return -(-self.frames // 8), self.height // 8, self.width // 8


def table(config: Any, unit: int = 1) -> tuple[Bucket, ...]:
    """The buckets of an experiment, the longest first: of `data.buckets`, without it data.height x data.width alone.

    Images are there where there is an image_fraction, videos where it is below 1. Results that are equal are there once.
    `unit`: what batches of `data.tokens_per_batch` are multiples of. ConfigError for patterns that match no bucket.
    """
    data, settings = config.data, config.data.get("buckets", {})
    if settings and settings.resolution:
        sides = dict.fromkeys(_sides(settings.resolution, ratio) for ratio in settings.aspect_ratios)
        lengths = {n: _rates(settings.rates, fps) for n, fps in zip(settings.frames, settings.max_fps, strict=True)}
    else:
        sides, lengths = [(data.height, data.width)], {data.num_frames: ()}
    kinds = [(frames, rates) for frames, rates in lengths.items() if frames > 1 and data.image_fraction < 1]
    if data.image_fraction or not kinds:
        kinds.append((1, ()))
    found = [Bucket(frames, *side, rates, config.train.batch_size) for frames, rates in kinds for side in sides]
    if data.get("tokens_per_batch"):
        found = [
            each._replace(batch_size=max(1, data.tokens_per_batch // (tokens(each, config) * unit)) * unit)
            for each in found
        ]
    sizes = _matched(found, settings, "batch_sizes")
    weights = _matched(found, settings, "weights")
    return tuple(
        each._replace(batch_size=int(sizes.get(each.name, each.batch_size)), weight=weights.get(each.name, 1.0))
        for each in found
    )


def problems(config: Any, unit: int) -> list[str]:
    """All that is wrong with a table of buckets whose keys hold by themselves, with batches split into `unit` parts."""
    data, settings = config.data, config.data.buckets
    if len(settings.frames) != len(settings.max_fps):
        return [
            f"data.buckets.max_fps has {len(settings.max_fps)} rates for {len(settings.frames)} data.buckets.frames"
        ]
    try:
        found = table(config, unit)
    except ConfigError as error:
        return [str(error)]
    wrong = []
    if data.get("fps"):
        wrong.append(f"data.fps is {data.fps:g}, expected 0: with data.buckets a clip's rate follows from its length")
    for each in found:
        if each.kind == "video" and not each.rates:
            wrong.append(f"data.buckets.rates has none up to data.buckets.max_fps of {each.frames} frames")
        if each.batch_size % unit:
            wrong.append(
                f"the batch of bucket {each.name} is {each.batch_size}, not a multiple of {unit}: data x zero x "
                "optim.accumulate (train.batch_size, data.buckets.batch_sizes)"
            )
        if "model" not in config:
            continue
        if 0 < data.get("tokens_per_batch", 0) < unit * tokens(each, config):
            wrong.append(
                f"data.tokens_per_batch is {data.tokens_per_batch}, expected at least {unit * tokens(each, config)}: "
                f"{unit} samples of bucket {each.name}"
            )
        for axis, size, patch, length in zip(
            "thw", each.latents, config.model.patch_size, config.model.position_lengths, strict=True
        ):
            if size % patch or size // patch > length:
                wrong.append(
                    f"bucket {each.name} has {size} latents along {axis}: expected a multiple of {patch}, up to "
                    f"{patch * length} (model.patch_size, model.position_lengths)"
                )
    return list(dict.fromkeys(wrong))


def configured(config: Any) -> bool:
    """Whether an experiment has a table of buckets, and not one shape alone."""
    return bool(config.data.get("buckets") and config.data.buckets.resolution)


def images_alone(config: Any) -> bool:
    """Whether every sample is an image: of a video one frame."""
    return config.data.image_fraction == 1 if configured(config) else config.data.num_frames == 1


def tokens(bucket: Bucket, config: Any) -> int:
    """Length of the sequence of one sample."""
    return math.prod(max(1, n // p) for n, p in zip(bucket.latents, config.model.patch_size, strict=True))


def image_steps(fraction: float, step: int) -> int:
    """How many of the first `step` steps train on images: a `fraction` of them, spread evenly."""
    return math.floor(step * fraction + 1e-9)


def _rates(allowed: tuple[float, ...], most: float) -> tuple[float, ...]:
    """The rates up to the highest one: of those allowed, or all whole numbers from SLOWEST on."""
    return tuple(sorted(rate for rate in allowed or map(float, range(SLOWEST, math.floor(most) + 1)) if rate <= most))


def _sides(resolution: int, ratio: str) -> tuple[int, int]:
    """Height and width of an area of resolution x resolution pixels, of a ratio width:height."""
    wide, high = map(float, ratio.split(":"))
    ideal = resolution * math.sqrt(high / wide), resolution * math.sqrt(wide / high)
    height, width = (max(SIDE, math.floor(side / SIDE + 0.5) * SIDE) for side in ideal)
    return height, width


def _matched(found: list[Bucket], settings: Any, key: str) -> dict[str, float]:
    """The numbers of "PATTERN=NUMBER" texts by bucket: of several patterns that match a name the first counts."""
    numbers: dict[str, float] = {}
    for text in settings.get(key, ()) if settings else ():
        pattern, _, number = text.rpartition("=")
        names = [each.name for each in found if re.fullmatch(pattern, each.name)]
        if not names:
            raise ConfigError(
                f"data.buckets.{key} has {text!r}, which matches no bucket: {', '.join(each.name for each in found)}"
            )
        numbers = {name: float(number) for name in names} | numbers
    return numbers
