"""Measures the clips of a table, and writes a table of those that pass the thresholds, with what each threshold left."""

import contextlib
import csv
import functools
import io
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.data import captions, files, funnel, metadata, pieces, scored, video
from moviegen.data.scores import Clip
from moviegen.errors import DataError
from moviegen.evaluation import page
from moviegen.runner import Run
from moviegen.storage.files import write_json, write_text

SHEET = 4  # pictures of a clip on the page
_HEIGHT = 96  # of one, in pixels


def run(run: Run) -> dict[str, float]:
    """Measures the files of `data.csv`, or all of a bare `data.video_folder`; returns how many clips of how many rows it kept.

    Leaves `scores.csv`, with which a run that was stopped goes on, `curated.csv` (the rows kept with all their columns and
    their scores, a file with cuts in a row for each shot), `curate.json` and `curate.html`. DataError where nothing is left.
    """
    config, workdir = run.config, run.workdir
    data, settings = config.data, config.curate
    listed = files.listed(data.csv, data.video_folder, outside=captions.allow_outside(data))
    bad = files.Bad(len(listed), 1.0, data.csv or data.video_folder)  # leaving them out is what this is for

    def worth(clip: Clip) -> bool:
        return all(passes(clip) for _, _, _, passes in funnel.header(settings))

    clips = scored.update(workdir / "scores.csv", listed, metadata.read(config), settings, worth, bad)
    kept, steps = funnel.apply(clips, settings)
    shares = _shares(steps, len(listed))
    print(_printed(steps, shares, len(listed)), flush=True)
    write_json({"rows": len(listed), "unreadable": bad.reasons, "funnel": shares}, workdir / "curate.json")
    write_text(_page(steps, shares, kept, bad, settings.shown), workdir / "curate.html")
    if not kept:
        step = next(step for step in steps if not step.rows)
        told = " and ".join(f"curate.{key} is {settings[key]!r}" for key in step.keys.split())
        raise DataError(
            f"{bad.of}: nothing is left after {step.name}: {told}; {workdir}/curate.html shows what it dropped"
        )
    write_text(_table(data.csv, kept), workdir / "curated.csv")
    print(f"curate: {workdir}/curated.csv; what was kept and dropped is in {workdir}/curate.html", flush=True)
    return {"rows": len(listed), "bad": len(bad.reasons), "kept": len(kept)}


def _shares(steps: Sequence[funnel.Step], rows: int) -> list[dict[str, Any]]:
    """The funnel as plain numbers, shares of the rows there were and of the seconds that can be read."""
    seconds = steps[0].seconds
    return [
        {
            "threshold": step.words,
            "rows": step.rows,
            "share": step.rows / rows,
            "clips": step.clips,
            "hours": step.seconds / 3600,
            "share_of_hours": step.seconds / seconds if seconds else 0.0,
        }
        for step in steps
    ]


_HEADS = ("threshold", "rows", "share", "clips", "hours", "share")


def _cells(share: Mapping[str, Any]) -> list[str]:
    hours = f"{share['hours']:.4g}", f"{share['share_of_hours']:.2%}"
    return [share["threshold"], str(share["rows"]), f"{share['share']:.2%}", str(share["clips"]), *hours]


def _printed(steps: Sequence[funnel.Step], shares: Sequence[Mapping[str, Any]], rows: int) -> str:
    lines = [list(_HEADS), ["in the table", str(rows), "100.00%", "", "", ""], *map(_cells, shares)]
    width = max(len(line[0]) for line in lines)
    return "\n".join(
        "  ".join([line[0].ljust(width), *(cell.rjust(8) for cell in line[1:])]).rstrip() for line in lines
    )


def _table(path: str, kept: Sequence[Clip]) -> str:
    """The rows of the table whose clips are kept, in its order; without a table a row for each clip."""
    rows: dict[str, list[dict]] = {}
    for _, row in captions.rows(path, ("video",)) if path else ():
        with contextlib.suppress(DataError):  # told when the files were listed
            rows.setdefault(pieces.name(row), []).append(row)
    columns = list(dict.fromkeys([*(key for own in rows.values() for row in own for key in row if key), "video"]))
    columns = list(
        dict.fromkeys([*columns, "start", "end", *(f"score_{name}" for name in ("seconds", *scored.NUMBERS))])
    )
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
    table.writeheader()
    for clip in kept:
        piece, shot = clip.piece, clip.shot
        own = {
            f"score_{name}": f"{x:.5g}" for name in scored.NUMBERS if shot and (x := getattr(shot, name)) is not None
        }
        own["score_seconds"] = f"{clip.length:.3f}"
        if piece:
            own |= {"video": piece.video, "start": pieces.text(piece.start), "end": pieces.text(piece.end)}
        table.writerows(row | own for row in rows.get(clip.file.name, [{"video": clip.file.name}]))
    return text.getvalue()


def _page(
    steps: Sequence[funnel.Step], shares: Sequence[Mapping[str, Any]], kept: Sequence[Clip], bad: files.Bad, shown: int
) -> str:
    """The funnel, and pictures of some clips that were kept and of some that each threshold dropped."""
    rows = [[page.escape(cell) for cell in _cells(share)] for share in shares]
    sections = [page.table(_HEADS, rows)]
    if bad.reasons:
        reasons = [[page.escape(reason)] for reason in list(bad.reasons.values())[: files.SHOWN]]
        sections.append(page.section(f"{len(bad.reasons)} cannot be read", page.table(["reason"], reasons)))
    groups = [("kept", kept), *((f"dropped by {step.words}", step.dropped) for step in steps)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        card = functools.partial(_card, Path(folder))
        for title, clips in groups:
            if clips:
                some = [clips[i] for i in np.unique(np.linspace(0, len(clips) - 1, shown).astype(int))]
                cards = page.grid(list(pool.map(card, some)), "wide")
                sections.append(page.section(page.escape(f"{len(clips)} {title}"), cards))
    return page.document("Curation", sections)


def _card(folder: Path, clip: Clip) -> str:
    """Pictures of a clip from its start to its end, its name and its scores."""
    size, path = (_HEIGHT, max(1, round(_HEIGHT * clip.width / clip.height))), folder / f"{secrets.token_hex(8)}.png"
    rate = SHEET / clip.length if clip.length else 0.0
    try:
        frames, _ = video.read(clip.file.path, size=size, fps=rate, piece=clip.piece)
    except DataError as error:  # it could be read when it was measured
        return page.card("", page.escape(str(error)))
    video.write_sheet(path, frames[:SHEET], columns=SHEET)
    numbers = {"seconds": clip.length, **{name: getattr(clip.shot, name, None) for name in scored.NUMBERS}}
    told = ", ".join(f"{name} {x:.3g}" for name, x in numbers.items() if x is not None)
    name = clip.piece.name if clip.piece else clip.file.name
    return page.card(page.picture(path), f"<b>{page.escape(name)}</b>, {clip.width}x{clip.height}, {told}")
