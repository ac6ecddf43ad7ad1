"""Measures how well the autoencoder reconstructs: every clip and the mean, as json, csv, videos and a page of the worst."""

from moviegen.evaluation import comparison, results
from moviegen.runner import Run


def run(run: Run) -> dict[str, float]:
    """Reconstructs the clips that `evaluate` names and returns the means of their numbers.

    Clips: the files of `evaluate.csv` and `evaluate.video_folder`, their first `evaluate.num_frames` frames (0: all), or
    without a folder the held-out clips that come with the demo; all at `data.height` x `data.width`. Leaves
    `evaluation.json`, `evaluation.csv`, `worst.html` and `samples/recons/NAME.mp4`, originals at the left. Raises
    ConfigError or DataError for settings and files that cannot be used.
    """
    config, workdir = run.config, run.workdir
    summary = comparison.compare(config, workdir)
    results.write(workdir, summary)
    mean = summary["mean"]
    numbers = ", ".join(f"{key} {mean[key]:.4g}" for key in comparison.measures(summary["clips"]))
    print(f"evaluate: {mean['clips']} clips, {numbers}", flush=True)
    if "frechet" in summary:
        print(f"evaluate: Fréchet distance {mean['frechet']:.4g}, {summary['frechet']['of']}", flush=True)
    if not config.evaluate.lpips_weights:
        print("evaluate: no LPIPS, evaluate.lpips_weights is empty (docs/tae.md says where they are)", flush=True)
    print(
        f"evaluate: numbers in {workdir}/evaluation.json and .csv, the worst clips in {workdir}/worst.html", flush=True
    )
    return mean
