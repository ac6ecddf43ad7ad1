"""The demo's report: `report.json` with its numbers, and `report.html`, one file that needs no network."""

import json
import time
from pathlib import Path
from typing import Any

from moviegen.demo import course
from moviegen.evaluation import page
from moviegen.storage import files
from moviegen.storage.writers import read_metrics

TARGETS = {"prompts.colour": 0.95, "prompts.direction": 0.90, "prompts.shape": 0.80}
CHANCE = {"prompts.colour": 1 / 6, "prompts.direction": 1 / 4, "prompts.shape": 1 / 4}
SYNTHETIC_GAIN, REAL_GAIN = 6.0, 3.0  # dB above pooling
MAX_SECONDS, MAX_GB = 20 * 60, 8.0


def build(config: Any, workdir: str | Path) -> dict[str, float]:
    """Write report.json and report.html from the finished stages in `workdir`; returns the numbers, flat.

    Time is the sum over stages, memory the largest of any.
    """
    workdir, start = Path(workdir), time.time()
    stages = {name: course.finished(workdir, name) for name in course.STAGES if name != "report"}
    missing = [name for name, done in stages.items() if done is None]
    if missing:
        raise FileNotFoundError(f"{workdir}: the stages {', '.join(missing)} are not finished")
    numbers = {key: value for name in ("tae", "sample") for key, value in stages[name]["metrics"].items()}
    numbers["peak_memory_gb"] = max(done["peak_memory_gb"] for done in stages.values())
    sections = [
        _reconstructions(workdir),
        _samples(config, workdir),
        _curves(workdir),
    ]
    numbers["seconds"] = round(sum(done["seconds"] for done in stages.values()) + time.time() - start, 1)
    numbers = {key: round(float(value), 4) for key, value in numbers.items()}
    title = "moviegen: the whole course at toy size"
    html = page.document(title, [_headline(numbers, config), *sections, _resources(stages, numbers)])
    files.write_text(html, workdir / "report.html")
    files.write_json(nested(numbers), workdir / "report.json")
    return numbers


def nested(flat: dict[str, float]) -> dict:
    """{"tae.psnr": 1, "seconds": 2} -> {"tae": {"psnr": 1}, "seconds": 2}; whole numbers become ints."""
    made: dict = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        section = made
        for part in path:
            section = section.setdefault(part, {})
        section[last] = int(value) if float(value).is_integer() else value
    return made


def _headline(numbers: dict[str, float], config: Any) -> str:
    n = numbers
    dB, plain = "{:.2f} dB".format, "{:.3f}".format

    def row(label, key, show, target, goal):
        prefix, _, metric = key.rpartition("_")
        start = "tae.synthetic_" if "synthetic" in prefix else "tae."
        pool, linear = n[f"{start}baseline_{metric}"], n[f"{start}linear_{metric}"]
        ours = n[key]
        return [
            label,
            f"<b>{show(ours)}</b>",
            show(pool),
            show(linear),
            target,
            page.mark(goal(ours, pool)),
            page.mark(ours > linear),
        ]

    rows = [
        row("real clip, PSNR", "tae.heldout_psnr", dB, f"pooling + {REAL_GAIN:g} dB", lambda a, b: a >= b + REAL_GAIN),
        row("real clip, SSIM", "tae.heldout_ssim", plain, "above pooling", lambda a, b: a > b),
        row(
            "synthetic clips, PSNR",
            "tae.synthetic_psnr",
            dB,
            f"pooling + {SYNTHETIC_GAIN:g} dB",
            lambda a, b: a >= b + SYNTHETIC_GAIN,
        ),
        row("synthetic clips, SSIM", "tae.synthetic_ssim", plain, "", lambda a, b: a > b),
    ]
    heads = [
        "autoencoder, clips not trained on",
        "TAE",
        "average pooling",
        "linear (PCA-16)",
        "target",
        "reached",
        "above linear",
    ]
    tables = page.table(heads, rows)
    if config.data.source == "clips":
        matched, total = n["clips.matched"], n["clips.total"]
        rows = [
            [
                "sample nearest to its own clip",
                f"<b>{matched:.0f} of {total:.0f}</b>",
                "all",
                page.mark(matched == total),
            ]
        ]
        tables += page.table(["text to video, captioned real clips", "samples", "target", "reached"], rows)
    else:
        rows = []
        for key, target in TARGETS.items():
            name = key.removeprefix("prompts.")
            ceiling = f"{n[f'tae.judged_{name}']:.0%}"
            share = f"<b>{n[key]:.1%}</b> of {n['prompts.samples']:.0f}"
            rows.append(
                [f"{name} right", share, f"{CHANCE[key]:.0%}", ceiling, f"{target:.0%}", page.mark(n[key] >= target)]
            )
        heads = [
            "text to video, combinations never seen",
            "samples",
            "guessing",
            "held-out clips through the TAE",
            "target",
            "reached",
        ]
        tables += page.table(heads, rows)
    minutes = f"<b>{n['seconds'] / 60:.1f} min</b>"
    rows = [
        ["time", minutes, f"{MAX_SECONDS // 60} min", page.mark(n["seconds"] <= MAX_SECONDS)],
        [
            "peak memory",
            f"<b>{n['peak_memory_gb']:.1f} GB</b>",
            f"{MAX_GB:g} GB",
            page.mark(n["peak_memory_gb"] <= MAX_GB),
        ],
    ]
    return tables + page.table(["cost", "this run", "limit, on two cores", "kept"], rows)


def _reconstructions(workdir: Path) -> str:
    cards = []
    for path in sorted(
        (workdir / "tae" / "reconstructions").glob("*.mp4"), key=lambda p: (p.stem != "carphone", p.stem)
    ):
        note = "in no training set" if path.stem == "carphone" else "a training clip"
        cards.append(page.card(page.video(path, "wide"), f"<b>{path.stem}</b>, {note}"))
    intro = (
        "Left to right: original, average pooling, linear code (PCA-16), TAE; each keeps 16 numbers of 8x8x8 pixels."
    )
    return page.section("Real clips, original and reconstructed", f"<p>{intro}</p>" + page.grid(cards, "wide"))


def _samples(config: Any, workdir: Path) -> str:
    folder = workdir / "sample"
    verdicts = json.loads((folder / "samples.json").read_text())
    if config.data.source == "clips":
        cards = []
        for v in verdicts:
            pair = page.video(folder / "originals" / f"{v['wanted']}.mp4") + page.video(
                folder / "samples" / f"{v['file']}.mp4"
            )
            seen = f"{page.mark(v['matched'])} nearest to {v['nearest']}, {v['psnr']:.1f} dB from its own"
            cards.append(page.card(pair, f"{page.escape(v['prompt'])}<br>{seen}"))
        intro = "Each caption's clip (left) and the sample of that caption (right)."
        return page.section("Samples of the captions", f"<p>{intro}</p>" + page.grid(cards))
    cards = []
    for v in sorted(verdicts, key=lambda v: v["prompt"]):
        judged = []
        for key, wanted in v["wanted"].items():
            seen = v["seen"][key]
            judged.append(f"{page.mark(seen == wanted)} {seen or 'unclear'}")
        video = page.video(folder / "samples" / f"{v['file']}.mp4")
        cards.append(page.card(video, f"{page.escape(v['prompt'])}<br>{' '.join(judged)}"))
    intro = "No training clip showed these combinations. Below each prompt: what the judge saw in the video."
    return page.section("Samples of held-out prompts", f"<p>{intro}</p>" + page.grid(cards, "small"))


def _curves(workdir: Path) -> str:
    charts = [
        page.chart(
            "TAE: PSNR of training crops, dB", _series(workdir / "tae", {"tae/psnr": "training crops"}), log=False
        )
    ]
    for name, title in (("t2i", "text to image"), ("t2v", "text to video, joint with images")):
        keys = {f"{name}/image_loss": "images", f"{name}/video_loss": "videos", f"{name}/heldout_loss": "held out"}
        charts.append(page.chart(f"{title}: flow-matching loss", _series(workdir / name, keys), log=True))
    return page.section("Training curves", page.grid(charts, "charts"))


def _series(folder: Path, labels: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    lines = read_metrics(folder)
    found = {
        label: [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        for key, label in labels.items()
    }
    return {label: points for label, points in found.items() if points}


def _resources(stages: dict[str, dict], numbers: dict[str, float]) -> str:
    rows = [[name, f"{done['seconds']:.0f} s", f"{done['peak_memory_gb']:.2f} GB"] for name, done in stages.items()]
    rows.append(["<b>together</b>", f"<b>{numbers['seconds']:.0f} s</b>", f"<b>{numbers['peak_memory_gb']:.2f} GB</b>"])
    note = "<p>Time that an interrupted run spent on an unfinished stage is not in these numbers.</p>"
    return page.section("Time and memory", page.table(["stage", "time", "peak memory"], rows) + note)
