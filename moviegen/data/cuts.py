"""Where one shot ends and the next begins, told from tiny pictures of a video's frames."""

import numpy as np

SIDE = 16  # of the tiny pictures
_AROUND = 12  # frames before and after, whose usual difference is what a shot's own motion makes
_FLASH = 5  # frames; a picture that is back after fewer was lit up, or somebody walked through it
_TIMES = 3.0  # a cut differs so much more than that


def tiny(frame: np.ndarray) -> np.ndarray:
    """uint8 (h w 3), sides of at least SIDE -> float32 (SIDE SIDE 3), each the mean of its part of the picture."""
    return pooled(frame, SIDE)


def pooled(array: np.ndarray, side: int) -> np.ndarray:
    """(h w ...) -> float32 (side side ...): means over side x side parts of nearly one size; h and w are at least side."""
    array = array.astype(np.float32)
    for axis in (0, 1):
        edges = np.linspace(0, array.shape[axis], side + 1).astype(int)
        counts = np.diff(edges).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        array = np.add.reduceat(array, edges[:-1], axis) / counts
    return array


def find(pictures: np.ndarray, levels: float) -> list[int]:
    """The frames that begin a new shot, of tiny pictures (t h w c) with levels from 0 to 255.

    A cut is where two frames differ by more than `levels` in the mean, and three times as much as those around them usually
    do; unless the picture is back within five frames, as after a flash. Dissolves and fades are not found.
    """
    if len(pictures) < 2:
        return []
    differences = np.array([_differ(*pair) for pair in zip(pictures, pictures[1:], strict=False)])  # of frame i + 1
    found = []
    for i in np.flatnonzero(differences > levels):
        near = np.concatenate([differences[max(0, i - _AROUND) : i], differences[i + 1 : i + 1 + _AROUND]])
        if len(near) and differences[i] <= _TIMES * np.median(near):
            continue
        before, after = pictures[max(0, i + 1 - _FLASH) : i + 1], pictures[i + 1 : i + 1 + _FLASH]
        if min(_differ(one, other) for one in before for other in after) > differences[i] / 2:
            found.append(int(i) + 1)
    return found


def _differ(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float32) - other).mean())
