"""Looks at a table of clips before anything is trained on it: which rows will be used, which are lost and why."""

import base64
import contextlib
import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moviegen.data import contact, doctor, findings, metadata
from moviegen.data.findings import Sample, Survey
from moviegen.errors import DataError
from moviegen.evaluation import page
from moviegen.runner import Run
from moviegen.storage import files

FOUND, PAGE, LOST, METADATA = "check_data.json", "check_data.html", "lost.csv", "metadata.csv"


def run(run: Run) -> dict[str, float]:
    """Look at every row of `data.csv`, or every file of a bare `data.video_folder`, and of `data.validation_csv`.

    Prints and writes `check_data.json`, the page `check_data.html` with a contact sheet of each bucket, `lost.csv`, and what
    the files' headers say to `data.metadata` (default: WORKDIR/metadata.csv), where a run that was stopped goes on. Returns
    the rows, those that can be trained on, and those whose content is doubtful. DataError where nothing is left.
    """
    config, workdir = run.config, run.workdir
    known = config.data.get("metadata") or str(workdir / METADATA)
    checks = doctor.open_checks(config, metadata.Table(known))
    validated, path = None, config.data.csv
    with _losing(workdir / LOST) as lose:
        if held := config.data.get("validation_csv"):
            validated = doctor.survey(checks, held, lambda *row: lose(held, *row))
        apart = {os.path.normpath(name) for name in validated.names} if validated else ()
        found = doctor.survey(checks, path, lambda *row: lose(path, *row), apart)
    doctor.same_content(checks, found, validated)
    noted = {
        "table": path or config.data.video_folder,
        "notes": [*checks.notes, *_notes(checks, found)],
        "training": findings.report(config, checks.buckets, checks.lengths, found),
    }
    if validated:
        noted["validation"] = findings.counts(validated)
    files.write_json(noted, workdir / FOUND)
    for line in _told(noted):
        print(f"check_data: {line}", flush=True)
    files.write_text(_page(noted, found), workdir / PAGE)
    print(f"check_data: shown in {workdir / PAGE}; rows that are lost: {workdir / LOST}", flush=True)
    if config.data.video_folder:
        print(f"check_data: so that nothing is opened for its header again: --config.data.metadata={known}", flush=True)
    if not found.taken:
        raise DataError(f"{noted['table']}: {_nothing(found)} (all of them in {workdir / LOST})")
    doubtful = sum(found.lost[reason] for reason in findings.TAKEN)
    return {"rows": found.rows, "taken": found.taken, "lost": found.rows - found.taken, "doubtful": doubtful}


@contextlib.contextmanager
def _losing(path: Path) -> Iterator[Any]:
    """Yields what writes a line of a csv for each row that is lost."""
    with files.aside(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("table", "line", "video", "reason", "why"))
        yield lambda table, line, name, reason, why: rows.writerow((table, line or "", name, reason, why))


def _notes(checks: doctor.Checks, found: Survey) -> Iterator[str]:
    """What training would refuse."""
    data, bad = checks.config.data, sum(found.lost[reason] for reason in findings.BAD)
    allowed = data.get("max_bad_fraction", 0.0)
    if bad > allowed * found.rows:
        share = f"{bad / found.rows:.1%} of the rows are bad"
        yield f"{share}, more than data.max_bad_fraction={allowed:g} are refused: mend them, or take them out of the table"
    for kind in dict.fromkeys(each.kind for each in checks.buckets):
        if found.sums and not any(each.kind == kind and each.name in found.sums for each in checks.buckets):
            only = 0.0 if kind == "image" else 1.0
            yield f"no {kind} can be used, data.image_fraction is {data.image_fraction:g}: set it to {only} or add {kind}s"


def _nothing(found: Survey) -> str:
    if not found.rows:
        return "no rows, only a header"
    why = ", ".join(f"{found.lost[reason]} {reason}" for reason in findings.LOST if found.lost[reason])
    return f"nothing is left to train on, of {found.rows} rows: {why}: first of them, {next(iter(found.first.values()))[0]}"


def _told(noted: dict[str, Any]) -> Iterator[str]:
    """What the terminal shows, in lines."""
    for name in ("validation", "training"):
        if own := noted.get(name):
            yield f"{name}: {own['taken']} of {own['rows']} rows can be used"
            for heads, rows in (_tables(own) if name == "training" else {"": _reasons(own)}).values():
                if rows:
                    texts = [heads, *([str(cell) for cell in row] for row in rows)]
                    widths = [min(60, max(map(len, column))) for column in zip(*texts, strict=True)]
                    yield from ("  " + "  ".join(map(str.ljust, text, widths)).rstrip() for text in texts)
    if empty := [each["bucket"] for each in noted["training"]["buckets"] if not each["rows"]]:
        yield f"buckets without a row: {', '.join(empty)}"
    for note in noted["notes"]:
        yield f"note: {note}"


def _tables(own: dict[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Heads and rows by title."""
    shapes = []
    for each in filter(lambda each: each["rows"], own["buckets"]):
        cut = f"{each['seconds_cut'] / each['seconds']:.1%}" if each["seconds"] else "-"
        short = f"less than one batch: {each['mend']}" if each["mend"] else ""
        numbers = [each["bucket"], each["rows"], each["batch"], f"{each['weight']:g}", each["batches_an_epoch"]]
        shapes.append([*numbers, f"{each['seconds']:.0f}", cut, f"{each['pixels_cut']:.1%}", each["enlarged"], short])
    lengths = []
    for name, each in own["captions"].items():
        limit = [each["budget"], each["cut"]] if each["budget"] else ["-", "-"]
        lengths.append([name, each["unit"], each["median"], each["p95"], each["most"], *limit])
    worst = [[each["line"] or "", each["video"], each["bucket"], each["why"]] for each in own["worst"]]
    numbers = ["batch", "weight", "batches an epoch", "seconds", "of them cut", "of pictures cut", "enlarged", ""]
    return {
        "Rows that are lost, and rows to look at": _reasons(own),
        "Buckets": (["bucket", "rows", *numbers], shapes),
        "Captions": (["captions of", "in", "median", "95%", "longest", "budget", "cut"], lengths),
        "The worst rows": (["line", "worst rows", "bucket", "why"], worst),
    }


def _reasons(own: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    found = [(reason, what) for kind in ("lost", "doubtful") for reason, what in own[kind].items()]
    rows = [[reason, what["rows"], f"{what['rows'] / own['rows']:.2%}", what["first"][0]] for reason, what in found]
    return ["why", "rows", "share", "first of them"], rows


def _page(noted: dict[str, Any], found: Survey) -> str:
    own = noted["training"]
    parts = [f"<p>{own['taken']} of {own['rows']} rows can be trained on.</p>"]
    parts += [f"<p>{page.escape(note)}</p>" for note in noted["notes"]]
    for title, (heads, rows) in _tables(own).items():
        if rows:
            parts.append(page.section(title, page.table(heads, [[page.escape(str(c)) for c in row] for row in rows])))
    worst = [sample for *_, sample in sorted(found.worst, key=lambda each: each[:3], reverse=True)]
    sheets = {"The worst rows, seen": worst}
    for each in own["buckets"]:
        entries = sorted(found.shown.get(each["bucket"], ()), key=lambda entry: entry[:3])
        sheets[f"{each['bucket']}: {len(entries)} of {each['rows']} rows, at random"] = [entry[-1] for entry in entries]
    for title, samples in sheets.items():
        if samples:
            parts.append(page.section(title, page.grid([_card(sample) for sample in samples], "wide")))
    return page.document(f"Data of {noted['table']}", parts)


def _card(sample: Sample) -> str:
    own, meta = sample.fit, sample.meta
    try:
        shown = f'<img src="data:image/jpeg;base64,{base64.b64encode(contact.strip(sample)).decode()}">'
    except DataError as error:
        shown = f"<p>{page.escape(str(error))}</p>"
    what = f"{meta.width}x{meta.height}"
    if own.bucket.frames > 1:
        rate = own.fps or meta.fps or 1.0
        what += (
            f", {meta.seconds:.2f} s at {meta.fps:.4g} a second, shown at {rate:.4g} from {own.start / rate:.2f} s on"
        )
    what += f"; cut off: {own.rows:.0%} of its height, {own.columns:.0%} of its width"
    words = [f"<b>{page.escape(sample.file.name)}</b>", what, page.escape(sample.caption[:300])]
    return page.card(shown, "<br>".join(filter(None, words)))
