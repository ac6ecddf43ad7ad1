"""MindSpore set-up and the border between numpy and MindSpore: devices, tensors, dtypes."""

import contextlib
import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from moviegen.errors import ConfigError
from moviegen.nn import dtypes, runtime

if int(np.__version__.split(".")[0]) >= 2:
    # MindSpore 2.10 is compiled against numpy 1.x: with numpy 2 an `a * a` inside a gradient raises SystemError.
    raise ConfigError(f"numpy {np.__version__} does not work with MindSpore 2.10: pip install 'numpy>=1.26,<2'")

# On AVX-512 processors oneDNN 3.10 (in MindSpore 2.10) runs plain-layout convolutions with a reference kernel: 604 ms for
# 1x64x4x32x32, 3x3, against 5 ms below AVX-512; products of matrices are as fast either way (benchmarks/README.md).
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# Without a card the runtime's launch queues only take cores from the kernels they feed: their threads spin while they
# wait. A training step of the demo's autoencoder on two cores: 1.45 s with them, 0.65 s without (both settings).
if not runtime.cards():
    os.environ.setdefault("MS_DEV_RUNTIME_CONF", "pipeline:false,graph_pipeline:false")

import mindspore as ms
from mindspore.graph import api

# "float16" rehearses "bfloat16" where a device cannot multiply it: the same casts, so that types that do not fit each other
# fail here first. It is no way to train, since small gradients vanish and nothing scales the loss.
COMPUTE_DTYPES = ("float32", "bfloat16", "bfloat16_simulated", "float16")


@functools.cache
def device() -> str:
    """Sets MindSpore to eager mode and returns what it runs on, "Ascend" or "CPU"; hot code compiles itself (layerwise.py)."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    if os.environ.get("MS_DEV_RUNTIME_CONF"):
        with _muted():  # the runtime prints these settings when the first graph runs
            ms.jit(_negative)(ms.Tensor(0.0)).asnumpy()
    return ms.get_context("device_target")


def _negative(x):
    return -x


def compiled() -> int:
    """How many graphs this process has compiled."""
    return len(api.ms_compile_cache)


@contextlib.contextmanager
def _muted():
    """Nothing reaches standard output, not even from native code."""
    if sys.stdout is None:  # started without one
        yield
        return
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def check_compute_dtype(dtype: str, key: str = "model.compute_dtype") -> str:
    """The dtype name that the config's `key` has, if this device can compute in it. Raises ConfigError otherwise."""
    if dtype not in COMPUTE_DTYPES:
        raise ConfigError(f"{key} is {dtype!r}, expected one of {', '.join(COMPUTE_DTYPES)}")
    if dtype == "bfloat16" and device() == "CPU":
        raise ConfigError(
            f"{key} is 'bfloat16', which MindSpore's CPU kernels cannot multiply: "
            f"use --config.{key}=float32, or 'bfloat16_simulated' to see bfloat16's rounding on CPU, "
            "or 'float16' to rehearse its types"
        )
    return dtype


def tensor(x: Any) -> ms.Tensor:
    """A MindSpore tensor from a tensor, an array or a number; float64 becomes float32.

    All arrays become tensors here, and live on the device from then on: a graph copies an input that is in host memory to
    the card at every call.
    """
    place = device()
    if isinstance(x, ms.Tensor):
        return x
    x = np.asarray(x)
    if x.dtype == np.float64:
        x = x.astype(np.float32)
    x = ms.Tensor(np.asarray(x, order="C"))  # ascontiguousarray would make a scalar a vector
    return x if place == "CPU" else x.to(place)


def to_tensors(params: Mapping[str, Any]) -> dict[str, ms.Tensor]:
    """The tree with every value as a MindSpore tensor."""
    return {path: tensor(value) for path, value in params.items()}


def moved(arrays: dict[str, np.ndarray]) -> dict[str, ms.Tensor]:
    """Like `to_tensors`, but takes each array out of `arrays` as it goes: the tree is never in memory twice."""
    return {path: tensor(arrays.pop(path)) for path in list(arrays)}


def to_numpy(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tree with every value as a numpy array (bfloat16 as ml_dtypes.bfloat16)."""
    return {path: dtypes.to_numpy(path, value) for path, value in params.items()}
