"""numpy dtypes by name, bfloat16 among them, and arrays of whatever kind as numpy arrays."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np


def numpy_dtype(name: str) -> np.dtype:
    """Returns the dtype of this name; "bfloat16" is that of ml_dtypes."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def by_path(paths: Iterable[str], dtype: str, float32: str) -> dict[str, str]:
    """Returns the dtype of each parameter of a model that computes in `dtype`; `float32` matches paths that stay so."""
    stored = "float32" if dtype == "bfloat16_simulated" else dtype
    return {path: "float32" if re.search(float32, path) else stored for path in paths}


def to_numpy(name: str, value: Any) -> np.ndarray:
    """Returns a MindSpore tensor, numpy array or number as a numpy array. TypeError for anything else, by its `name`."""
    import ml_dtypes

    array = np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)
    if array.dtype.name == "bfloat16":
        # MindSpore brings a numpy dtype of its own by that name, which converts neither to nor from the common one.
        array = array.view(ml_dtypes.bfloat16)
    if array.dtype.hasobject or array.dtype.kind in "USM":
        raise TypeError(f"array {name} is a {type(value).__name__}: expected numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
