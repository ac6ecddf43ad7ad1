"""Finite differences and agreement of arrays, for tests of gradients."""

from collections.abc import Callable, Mapping

import numpy as np


def slopes(
    function: Callable[..., float], arrays: Mapping[str, np.ndarray], step: float = 1e-4
) -> dict[str, np.ndarray]:
    """Central differences of `function(**arrays)`, a number computed in float64, by every coordinate of every array."""
    arrays = {name: np.asarray(value, np.float64) for name, value in arrays.items()}
    found = {}
    for name, value in arrays.items():
        slope = np.zeros(value.shape)
        for where in np.ndindex(value.shape):
            sides = []
            for sign in (1, -1):
                moved = value.copy()
                moved[where] += sign * step
                sides.append(function(**arrays | {name: moved}))
            slope[where] = (sides[0] - sides[1]) / (2 * step)
        found[name] = slope
    return found


def assert_close(found, expected: np.ndarray, what: str = "", tolerance: float = 1e-4) -> None:
    """The largest difference is below `tolerance` of the largest expected value, and that value is not zero."""
    found = np.asarray(found.asnumpy() if hasattr(found, "asnumpy") else found)
    assert found.shape == expected.shape, what
    largest = abs(expected).max()
    assert largest > 1e-6, f"{what}: nothing to compare with"
    assert abs(found - expected).max() < tolerance * largest, what
