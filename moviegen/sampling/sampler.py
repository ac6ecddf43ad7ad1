"""Samples videos of prompts: text, generator and decoder, loaded once for any number of requests; writes their files."""

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from moviegen import config as configs
from moviegen.data import trained_with, video
from moviegen.errors import ConfigError
from moviegen.models.tae import model as tae, tiles as tae_tiles, weights as tae_weights
from moviegen.models.transformer import model as transformer
from moviegen.models.transformer.shapes import parameter_dtypes
from moviegen.nn import backend
from moviegen.parallel import comm, sync
from moviegen.parallel.comm import Comm
from moviegen.runner import Run
from moviegen.sampling.assignment import Assignment, assign
from moviegen.sampling.generate import generate, noise
from moviegen.storage import checkpoint, files, step_folders
from moviegen.storage.writers import Progress
from moviegen.text import online
from moviegen.text.encoders import Encoder
from moviegen.text.source import Embeddings
from moviegen.training import state as states

SHEET_FRAMES = 8
INDEX = "samples.json"


class Request(NamedTuple):
    """What is asked for. The sample depends on the seed, `index` and `prompt` alone, not on the batch or the mesh."""

    prompt: str
    index: int


class Generator(NamedTuple):
    """Weights as the model computes with them, what that exchanges on the mesh, statistics of the latents that they make."""

    params: dict[str, Any]
    exchange: Comm
    statistics: ConfigDict


class Sampler:
    """The models of a run, each read when it is first needed and then kept; every rank of the mesh has one.

    Weights are the EMA in `sample.checkpoint`, by default the newest of the run's own `checkpoints`. Text encoders are
    kept with `keep_encoders`, for a program that goes on taking requests; they are let go after each call without. Raises
    ConfigError where there are no weights, for those of another model or autoencoder, or for a size that the models cannot
    make.
    """

    def __init__(self, run: Run, keep_encoders: bool = False):
        self.run, config = run, run.config
        self.encoders: dict[str, Encoder] | None = {} if keep_encoders else None
        self.assignment = assignment(run)
        folder = Path(config.sample.checkpoint or run.workdir / "checkpoints")
        step = checkpoint.latest(folder)
        if step is None:
            raise ConfigError(
                f"sample.checkpoint is {config.sample.checkpoint!r}, and there is no checkpoint in {folder}: "
                "train first, or name the checkpoints folder of a run"
            )
        self.step = sync.agree(step, run.mesh.world)  # a run that is training may save another meanwhile
        self.folder = step_folders.place(folder)[0] / f"step-{self.step:08d}"
        self.tae_weights = tae_weights.configured(config)
        self._check_what_it_was_trained_with()

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Iterator[np.ndarray]]]:
        """Yields each request of which this rank has the video, and its frames, uint8 (n h w c) pieces decoded as taken.

        Every rank must be given the same requests and take all that this yields. The latents of `sample.batch_size`
        requests are in memory at once. Raises ConfigError or DataError when the embeddings of a prompt are missing.
        """
        config, by = self.run.config, self.assignment
        if not requests:
            return
        # Before the generator's weights are read, since encoders are as large.
        text = online.encode([request.prompt for request in requests], config, self.run.mesh, self.encoders)
        progress = Progress("sample", len(requests), self.run.mesh.world.rank)
        for number, pieces in made(requests, text, config, by, self._generator, lambda: self._decoder):
            yield requests[number], pieces
            progress.update(number + 1)

    def _check_what_it_was_trained_with(self) -> None:
        """Says on what the checkpoint and this config differ. ConfigError where they cannot make a picture together."""
        config, meta, now = self.run.config, checkpoint.lazy(self.folder)[1], {}
        tae_weights.latent_statistics(meta, config.tae.latent_channels, self.folder)  # which it must have
        noted = meta.get("trained_with")
        if noted:  # or there is nothing to read all of the weights for
            now = trained_with.describe(config, tae_weights.digest(self.tae_weights), online=True)
        lines = trained_with.check(noted, now, self.folder, ("model.", "tae."))
        for line in lines if self.run.mesh.world.rank == 0 else ():
            print(f"sample: {line}", flush=True)

    @functools.cached_property
    def _generator(self) -> Generator:
        config, mesh, zero_stage = self.run.config, self.run.mesh, self.run.config.train.zero_stage
        shapes, kinds = transformer.shapes(config.model), parameter_dtypes(config.model)
        params, meta = states.load_ema(self.folder, states.Layout(shapes, mesh, zero_stage, dtypes=kinds))
        if mesh.world.rank == 0:
            print(f"sample: weights of step {meta['step']} in {self.folder.parent}", flush=True)
        exchange = comm.make(mesh, zero_stage, shapes, kinds)
        statistics = tae_weights.latent_statistics(meta, config.tae.latent_channels, self.folder)
        return Generator(params, exchange, ConfigDict(statistics))

    @functools.cached_property
    def _decoder(self) -> dict[str, Any]:
        return tae_weights.load_to_compute(self.tae_weights, self.run.config.tae)


def made(
    requests: Sequence[Request],
    text: Embeddings,
    config: Any,
    by: Assignment,
    generator: Generator,
    decoder: Callable[[], dict[str, Any]],
) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Yields the number of each request of which this rank has the video, and its frames as `Sampler.sample` does.

    text: embeddings of the requests' prompts and, last, of the empty one. decoder() gives the autoencoder's weights.
    """
    for batch, decoded_here in by.batches(len(requests), config.sample.batch_size):
        rows = {name: (values[[*batch, -1]], mask[[*batch, -1]]) for name, (values, mask) in text.items()}
        start = noise(config.seed, [requests[number].index for number in batch], latent_shape(config))
        latents = generate(generator.params, config, rows, start, by, generator.exchange)
        for place in decoded_here:
            raw = tae.denormalize(backend.tensor(latents[place][None]), generator.statistics)
            stream = tae_tiles.stream(decoder(), config.tae, raw, config.sample.num_frames, by.tile_group)
            pieces = (video.to_uint8(piece[0]) for piece in stream)
            if by.tile_group.rank == 0:
                yield batch[place], pieces
            for _ in pieces:  # the other ranks of the group decode their tiles of it
                pass


def assignment(run: Run) -> Assignment:
    """Returns this rank's part of the samplings of a run. ConfigError for a size or dtype that its models cannot make."""
    config = run.config
    tae.compute_dtype(config.tae)
    tiles = len(tae_tiles.starts(latent_shape(config)[1]))
    return assign(run.mesh, config.sample.guidance_scale != 1, tiles)


def latent_shape(config: Any) -> tuple[int, int, int, int]:
    """Returns (c t h w) of one sample's latents. Raises ConfigError for a size that the two models cannot make."""
    settings = config.sample
    for key, patch in (("height", config.model.patch_size[1]), ("width", config.model.patch_size[2])):
        if settings[key] % (8 * patch):
            raise ConfigError(f"sample.{key} is {settings[key]}: expected a multiple of {8 * patch}")
    frames = -(-settings.num_frames // 8)
    return config.tae.latent_channels, frames, settings.height // 8, settings.width // 8


def begin(folder: Path, sampler: Sampler, requests: Sequence[Request]) -> None:
    """Writes `folder/samples.json`, how each of its samples is made: those whose files are there are finished.

    The folder holds one sampling: another one's files and index are moved to `folder/earlier-N`. Every rank calls it.
    """
    config, world = sampler.run.config, sampler.run.mesh.world
    settings = {key: value for key, value in configs.to_plain(config.sample).items() if key != "prompts"}
    index = {"checkpoint": str(sampler.folder), "step": sampler.step, "seed": config.seed, "settings": settings}
    suffix = ".mp4" if config.sample.num_frames > 1 else ".png"
    index["samples"] = [{**request._asdict(), "file": file_name(request) + suffix} for request in requests]
    if world.rank == 0:
        before = files.noted(folder / INDEX)
        if before not in (None, index):
            _move_away(folder, before)
        files.write_json(index, folder / INDEX)
    sync.wait(world)


def _move_away(folder: Path, index: dict) -> None:
    places = (folder / f"earlier-{number}" for number in itertools.count(1))
    place = next(place for place in places if not (place / INDEX).exists())
    place.mkdir(exist_ok=True)
    stems = {Path(sample["file"]).stem for sample in index.get("samples", ())}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stem in stems and file.suffix in (".mp4", ".png"):
            os.replace(file, place / file.name)
    os.replace(folder / INDEX, place / INDEX)  # last: a kill before it and the next sampling goes on with it
    print(f"sample: samples made in another way are in {place} now", flush=True)


def file_name(request: Request) -> str:
    """Returns `NN-prompt`, without a suffix."""
    slug = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:60].rstrip("-") or "empty"
    return f"{request.index:02d}-{slug}"


def write(folder: Path, request: Request, pieces: Iterable[np.ndarray], count: int, fps: float) -> Path:
    """Writes `count` frames, in pieces uint8 (n h w c), as `NN-prompt.mp4` with a contact sheet `.png`.

    A single frame is a PNG alone. Returns the path without suffix.
    """
    base = folder / file_name(request)
    wanted = set(np.linspace(0, count - 1, min(count, SHEET_FRAMES)).round().astype(int))
    sheet: list[np.ndarray] = []

    def collecting() -> Iterator[np.ndarray]:
        numbers = itertools.count()
        for piece in pieces:
            sheet.extend(frame.copy() for frame in piece if next(numbers) in wanted)
            yield piece

    if count > 1:
        video.write_mp4(base.with_suffix(".mp4"), collecting(), fps)
    else:
        list(collecting())
    video.write_sheet(base.with_suffix(".png"), np.stack(sheet), columns=len(sheet))
    return base
