"""An endless captioned video set, rendered: coloured shapes that move, and a judge that reads them back from pixels.

Some combinations are held out of the training split; every colour, shape, direction and pair of them is in it.
"""

import functools
import itertools

import numpy as np

from moviegen import streams
from moviegen.data.video import height_width
from moviegen.streams import Stream

COLOURS = {
    "red": (225, 45, 45),
    "yellow": (225, 225, 45),
    "green": (45, 205, 45),
    "cyan": (45, 215, 215),
    "blue": (50, 50, 230),
    "purple": (205, 45, 205),
}
SPLITS = ("train", "heldout")
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (down, right) per unit of time

Combination = tuple[str, str, str]

# Half height and half width of a shape of unit size: squares and triangles are a little smaller and wider than circles
# so that all four look equally large.
_EXTENT = {"circle": (1.0, 1.0), "square": (0.92, 0.92), "triangle": (1.0, 1.15), "cross": (1.08, 1.08)}
_ARM = 0.36  # half width of the cross's arms, in its size
# How far from the frame's middle a path's middle may be, in frames: else the toy's minutes go into learning places.
_OFF_CENTRE = 0.06


def combinations(split: str) -> list[Combination]:
    """Lists the (colour, shape, direction) of a split: 80 in "train", 16 in "heldout"."""
    if split not in SPLITS:
        raise ValueError(f'split {split!r}: expected "train" or "heldout"')
    found = []
    for (i, colour), (j, shape), (k, direction) in itertools.product(*map(enumerate, (COLOURS, SHAPES, DIRECTIONS))):
        # One colour is held out of each (shape, direction), never the same twice in a row or column,
        # so each pair of attributes stays in training.
        heldout = (j + k) % len(COLOURS) == i
        if heldout == (split == "heldout"):
            found.append((colour, shape, direction))
    return found


def caption(combination: tuple[str, str, str | None]) -> str:
    """("red", "circle", "left") -> "a red circle moves left"; with None for the direction, "a red circle"."""
    colour, shape, direction = combination
    return f"a {colour} {shape}" + (f" moves {direction}" if direction else "")


def render(
    combination: Combination, rng: np.random.Generator, num_frames: int, size: int | tuple[int, int] = 64
) -> np.ndarray:
    """Draws one clip, uint8 (t h w c): size, path and grey background from `rng`, edges anti-aliased.

    The whole object stays in the frame and crosses 0.27 to 0.4 of it, half of that before and half after about the middle,
    at constant speed. One frame shows it somewhere on its path.
    """
    colour, shape, direction = combination
    height, width = height_width(size)
    radius = rng.uniform(0.19, 0.23) * min(height, width)
    extent = np.multiply(_EXTENT[shape], radius)
    step = np.array(DIRECTIONS[direction])
    travel = step * rng.uniform(0.27, 0.4) * np.array([height, width])
    middle = np.array([height, width]) * rng.uniform(0.5 - _OFF_CENTRE, 0.5 + _OFF_CENTRE, 2)
    low, high = extent + 1, np.array([height, width]) - extent - 1
    start = np.clip(middle - travel / 2, low - np.minimum(travel, 0), high - np.maximum(travel, 0))
    times = np.linspace(0, 1, num_frames) if num_frames > 1 else rng.uniform(0, 1, 1)
    background = _background(rng, height, width)
    ink = np.clip(np.array(COLOURS[colour]) + rng.uniform(-15, 15), 0, 255)
    covers = (coverage(shape, start + time * travel, radius, height, width)[..., None] for time in times)
    return np.stack([np.rint(background * (1 - cover) + ink * cover).astype(np.uint8) for cover in covers])


def sample_clip(
    seed: int, index: int, split: str, num_frames: int, size: int | tuple[int, int] = 64
) -> tuple[np.ndarray, str]:
    """Returns clip `index` of a split, uint8 (t h w c), and its caption: a pure function of the arguments."""
    combination = sample_combination(seed, index, split)
    rng = streams.rng(Stream.RENDERED_CLIP, seed, index, SPLITS.index(split))
    return render(combination, rng, num_frames, size), caption(combination)


def sample_image(seed: int, index: int, split: str, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, str]:
    """Returns image `index` of a split, uint8 (1 h w c), and its caption, which names no direction."""
    combination = sample_combination(seed, index, split)
    rng = streams.rng(Stream.RENDERED_IMAGE, seed, index, SPLITS.index(split))
    return render(combination, rng, 1, size), caption((*combination[:2], None))


def sample_combination(seed: int, index: int, split: str) -> Combination:
    """Returns the combination of an index: every n indices hold each of a split's n once, in an order of their own."""
    found = combinations(split)
    epoch, position = divmod(index, len(found))
    order = streams.rng(Stream.RENDERED_ORDER, seed, epoch, SPLITS.index(split)).permutation(len(found))
    return found[order[position]]


def coverage(shape: str, centre: np.ndarray, radius: float, height: int, width: int) -> np.ndarray:
    """Returns how much of each pixel a shape covers, (h w) in [0, 1]; `centre` (y, x) is of its bounding box."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    y, x = y - centre[0], x - centre[1]
    tall, wide = np.multiply(_EXTENT[shape], radius)
    # Signed distance to the edge, in pixels: within half a pixel of it the coverage is linear in the distance.
    if shape == "circle":
        distance = np.hypot(y, x) - radius
    elif shape == "square":
        distance = np.maximum(abs(y) - tall, abs(x) - wide)
    elif shape == "triangle":
        slope = np.hypot(2 * tall, wide)
        distance = np.maximum(y - tall, (2 * tall * abs(x) - wide * (y + tall)) / slope)
    else:
        arm = _ARM * radius
        distance = np.minimum(np.maximum(abs(y) - tall, abs(x) - arm), np.maximum(abs(y) - arm, abs(x) - wide))
    return np.clip(0.5 - distance, 0, 1)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dark or light grey with a soft linear gradient, (h w 1)."""
    level = rng.uniform(35, 75) if rng.random() < 0.5 else rng.uniform(165, 205)
    rise, angle = rng.uniform(0, 20), rng.uniform(0, 2 * np.pi)
    y, x = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)
    return (level + rise * (np.cos(angle) * x + np.sin(angle) * y))[..., None]


# ---- the judge

_MIN_CHROMA = 40.0  # levels; grey has 0, the colours above have 110 to 170
_MIN_COVERAGE = 0.25  # of a pixel; less is noise
_MIN_OVERLAP = 0.75


def judge(frames: np.ndarray) -> tuple[str | None, str | None, str | None]:
    """Measures (colour, shape, direction) of the one coloured object in uint8 (t h w c); None where it cannot tell.

    Colour: the hue nearest to its mean chroma. Direction: a straight line fitted to its centroids. Shape: the largest soft
    intersection over union of its frames, laid over each other, with any shape of the same area, sharp or blurred.
    """
    mask, chroma = _segment(frames)
    if mask is None:
        return None, None, None
    hues = _chroma(np.array(list(COLOURS.values()), np.float64))
    colour = list(COLOURS)[int(np.argmax(hues @ chroma / np.linalg.norm(hues, axis=1)))]
    areas, centroids = _moments(mask)
    seen = areas > 0.5 * np.median(areas)
    if seen.mean() < 0.75:
        return colour, None, None
    return colour, _shape(mask[seen], areas[seen], centroids[seen]), _direction(centroids, seen, frames.shape[1:3])


def _chroma(rgb: np.ndarray) -> np.ndarray:
    return rgb - rgb.mean(axis=-1, keepdims=True)


def _segment(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Returns the object's coverage of each pixel (t h w) and its chroma (3,), or None twice when there is no object.

    Backgrounds are of one tint, so the object is where chroma departs from the median; its coverage is the projection on
    the object's own chroma, which is linear: noise and blur neither grow nor shrink it.
    """
    chroma = _chroma(frames.astype(np.float64))
    chroma -= np.median(chroma.reshape(-1, 3), axis=0)
    strength = np.linalg.norm(chroma, axis=-1)
    chosen = strength >= np.quantile(strength, 0.97)
    for _ in range(4):
        vector = chroma[chosen].mean(axis=0)
        if np.linalg.norm(vector) < _MIN_CHROMA:
            return None, None
        covered = chroma @ vector / (vector @ vector)
        chosen = covered > 0.6
    mask = np.where(covered > _MIN_COVERAGE, np.minimum(covered, 1.0), 0.0)
    return (mask, vector) if 0.01 < mask.mean() < 0.4 else (None, None)


def _moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas (t,) in pixels and centroids (t, 2) as (y, x) of masks (t h w)."""
    areas = mask.sum(axis=(1, 2))
    y, x = np.mgrid[0 : mask.shape[1], 0 : mask.shape[2]] + 0.5
    total = np.maximum(areas, 1e-9)
    return areas, np.stack([(mask * y).sum(axis=(1, 2)) / total, (mask * x).sum(axis=(1, 2)) / total], axis=-1)


def _direction(centroids: np.ndarray, seen: np.ndarray, size: tuple[int, int]) -> str | None:
    if seen.sum() < 2:
        return None
    moved = np.polyfit(np.flatnonzero(seen), centroids[seen], 1)[0] * (len(seen) - 1) / np.array(size)
    main = int(np.argmax(abs(moved)))
    if abs(moved[main]) < 0.1 or abs(moved[main]) < 1.5 * abs(moved[1 - main]):
        return None
    return next(name for name, step in DIRECTIONS.items() if step[main] == np.sign(moved[main]))


def _shape(mask: np.ndarray, areas: np.ndarray, centroids: np.ndarray) -> str | None:
    # Averaged in the object's own coordinates: a decoder's blocks stay on the pixel grid and so average out.
    patch = np.mean([_patch(*each) for each in zip(mask, areas, centroids, strict=True)], axis=0)
    scores = [np.minimum(patch, drawn).sum() / np.maximum(patch, drawn).sum() for _, drawn in _templates()]
    best = int(np.argmax(scores))
    return _templates()[best][0] if scores[best] > _MIN_OVERLAP else None


def _patch(mask: np.ndarray, area: float, centroid: np.ndarray) -> np.ndarray:
    """Samples a mask (h w) bilinearly on a 33x33 grid around its centroid, scaled to an area of one."""
    grid = np.linspace(-1.2, 1.2, 33) * np.sqrt(area)
    rows, columns = (
        np.maximum(0, 1 - abs(middle + grid[:, None] - (np.arange(length) + 0.5)))
        for middle, length in zip(centroid, mask.shape, strict=True)
    )
    return rows @ mask @ columns.T


@functools.cache
def _templates() -> list[tuple[str, np.ndarray]]:
    """Every shape, sharp and blurred in four steps up to half its radius, as `_patch` sees it."""
    found = []
    for shape in SHAPES:
        for sigma in (0, 3, 6, 10, 14):
            mask = coverage(shape, np.array([64, 64]), 32, 128, 128)
            if sigma:
                kernel = np.exp(-0.5 * ((np.arange(128) - np.arange(128)[:, None]) / sigma) ** 2)
                kernel /= kernel[64].sum()
                mask = kernel @ mask @ kernel
            mask = np.where(mask > _MIN_COVERAGE, mask, 0.0)
            (area,), (centroid,) = _moments(mask[None])
            found.append((shape, _patch(mask, area, centroid)))
    return found
