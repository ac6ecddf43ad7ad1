"""LPIPS: how different two pictures look, by the features of an image classifier (VGG16) and learned channel weights.

Zhang et al. 2018, version 0.1, VGG. The network is frozen: gradients go to the pictures alone. Widths follow from the
parameters, `conv/0/w` ... `conv/12/b` and `head/0` ... `head/4`, which `convert.lpips.vgg` makes.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.errors import ConfigError
from moviegen.nn import backend, layerwise
from moviegen.storage import safetensors_io

STAGES = (2, 2, 3, 3, 3)  # convolutions between poolings; features are taken after the last of each
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1], to the classifier's own
FRAMES = 8  # at a time: as many as memory is taken for
HOW_TO_GET = (
    "download https://download.pytorch.org/models/vgg16-397923af.pth and vgg.pth of lpips 0.1 "
    "(pip download --no-deps lpips==0.1.4 and unzip it: lpips/weights/v0.1/vgg.pth), then run --job=convert with "
    "--config.convert.kind=lpips --config.convert.source=vgg16-397923af.pth --config.convert.heads=vgg.pth "
    "--config.convert.target=lpips_vgg.safetensors"
)
_bmm = ops.BatchMatMul()


def shapes(widths: tuple[int, ...] = (64, 128, 256, 512, 512)) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter."""
    found, layer, channels = {}, 0, 3
    for width, convs in zip(widths, STAGES, strict=True):
        for _ in range(convs):
            found |= {f"conv/{layer}/w": (width, channels, 3, 3), f"conv/{layer}/b": (width,)}
            layer, channels = layer + 1, width
    return found | {f"head/{i}": (width,) for i, width in enumerate(widths)}


def load(path: str, key: str, without: str) -> dict[str, ms.Tensor]:
    """Parameters from a safetensors file of --job=convert, which the config's `key` names.

    Raises ConfigError that says where to get them, or how to go `without`.
    """
    if not path or not Path(path).is_file():
        raise ConfigError(f"{key} is {path!r}, no file: {HOW_TO_GET}; or go without: {without}")
    arrays = safetensors_io.read(path)
    wrong = [name for name, shape in shapes().items() if name not in arrays or arrays[name].shape != shape]
    if wrong:
        raise ConfigError(f"{path}: {', '.join(wrong[:3])} missing or of another shape: no LPIPS weights; {HOW_TO_GET}")
    return backend.to_tensors({name: arrays[name].astype(np.float32) for name in shapes()})


@functools.lru_cache
def _make_scale():
    def scale(p, x, shift, factor):
        return (x - shift) * factor

    return scale


def _scale_constants() -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.float32(v).reshape(1, 3, 1, 1) for v in (SHIFT, 1 / np.float32(SCALE)))


@functools.lru_cache
def _make_conv(pool: bool):
    halve = ops.MaxPool(kernel_size=2, strides=2, pad_mode="valid")

    def conv(p, x, w, b):
        x = halve(x) if pool else x
        return ops.relu(ops.conv2d(x, w, b, 1, "pad", 1))

    return conv


@functools.lru_cache
def _make_compare():
    def unit(f):
        # A product with ones where one would sum or broadcast: several times as fast on CPU.
        n, c = f.shape[0], f.shape[1]
        norm = ops.sqrt(_bmm(ops.ones((n, 1, c), ms.float32), f * f) + 1e-20)
        return f * _bmm(ops.ones((n, c, 1), ms.float32), 1.0 / (norm + 1e-10))

    def compare(p, a, b, head):
        n, c = a.shape[0], a.shape[1]
        a, b = ops.reshape(a, (n, c, -1)), ops.reshape(b, (n, c, -1))
        weights = ops.tile(ops.reshape(head, (1, 1, c)), (n, 1, 1))
        apart = _bmm(weights, ops.square(unit(a) - unit(b)))  # (n 1 pixels)
        return ops.reshape(_bmm(apart, ops.ones((n, apart.shape[2], 1), ms.float32)), (n,)) / apart.shape[2]

    return compare


def _links() -> list[tuple[Any, int, int | None]]:
    """(function, number of the convolution, number of the feature that it ends with or None)."""
    found: list[tuple[Any, int, int | None]] = []
    for stage, convs in enumerate(STAGES):
        for i in range(convs):
            found.append((_make_conv(stage > 0 and i == 0), len(found), stage if i == convs - 1 else None))
    return found


def _inputs(params: Mapping[str, Any], x: Any) -> list[ms.Tensor]:
    """What goes into every convolution, and what comes out of the last."""
    xs = [layerwise.run(_make_scale(), {}, x, *_scale_constants())]
    for fn, layer, _ in _links():
        xs.append(layerwise.run(fn, {}, xs[-1], params[f"conv/{layer}/w"], params[f"conv/{layer}/b"]))
    return xs


def features(params: Mapping[str, Any], x: Any) -> list[ms.Tensor]:
    """The five features of pictures (n 3 h w) in [-1, 1], each (n c h' w'); sides of 16 or more."""
    xs = _inputs(params, x)
    return [xs[layer + 1] for _, layer, tap in _links() if tap is not None]


def pooled(params: Mapping[str, Any], x: Any) -> np.ndarray:
    """Means over the pixels of the last feature, float64 (n c), of pictures (n 3 h w) in [-1, 1]; some at a time."""
    found = [features(params, x[i : i + FRAMES])[-1].asnumpy() for i in range(0, x.shape[0], FRAMES)]
    return np.concatenate(found).mean((2, 3), dtype=np.float64)


def distance(params: Mapping[str, Any], a: Any, b: Any) -> ms.Tensor:
    """LPIPS (n,) of pictures a and b (n 3 h w) in [-1, 1], sides of 16 or more."""
    return distance_and_pull(params, a, b)[0]


def distance_and_pull(params: Mapping[str, Any], a: Any, b: Any) -> tuple[ms.Tensor, Callable[[Any], ms.Tensor]]:
    """`distance`, and pull(d (n,)) -> the gradient of sum(d * distance) with respect to b. Keeps inputs alone."""
    if min(a.shape[2:]) < 16 or tuple(a.shape) != tuple(b.shape):
        raise ConfigError(
            f"LPIPS of {tuple(a.shape)} and {tuple(b.shape)}: expected one shape with sides of 16 or more"
        )
    expected, xs, links = features(params, a), _inputs(params, b), _links()
    found = [
        layerwise.run(_make_compare(), {}, xs[layer + 1], expected[tap], params[f"head/{tap}"])
        for _, layer, tap in links
        if tap is not None
    ]
    total = found[0]
    for more in found[1:]:
        total = total + more

    def pull(d):
        dx = None
        for fn, layer, tap in reversed(links):
            if tap is not None:
                given = (xs[layer + 1], expected[tap], params[f"head/{tap}"])
                own = layerwise.pull(_make_compare(), {}, given, (d,), 1)[1][0]
                dx = own if dx is None else dx + own
            given = (xs[layer], params[f"conv/{layer}/w"], params[f"conv/{layer}/b"])
            dx = layerwise.pull(fn, {}, given, (dx,), 1)[1][0]
        return layerwise.pull(_make_scale(), {}, (b, *_scale_constants()), (dx,), 1)[1][0]

    return total, pull


def frames(video: Any) -> ms.Tensor:
    """Video (b 3 t h w) as pictures (b*t 3 h w)."""
    b, c, t, h, w = video.shape
    return ops.reshape(ops.transpose(video, (0, 2, 1, 3, 4)), (b * t, c, h, w))


def of_clips(params: Mapping[str, Any], a: Any, b: Any) -> np.ndarray:
    """LPIPS of every frame, float32 (b t), of videos a and b (b 3 t h w) in [-1, 1]; some frames at a time."""
    pictures = [frames(backend.tensor(x)) for x in (a, b)]
    found = []
    for start in range(0, pictures[0].shape[0], FRAMES):
        piece = [x[start : start + FRAMES] for x in pictures]
        found.append(distance(params, *piece).asnumpy())
    return np.concatenate(found).reshape(a.shape[0], a.shape[2])


def mean_and_pull(params: Mapping[str, Any], a: Any, b: Any, weight: float) -> tuple[ms.Tensor, ms.Tensor]:
    """weight * mean LPIPS over all frames of videos (b 3 t h w), and its gradient with respect to b."""
    pictures, of = frames(a), frames(b)
    count = of.shape[0]
    total, slopes = None, []
    for start in range(0, count, FRAMES):
        stop = min(start + FRAMES, count)
        found, pull = distance_and_pull(params, pictures[start:stop], of[start:stop])
        slopes.append(pull(ops.full((stop - start,), weight / count, dtype=ms.float32)))
        total = ops.sum(found) if total is None else total + ops.sum(found)
    slope = slopes[0] if len(slopes) == 1 else ops.concat(slopes, 0)
    n, c, t, h, w = b.shape
    return total * (weight / count), ops.transpose(ops.reshape(slope, (n, t, c, h, w)), (0, 2, 1, 3, 4))
