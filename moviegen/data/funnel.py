"""The funnel of curation: thresholds one after another, in the paper's order, and what each of them left."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from moviegen.data import duplicates
from moviegen.data.scores import Clip

Keep = Callable[[Clip], bool]


class Step(NamedTuple):
    """A threshold, the config's keys of it, in words; how much there was after it; what it dropped.

    rows: of the table, those of which something is left; clips: these, or their shots, once they are split at cuts.
    """

    name: str
    keys: str
    words: str
    rows: int
    clips: int
    seconds: float
    dropped: list[Clip]


def header(settings: Any) -> list[tuple[str, str, str, Keep]]:
    """The thresholds that a file's header settles: name, keys, words, whether a clip passes."""
    low, high = settings.seconds
    least = settings.min_side
    found = [("duration", "seconds", f"{low:g} to {high:g} s", lambda c: not c.seconds or low <= c.seconds <= high)]
    if least:
        found.append(("size", "min_side", f"both sides >= {least}", lambda c: min(c.height, c.width) >= least))
    if settings.landscape:
        found.append(("aspect", "landscape", "width >= height", lambda c: c.width >= c.height))
    return found


def measured(settings: Any) -> list[tuple[str, str, str, Keep]]:
    """The thresholds of what was measured, but for near duplicates; those of scores that are switched off are not there."""
    found: list[tuple[str, str, str, Keep]] = []
    low = settings.seconds[0]

    def bound(score: str, name: str, key: str, sign: str) -> None:
        limit = settings[key]

        def passes(clip: Clip) -> bool:
            value = getattr(clip.shot, name)
            return value is None or (value <= limit if sign == "<=" else value >= limit)

        if score in settings.scores:
            found.append((name, key, f"{name} {sign} {limit:g}", passes))

    bound("border", "border", "max_border", "<=")
    if "cuts" in settings.scores:
        if settings.cuts == "drop":
            found.append(("cuts", "cuts", "no cut", lambda c: c.shots == 1))
        else:
            words = f"split into shots of {low:g} s or more"
            found.append(("cuts", "cuts seconds", words, lambda c: not c.seconds or c.length >= low))
    bound("sharpness", "sharpness", "min_sharpness", ">=")
    bound("motion", "motion", "min_motion", ">=")
    bound("motion", "motion", "max_motion", "<=")
    bound("motion", "static", "max_static", "<=")
    return found


def apply(clips: Sequence[Clip], settings: Any) -> tuple[list[Clip], list[Step]]:
    """The clips that pass all thresholds, and the funnel; its first step is all that can be read."""
    left = list(clips)
    steps = [_step("read", "", "can be read", left, [], split=False)]
    split = False
    for name, keys, words, passes in [*header(settings), *measured(settings)]:
        split = split or name == "cuts"
        dropped = [clip for clip in left if not passes(clip)]
        left = [clip for clip in left if passes(clip)]
        steps.append(_step(name, keys, words, left, dropped, split))
    if "duplicates" in settings.scores:
        # The largest first, of these the longest, of these the first in the table.
        order = sorted(range(len(left)), key=lambda i: (-left[i].height * left[i].width, -left[i].length, i))
        again = duplicates.near_better([left[i].shot.hashes for i in order], settings.duplicate_bits)
        out = {order[i] for i in again}
        dropped = [left[i] for i in sorted(out)]
        left = [clip for i, clip in enumerate(left) if i not in out]
        words = f"differs from others in > {settings.duplicate_bits} of 64 bits"
        steps.append(_step("duplicates", "duplicate_bits", words, left, dropped, split))
    return left, steps


def _step(name: str, keys: str, words: str, left: list[Clip], dropped: list[Clip], split: bool) -> Step:
    rows = {clip.file.name: clip.seconds for clip in left}
    clips = len(left) if split else len(rows)
    seconds = sum(clip.length for clip in left) if split else sum(rows.values())
    return Step(name, keys, words, len(rows), clips, seconds, dropped)
