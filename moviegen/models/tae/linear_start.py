"""An autoencoder that starts as a linear one, fitted in closed form to some clips; training goes on from there.

The encoder's halving convolutions are the principal components of 2x2 patches and of pairs of frames, level by level, and
the decoder's doubling convolutions are fitted to undo them by least squares. Residual branches start at zero. The norms
before the heads would make it nonlinear: constant channels keep their divisor the same for all clips, and a pair of channels
+x, -x passes SiLU as silu(x) - silu(-x) = x.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import rearrange

from moviegen.errors import ConfigError
from moviegen.models.tae import model as tae
from moviegen.models.tae.shapes import plan
from moviegen.nn import backend

CONSTANT = 4.0  # of the channels that steady the norms, in units of the signals' spread
_ROWS = 150_000  # as many positions as a fit needs


def init(cfg: Any, clips: Sequence[np.ndarray], seed: int) -> dict:
    """Parameters fitted to uint8 clips (t h w c) of one size, multiples of 8. ConfigError for narrow levels or many groups."""
    if cfg.norm_groups != 1:
        raise ConfigError(
            f"tae.norm_groups is {cfg.norm_groups}: a linear start needs 1, constants steady one norm at a time"
        )
    widths = [cfg.base_channels * m for m in cfg.channel_multipliers]
    params = {path: value.asnumpy().copy() for path, value in tae.init(cfg, seed).items()}
    for path, value in params.items():
        if "/conv2/" in path or "attention/out/" in path or "shortcut" in path or "sample/" in path:
            value[:] = 0.0
        if path.endswith("temporal/w") and "sample/" not in path:
            value[:, :, value.shape[2] // 2] = np.eye(len(value))
    for side, channels in (("encoder", 3), ("decoder", cfg.latent_channels)):
        _put(params, f"{side}/conv_in", np.eye(channels))
    features = [np.stack(clips).astype(np.float32) / 127.5 - 1]
    for level, width in enumerate(widths[:-1]):
        path = f"encoder/down/{level}/downsample"
        kept = cfg.latent_channels if level == len(widths) - 2 else width
        for kind, split, size in (("spatial", _patches, width), ("temporal", _pairs, kept)):
            x = split(features[-1])
            mean, basis = _components(x, min(size, x.shape[-1]))
            if kind == "temporal" and level == len(widths) - 2:
                basis = basis / ((x - mean) @ basis).std(axis=(0, 1, 2, 3))  # latents of unit variance
            features.append((x - mean) @ basis)
            _set_halving(params, f"{path}/{kind}", basis, -mean @ basis)
    x = features[-1]
    for level in reversed(range(len(widths) - 1)):
        fine = features[2 * level]
        path = f"decoder/up/{level + 1}/upsample"
        for kind, target in (("spatial", _pairs(fine)), ("temporal", fine)):
            if target.shape[-1] > widths[level + 1]:
                raise ConfigError(
                    f"tae.channel_multipliers: level {level + 1} needs {target.shape[-1]} channels to start linear"
                )
            columns = _columns(x, kind)
            solution = _least_squares(columns, target)
            x = columns @ solution
            _set_doubling(params, f"{path}/{kind}", solution)
    for path in params:  # widths may change in between: signals stay in the first channels
        if path.endswith("shortcut/spatial/w") and not params[path].any():
            params[path][:, :, 0, 0] = np.eye(*params[path].shape[:2])
    _pass_head(params, "encoder", features[-1], widths[-1], _last_on_trunk(cfg, "encoder"))
    _pass_head(params, "decoder", x, widths[0], _last_on_trunk(cfg, "decoder"))
    return backend.to_tensors(params)


def _last_on_trunk(cfg: Any, side: str) -> str:
    """Path of the last convolution that no residual goes around."""
    trunk = [
        block
        for block in plan(cfg, side)
        if block.kind in ("conv", "downsample", "upsample")
        or (block.kind == "residual" and block.inputs != block.outputs)
    ]
    return f"{trunk[-1].prefix}/shortcut" if trunk[-1].kind == "residual" else trunk[-1].prefix


def _put(params: dict, path: str, matrix: np.ndarray) -> None:
    """Make the 3x3 convolution at `path` multiply each pixel by `matrix`, padded with zeros to its size."""
    params[f"{path}/spatial/w"][:] = 0.0
    params[f"{path}/spatial/w"][: len(matrix), : matrix.shape[1], 1, 1] = matrix


def _patches(x: np.ndarray) -> np.ndarray:
    return rearrange(x, "n t (h i) (w j) c -> n t h w (i j c)", i=2, j=2)


def _pairs(x: np.ndarray) -> np.ndarray:
    return rearrange(x, "n (t i) h w c -> n t h w (i c)", i=2)


def _components(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    rows = x.reshape(-1, x.shape[-1])
    mean = rows.mean(0)
    sample = (rows[:: max(1, len(rows) // _ROWS)] - mean).astype(np.float64)
    _, vectors = np.linalg.eigh(sample.T @ sample)
    return mean, vectors[:, ::-1][:, :count].astype(np.float32)


def _columns(x: np.ndarray, kind: str) -> np.ndarray:
    """What each output of a doubling convolution sees: nearest neighbours, then 3x3 zero-padded or 3 replicated taps, and 1."""
    if kind == "spatial":
        x = x.repeat(2, 2).repeat(2, 3)
        h, w = x.shape[2:4]
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    else:
        x = x.repeat(2, 1)
        padded = np.concatenate([x[:, :1], x, x[:, -1:]], 1)
        taps = [padded[:, i : i + x.shape[1]] for i in range(3)]
    return np.concatenate([*taps, np.ones_like(x[..., :1])], -1)


def _least_squares(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    a, b = columns.reshape(-1, columns.shape[-1]), target.reshape(-1, target.shape[-1])
    step = max(1, len(a) // _ROWS)
    a, b = a[::step].astype(np.float64), b[::step].astype(np.float64)
    ridge = 1e-4 * len(a) * np.eye(a.shape[1])
    return np.linalg.solve(a.T @ a + ridge, a.T @ b).astype(np.float32)


def _set_halving(params: dict, path: str, basis: np.ndarray, bias: np.ndarray) -> None:
    taps = 4 if path.endswith("spatial") else 2
    c, out = len(basis) // taps, basis.shape[1]
    if taps == 4:
        params[f"{path}/w"][:out, :c, :2, :2] = rearrange(basis, "(i j c) out -> out c i j", i=2, j=2)
    else:  # frames 2i and 2i + 1 are the second and third tap of output i
        params[f"{path}/w"][:out, :c, 1:] = rearrange(basis, "(i c) out -> out c i", i=2)
    params[f"{path}/b"][:out] = bias


def _set_doubling(params: dict, path: str, solution: np.ndarray) -> None:
    if path.endswith("spatial"):
        kernel = rearrange(solution[:-1], "(i j c) out -> out c i j", i=3, j=3)
    else:
        kernel = rearrange(solution[:-1], "(i c) out -> out c i", i=3)
    out, inputs = kernel.shape[:2]
    params[f"{path}/w"][:out, :inputs] = kernel
    params[f"{path}/b"][:out] = solution[-1]


def _pass_head(params: dict, side: str, signals: np.ndarray, width: int, path: str) -> None:
    """Pairs +x, -x and constants before the head's norm, made by the convolution at `path`; their differences after it."""
    k = signals.shape[-1]
    constants = width - 2 * k
    if constants < 2:
        raise ConfigError(f"tae: the {side}'s last level has {width} channels, a linear start needs {2 * k + 2}")
    kernel, bias = params[f"{path}/temporal/w"], params[f"{path}/temporal/b"]
    kernel[k : 2 * k], bias[k : 2 * k] = -kernel[:k], -bias[:k]
    spread = float(np.sqrt((signals**2).mean()))
    kernel[2 * k :], bias[2 * k :] = 0.0, np.resize((CONSTANT, -CONSTANT), constants) * spread
    variance = (2 * (signals**2).mean((0, 1, 2, 3)).sum() + (bias[2 * k :] ** 2).sum()) / width
    params[f"{side}/head/norm/scale"][:] = np.sqrt(variance)
    params[f"{side}/head/norm/bias"][:] = 0.0
    _put(params, f"{side}/head/conv", np.concatenate([np.eye(k), -np.eye(k)], 1))
