"""The files of an evaluation: its numbers as json and csv, and a page of the clips that are reconstructed worst."""

import csv
import io
from pathlib import Path
from typing import Any

from moviegen.evaluation import page
from moviegen.evaluation.comparison import RECONSTRUCTIONS, Row, measures
from moviegen.storage.files import write_json, write_text

SHOWN = 12  # clips on the page


def write(workdir: Path, summary: dict[str, Any]) -> None:
    """Writes `evaluation.json`, `evaluation.csv` and `worst.html` of what `comparison.compare` found."""
    write_json(summary, workdir / "evaluation.json")
    write_text(_table(summary), workdir / "evaluation.csv")
    write_text(_page(workdir, summary), workdir / "worst.html")


def _table(summary: dict[str, Any]) -> str:
    """A line for each clip, and the mean."""
    rows, of = summary["clips"], summary["of"]
    columns = list(rows[0])
    mean = {"clip": "mean", "frames": of["frames"], "fps": of["fps"]} | summary["mean"]
    if "frechet" in summary:
        columns += ["frechet", "frechet_of"]
        mean |= {"frechet_of": summary["frechet"]["of"]}
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, extrasaction="ignore")
    table.writeheader()
    table.writerows({key: _harmless(value) for key, value in row.items()} for row in [*rows, mean])
    return text.getvalue()


def _harmless(value: Any) -> Any:
    """A cell that no spreadsheet runs: text that would be a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _page(workdir: Path, summary: dict[str, Any]) -> str:
    """The means, and the clips with the lowest PSNR, worst first."""
    rows, mean, keys = summary["clips"], summary["mean"], measures(summary["clips"])
    means = page.table(["mean of", *keys], [[f"{mean['clips']} clips", *(f"{mean[key]:.3f}" for key in keys)]])
    if "frechet" in summary:
        means += f"<p>Fréchet distance {mean['frechet']:.4g}: {page.escape(summary['frechet']['of'])}</p>"
    worst = sorted(rows, key=lambda row: row["psnr"])[:SHOWN]
    cards = page.grid([_card(workdir / RECONSTRUCTIONS, row, keys) for row in worst], "wide")
    order = "original, reconstruction" + (", linear code" if "linear_psnr" in keys else "")
    return page.document("Reconstructions, the worst first", [means, page.section(f"{order}, side by side", cards)])


def _card(folder: Path, row: Row, keys: list[str]) -> str:
    path = folder / row["file"]
    shown = page.picture(path) if path.suffix == ".png" else page.video(path, "wide")
    numbers = ", ".join(f"{key} {row[key]:.3f}" for key in keys)
    return page.card(shown, f"<b>{page.escape(row['clip'])}</b><br>{numbers}")
