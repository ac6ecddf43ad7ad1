"""The demo's report: `report.json` with its numbers, and `report.html`, one file that needs no network."""

import json
import time
from pathlib import Path
from typing import Any

from moviegen.data import clips
from moviegen.demo import course
from moviegen.evaluation import page
from moviegen.storage import files
from moviegen.storage.writers import read_metrics

Numbers = dict[str, float]


# What the autoencoder must reach: label, its key before the metric, the baselines' key, dB of PSNR above pooling.
RECONSTRUCTION = (
    ("real clip", "tae.heldout_", "tae.", 3.0),
    ("synthetic clips", "tae.synthetic_", "tae.synthetic_", 6.0),
)
# Attribute of a prompt -> share of samples that must show it, and by guessing would.
PROMPTS = {"colour": (0.95, 1 / 6), "direction": (0.90, 1 / 4), "shape": (0.80, 1 / 4)}
MAX_SECONDS, MAX_GB = 20 * 60, 8.0


def build(config: Any, workdir: str | Path) -> Numbers:
    """Writes report.json and report.html of the finished stages in `workdir`, and returns the numbers, flat.

    Time is the sum over stages, memory the largest of any.
    """
    workdir, start = Path(workdir), time.time()
    stages = {name: course.finished(workdir, name) for name in course.STAGES if name != "report"}
    missing = [name for name, done in stages.items() if done is None]
    if missing:
        raise FileNotFoundError(f"{workdir}: the stages {', '.join(missing)} are not finished")
    numbers = {key: value for name in ("tae", "sample") for key, value in stages[name]["metrics"].items()}
    numbers["peak_memory_gb"] = max(done["peak_memory_gb"] for done in stages.values())
    sections = [_reconstructions(workdir), _samples(config, workdir), _curves(workdir)]
    numbers["seconds"] = round(sum(done["seconds"] for done in stages.values()) + time.time() - start, 1)
    numbers = {key: round(float(value), 4) for key, value in numbers.items()}
    judged = _clip_table if config.data.source == "clips" else _prompt_table
    headline = _reconstruction_table(numbers) + judged(numbers) + _cost_table(numbers)
    title = "moviegen: the whole course at toy size"
    html = page.document(title, [headline, *sections, _resources(stages, numbers)])
    files.write_text(html, workdir / "report.html")
    files.write_json(nested(numbers), workdir / "report.json")
    return numbers


def nested(flat: Numbers) -> dict:
    """Returns {"tae.psnr": 1, "seconds": 2} as {"tae": {"psnr": 1}, "seconds": 2}; whole numbers become ints."""
    made: dict = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        section = made
        for name in path:
            section = section.setdefault(name, {})
        section[last] = int(value) if float(value).is_integer() else value
    return made


def _reconstruction_table(numbers: Numbers) -> str:
    rows = []
    for label, tae, baselines, gain in RECONSTRUCTION:
        for metric, wanted, show in (
            ("psnr", f"pooling + {gain:g} dB", "{:.2f} dB"),
            ("ssim", "above pooling", "{:.3f}"),
        ):
            ours = numbers[tae + metric]
            pooling, linear = (numbers[f"{baselines}{name}_{metric}"] for name in ("baseline", "linear"))
            reached = ours >= pooling + gain if metric == "psnr" else ours > pooling
            shown = [f"<b>{show.format(ours)}</b>", show.format(pooling), show.format(linear), wanted]
            rows.append([f"{label}, {metric.upper()}", *shown, page.mark(reached), page.mark(ours > linear)])
    heads = ("autoencoder, clips not trained on", "TAE", "average pooling", "linear (PCA-16)", "target", "reached")
    return page.table((*heads, "above linear"), rows)


def _clip_table(numbers: Numbers) -> str:
    matched, total = numbers["clips.matched"], numbers["clips.total"]
    row = ["sample nearest to its own clip", f"<b>{matched:.0f} of {total:.0f}</b>", "all", page.mark(matched == total)]
    return page.table(["text to video, captioned real clips", "samples", "target", "reached"], [row])


def _prompt_table(numbers: Numbers) -> str:
    rows = []
    for name, (target, chance) in PROMPTS.items():
        right, ceiling = numbers[f"prompts.{name}"], numbers[f"tae.judged_{name}"]
        shown = [f"<b>{right:.1%}</b> of {numbers['prompts.samples']:.0f}"]
        shown += [f"{share:.0%}" for share in (chance, ceiling, target)]
        rows.append([f"{name} right", *shown, page.mark(right >= target)])
    heads = ("text to video, combinations never seen", "samples", "guessing", "held-out clips through the TAE")
    return page.table((*heads, "target", "reached"), rows)


def _cost_table(numbers: Numbers) -> str:
    seconds, memory = numbers["seconds"], numbers["peak_memory_gb"]
    rows = [
        ["time", f"<b>{seconds / 60:.1f} min</b>", f"{MAX_SECONDS // 60} min", page.mark(seconds <= MAX_SECONDS)],
        ["peak memory", f"<b>{memory:.1f} GB</b>", f"{MAX_GB:g} GB", page.mark(memory <= MAX_GB)],
    ]
    return page.table(["cost", "this run", "limit, on two cores", "kept"], rows)


def _reconstructions(workdir: Path) -> str:
    """The real clips, the held-out one first."""
    cards = []
    paths = (workdir / "tae" / "reconstructions").glob("*.mp4")
    for path in sorted(paths, key=lambda path: (path.stem != clips.HELDOUT, path.stem)):
        note = "in no training set" if path.stem == clips.HELDOUT else "a training clip"
        cards.append(page.card(page.video(path, "wide"), f"<b>{path.stem}</b>, {note}"))
    intro = "<p>Left to right: original, average pooling, linear code (PCA-16), TAE; each keeps 16 numbers of 8x8x8 pixels.</p>"
    return page.section("Real clips, original and reconstructed", intro + page.grid(cards, "wide"))


def _samples(config: Any, workdir: Path) -> str:
    """Every sample with what was measured of it."""
    folder = workdir / "sample"
    verdicts = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    if config.data.source == "clips":
        intro = "Each caption's clip (left) and the sample of that caption (right)."
        cards = page.grid([_clip_card(folder, verdict) for verdict in verdicts])
        return page.section("Samples of the captions", f"<p>{intro}</p>{cards}")
    intro = "No training clip showed these combinations. Below each prompt: what the judge saw in the video."
    by_prompt = sorted(verdicts, key=lambda verdict: verdict["prompt"])
    cards = page.grid([_prompt_card(folder, verdict) for verdict in by_prompt], "small")
    return page.section("Samples of held-out prompts", f"<p>{intro}</p>{cards}")


def _clip_card(folder: Path, verdict: dict) -> str:
    original, made = f"originals/{verdict['wanted']}.mp4", f"samples/{verdict['file']}.mp4"
    seen = f"nearest to {verdict['nearest']}, {verdict['psnr']:.1f} dB from its own"
    caption = f"{page.escape(verdict['prompt'])}<br>{page.mark(verdict['matched'])} {seen}"
    return page.card(page.video(folder / original) + page.video(folder / made), caption)


def _prompt_card(folder: Path, verdict: dict) -> str:
    seen, wanted = verdict["seen"], verdict["wanted"]
    judged = " ".join(f"{page.mark(seen[key] == wanted[key])} {seen[key] or 'unclear'}" for key in wanted)
    made = page.video(folder / "samples" / f"{verdict['file']}.mp4")
    return page.card(made, f"{page.escape(verdict['prompt'])}<br>{judged}")


def _curves(workdir: Path) -> str:
    psnr = _series(workdir / "tae", {"tae/psnr": "training crops"})
    charts = [page.chart("TAE: PSNR of training crops, dB", psnr, log=False)]
    for name, title in (("t2i", "text to image"), ("t2v", "text to video, joint with images")):
        keys = {f"{name}/image_loss": "images", f"{name}/video_loss": "videos", f"{name}/heldout_loss": "held out"}
        charts.append(page.chart(f"{title}: flow-matching loss", _series(workdir / name, keys), log=True))
    return page.section("Training curves", page.grid(charts, "charts"))


def _series(folder: Path, labels: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    lines, found = read_metrics(folder), {}
    for key, label in labels.items():
        if points := [(line["step"], line[key]) for line in lines if line.get(key) is not None]:
            found[label] = points
    return found


def _resources(stages: dict[str, dict], numbers: dict[str, float]) -> str:
    rows = [[name, f"{done['seconds']:.0f} s", f"{done['peak_memory_gb']:.2f} GB"] for name, done in stages.items()]
    rows.append(["<b>together</b>", f"<b>{numbers['seconds']:.0f} s</b>", f"<b>{numbers['peak_memory_gb']:.2f} GB</b>"])
    note = "<p>Time that an interrupted run spent on an unfinished stage is not in these numbers.</p>"
    return page.section("Time and memory", page.table(["stage", "time", "peak memory"], rows) + note)
