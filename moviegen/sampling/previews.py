"""Samples of `valid.prompts` as training goes on, from the same noise every time: WORKDIR/samples.html."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from moviegen.data import video
from moviegen.evaluation import page
from moviegen.models.tae import weights as tae_weights
from moviegen.parallel import sync
from moviegen.parallel.comm import Comm
from moviegen.runner import Run
from moviegen.sampling.sampler import Generator, Request, assignment, file_name, made, write
from moviegen.storage import files
from moviegen.storage.writers import Writer
from moviegen.text import online

FOLDER = "previews"
PAGE = "samples.html"


def show(run: Run) -> Callable[..., None] | None:
    """Returns what samples `valid.prompts` with the weights that `generator.train` gives it; None where there are no prompts.

    Their texts are encoded here, before training. Every rank must call this, and what it returns. Raises ConfigError or
    DataError as `Sampler` does.
    """
    config, world = run.config, run.mesh.world
    requests = [Request(prompt, index) for index, prompt in enumerate(config.get("valid", {}).get("prompts", ()))]
    if not requests:
        return None
    by, file = assignment(run), tae_weights.configured(config)
    text = online.encode([request.prompt for request in requests], config, run.mesh)

    def sample(params: dict, exchange: Comm, statistics: ConfigDict, step: int, writer: Writer) -> None:
        folder = run.workdir / FOLDER / f"step-{step:08d}"
        decoder = functools.cache(
            functools.partial(tae_weights.load_to_compute, file, config.tae)
        )  # where it is needed
        for number, pieces in made(requests, text, config, by, Generator(params, exchange, statistics), decoder):
            write(folder, requests[number], pieces, config.sample.num_frames, config.sample.fps)
        sync.wait(world)
        if world.rank == 0:
            _tell(run.workdir, requests, folder, step, writer)

    return sample


def _tell(workdir: Path, requests: Sequence[Request], folder: Path, step: int, writer: Writer) -> None:
    """Sends a step's samples to TensorBoard, and writes the page of all steps that have been sampled."""
    for request in requests:
        file = next(filter(Path.is_file, _places(folder, request)))
        frames, name = video.read(file)[0], f"samples/{file_name(request)}"
        if video.is_image(file):
            writer.write_images(step, {name: frames[0]})
        else:
            writer.write_videos(step, {name: frames})
    steps = sorted(path for path in folder.parent.glob("step-*") if path.name <= folder.name)
    heads = ["prompt", *(f"step {int(path.name.removeprefix('step-')):,}" for path in steps)]
    rows = [[page.escape(request.prompt), *(_cell(path, request) for path in steps)] for request in requests]
    files.write_text(page.document("Samples", [page.table(heads, rows)]), workdir / PAGE)
    print(f"step {step}: samples of {len(requests)} prompts are in {workdir / PAGE}", flush=True)


def _places(folder: Path, request: Request) -> list[Path]:
    """The file of a sample: a video, beside which there is a sheet, or an image."""
    return [folder / (file_name(request) + suffix) for suffix in (".mp4", ".png")]


def _cell(folder: Path, request: Request) -> str:
    file = next(filter(Path.is_file, _places(folder, request)), None)
    if file is None:  # of other prompts
        return ""
    link = page.escape(f"{FOLDER}/{folder.name}/{file.name}")
    if file.suffix == ".png":
        return f'<img src="{link}">'
    return f'<video src="{link}" style="width: auto" autoplay loop muted playsinline></video>'
