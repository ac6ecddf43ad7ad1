"""LPIPS (Zhang et al. 2018, version 0.1, VGG16): how different pictures look. Gradients go to the pictures alone.

In float32 whatever the autoencoder computes in: a distance is a sum of squared differences of unit vectors, which bfloat16
would round to three digits.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.errors import ConfigError
from moviegen.nn import backend, kernels, layerwise
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
_TO_CLASSIFIER = tuple(np.float32(v).reshape(1, 3, 1, 1) for v in (SHIFT, 1 / np.float32(SCALE)))
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
    """Parameters from the file that the config's `key` names. ConfigError says how to get them, or to go `without`."""
    if not path or not Path(path).is_file():
        raise ConfigError(f"{key} is {path!r}, no file: {HOW_TO_GET}; or go without: {without}")
    arrays = safetensors_io.read(path)
    wrong = [name for name, shape in shapes().items() if name not in arrays or arrays[name].shape != shape]
    if wrong:
        raise ConfigError(f"{path}: {', '.join(wrong[:3])} missing or of another shape: no LPIPS weights; {HOW_TO_GET}")
    return backend.to_tensors({name: arrays[name].astype(np.float32) for name in shapes()})


def _scale(p, x, shift, factor):
    return (x - shift) * factor


def _conv(p, x, w, b):
    return ops.relu(kernels.picture_conv(x, w, b))


def _pool_and_conv(p, x, w, b):
    return _conv(p, kernels.halve(x), w, b)


# (function, number of the feature that it ends with or None) of every convolution
_LINKS = [
    (_pool_and_conv if stage and not i else _conv, stage if i == convs - 1 else None)
    for stage, convs in enumerate(STAGES)
    for i in range(convs)
]


def _unit(f):
    norm = ops.sqrt(kernels.sums(f * f, 1) + 1e-20)
    return f * kernels.repeated_rows(1.0 / (norm + 1e-10), f.shape[1])


def _compare(p, a, b, head):
    n, c = a.shape[0], a.shape[1]
    a, b = ops.reshape(a, (n, c, -1)), ops.reshape(b, (n, c, -1))
    weights = ops.tile(ops.reshape(head, (1, 1, c)), (n, 1, 1))
    apart = _bmm(weights, ops.square(_unit(a) - _unit(b)))  # (n 1 pixels)
    return ops.reshape(kernels.sums(apart, 2), (n,)) / apart.shape[2]


def features(params: Mapping[str, Any], x: Any) -> list[ms.Tensor]:
    """The five features of pictures (n 3 h w) in [-1, 1], each (n c h' w'); sides of 16 or more."""
    return [feature for feature, _ in _features(params, x) if feature is not None]


def _features(params: Mapping[str, Any], x: Any) -> list[tuple[ms.Tensor | None, Callable]]:
    """Of the scaling and of every convolution: its output if that is a feature, and its pullback, which keeps its input."""
    x, pull = layerwise.vjp(_scale, {}, x, *_TO_CLASSIFIER, wrt=1)
    found = [(None, pull)]
    for layer, (fn, tap) in enumerate(_LINKS):
        x, pull = layerwise.vjp(fn, {}, x, params[f"conv/{layer}/w"], params[f"conv/{layer}/b"], wrt=1)
        found.append((None if tap is None else x, pull))
    return found


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
    expected, kept = features(params, a), _features(params, b)
    compared = [
        layerwise.vjp(_compare, {}, feature, expected[tap], params[f"head/{tap}"], wrt=1)
        for tap, feature in enumerate(feature for feature, _ in kept if feature is not None)
    ]

    def pull(d):
        dx, heads = None, [back for _, back in compared]
        for feature, back in reversed(kept):
            if feature is not None:
                own = heads.pop()(d)[1][0]
                dx = own if dx is None else dx + own
            dx = back(dx)[1][0]
        return dx

    return sum((value for value, _ in compared[1:]), compared[0][0]), pull


def frames(video: Any) -> ms.Tensor:
    """Video (b 3 t h w) as pictures (b*t 3 h w)."""
    b, c, t, h, w = video.shape
    return ops.reshape(ops.transpose(video, (0, 2, 1, 3, 4)), (b * t, c, h, w))


def of_clips(params: Mapping[str, Any], a: Any, b: Any) -> np.ndarray:
    """LPIPS of every frame, float32 (b t), of videos a and b (b 3 t h w) in [-1, 1]; some frames at a time."""
    n, _, t, *_ = a.shape
    a, b = frames(backend.tensor(a)), frames(backend.tensor(b))
    pieces = [slice(start, start + FRAMES) for start in range(0, a.shape[0], FRAMES)]
    return np.concatenate([distance(params, a[piece], b[piece]).asnumpy() for piece in pieces]).reshape(n, t)


def mean_and_pull(params: Mapping[str, Any], a: Any, b: Any, weight: float) -> tuple[ms.Tensor, ms.Tensor]:
    """weight * mean LPIPS over all frames of videos (b 3 t h w), and its gradient with respect to b."""
    (n, c, t, h, w), a, b = b.shape, frames(a), frames(b)
    values, slopes = [], []
    for start in range(0, n * t, FRAMES):
        value, pull = distance_and_pull(params, a[start : start + FRAMES], b[start : start + FRAMES])
        values.append(ops.sum(value))
        slopes.append(pull(ops.full(value.shape, weight / (n * t), dtype=ms.float32)))
    slope = slopes[0] if len(slopes) == 1 else ops.concat(slopes, 0)
    total = sum(values[1:], values[0]) * (weight / (n * t))
    return total, ops.transpose(ops.reshape(slope, (n, t, c, h, w)), (0, 2, 1, 3, 4))
