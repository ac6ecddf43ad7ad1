"""The rate at which a table's clips are shown to the model: the one that their captions tell."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moviegen.data import metadata, pieces
from moviegen.errors import DataError
from moviegen.storage import files
from moviegen.text import prompts

MOST = 1000.0  # frames per second; what is above is a mistake


def parse(text: str | None) -> float:
    """Frames per second in a csv's column `fps`, such as 24, 29.97 or 30000/1001; 0 where it is empty. Raises DataError."""
    if not text or not text.strip():
        return 0.0
    over, _, under = text.partition("/")
    try:
        rate = float(over) / float(under or 1)
    except (ValueError, ZeroDivisionError):
        rate = math.nan
    if not 0 < rate <= MOST:
        raise DataError(f"fps is {text[:40]!r}, expected a number above 0 and up to {MOST:g}, such as 24 or 30000/1001")
    return rate


def of(row: Mapping[str, str | None], data: Any, cached: Mapping[str, float]) -> float:
    """The rate of a csv's row: that of its latents in the cache, the csv's `fps`, `data.fps`, or the file's own.

    cached: rates by name (`latent_cache.Cache.rates`). Raises DataError where the csv contradicts the latents, where the
    rate is the file's own and there is no file, and where it is that at which the clip fills its bucket: latents tell it.
    """
    name, stated = pieces.name(row), parse(row.get("fps"))
    if name in cached:
        if stated and prompts.whole(stated) != prompts.whole(cached[name]):
            raise DataError(f"fps is {row['fps']}, but its latents are shown at {cached[name]:g}: encode them anew")
        return cached[name]
    if stated or data.fps:
        return stated or data.fps
    if data.get("buckets") and data.buckets.resolution:
        raise DataError(
            "its frame rate is not known: with data.buckets it follows from the clip's length. Encode the videos first "
            "(--job=encode_video) and set data.latent_folder, or state it in a column fps"
        )
    if not data.video_folder:
        raise DataError(
            "its frame rate is not known: set data.fps or data.video_folder, add a column fps, or encode the videos first "
            "and set data.latent_folder"
        )
    path = files.inside(Path(data.video_folder), row["video"] or "", data.get("allow_outside", False))
    return metadata.opened(data).find(name, path, pieces.of(row)).fps
