"""Tables of learned positions at another length."""

import numpy as np


def resize_table(table: np.ndarray, length: int) -> np.ndarray:
    """Returns a position table (old, d) as (length, d), linear between its rows, first and last row kept; float32."""
    table = np.asarray(table, np.float32)
    at = np.linspace(0, len(table) - 1, length)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(table) - 1)
    weight = (at - low)[:, None]
    return ((1 - weight) * table[low] + weight * table[high]).astype(np.float32)
