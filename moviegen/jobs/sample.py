"""Samples videos of prompts: Euler steps through the flow with guidance, then the autoencoder's decoder."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from ml_collections import ConfigDict

from moviegen import flow, streams
from moviegen.data import video
from moviegen.errors import ConfigError
from moviegen.models.tae import model as tae
from moviegen.models.tae import tiles as tae_tiles
from moviegen.models.tae import weights as tae_weights
from moviegen.models.text import toy as toy_text
from moviegen.models.transformer import model as transformer
from moviegen.nn import backend
from moviegen.parallel import collectives, comm, sync
from moviegen.parallel import mesh as meshes
from moviegen.runner import Run
from moviegen.storage import checkpoint
from moviegen.storage.progress import Progress
from moviegen.streams import Stream
from moviegen.text import online
from moviegen.training import state as states

SHEET_FRAMES = 8


def run(run: Run) -> dict[str, float]:
    """Sample every prompt of `sample.prompts` with the newest averaged weights.

    Writes `samples/NN-slug.mp4` (H.264) and a contact sheet `.png` for each; a single frame is a PNG alone. The weights
    are those of `sample.checkpoint`, by default the run's own `checkpoints`. On a mesh every rank runs this.
    """
    config, workdir, world = run.config, run.workdir, run.mesh.world
    folder = workdir / "samples"
    for index, prompt, pieces in sample_videos(run):
        write(folder, index, prompt, pieces, config.sample.num_frames, config.sample.fps)
    sync.barrier(world)
    if world.rank == 0:
        print(f"sample: {len(config.sample.prompts)} samples in {folder}", flush=True)
    return {"samples": len(config.sample.prompts)}


class Share(NamedTuple):
    """What this rank does of a sampling run: prompts of part `part` of `parts`, decoding every `n`-th of their videos.

    With two ranks on the data axis and guidance, one computes with the prompt and one without (`branch` 0 and 1).
    `decoders` are the ranks that decode a video together, tile by tile.
    """

    mesh: meshes.Mesh
    part: int
    parts: int
    branch: int | None
    first: int
    n: int
    decoders: meshes.Group


def share(mesh: meshes.Mesh, guided: bool, tiles: int = 1) -> Share:
    """This rank's share: the ranks that end up with the same latents share out videos, or tiles where those are enough."""
    batch, sequence = mesh.batch, mesh.sequence
    branch, part, parts, first, n = None, batch.rank, batch.size, 0, 1
    if guided and mesh.data == 2:
        branch, part = divmod(batch.rank, mesh.zero)
        parts, first, n = mesh.zero, branch, 2
    if tiles >= sequence.size:
        return Share(mesh, part, parts, branch, first, n, sequence)
    return Share(mesh, part, parts, branch, first * sequence.size + sequence.rank, n * sequence.size, meshes.ALONE)


def sample_videos(run: Run) -> Iterator[tuple[int, str, Iterator[np.ndarray]]]:
    """Yield (index, prompt, frames) of each prompt, the frames in pieces uint8 (n h w c), decoded as they are taken.

    The latents of `sample.batch_size` prompts are in memory at once.

    Sample i depends on (seed, i, prompt) alone, not on the batch that it is in.
    Raises ConfigError or DataError when there are no prompts, weights, or embeddings of a prompt.
    """
    config = run.config
    settings, prompts = config.sample, list(config.sample.prompts)
    if not prompts:
        raise ConfigError(
            "sample.prompts is empty: give at least one, --config.sample.prompts='a red circle moves left'"
        )
    text, empty = _encode(prompts, config, run.mesh)
    shape = latent_shape(config)
    mine = share(run.mesh, settings.guidance_scale != 1, len(tae_tiles.starts(shape[1])))
    params, tae_cfg = _load(config, run.workdir, mine.mesh)
    decoder = tae_weights.load(tae_weights.configured(config), config.tae)
    size = min(settings.batch_size, -(-len(prompts) // mine.parts))
    progress = Progress("sample", len(prompts), mine.mesh.world.rank)
    for start in range(mine.part * size, len(prompts) + mine.part * size, size * mine.parts):
        # A batch is filled up with the last prompt, even from nothing: a smaller one would be compiled anew, and where
        # weights are gathered all ranks must take part.
        indices = [min(i, len(prompts) - 1) for i in range(start, start + size)]
        rows = {name: (values[indices], mask[indices]) for name, (values, mask) in text.items()}
        made = generate(params, config, rows, empty, shape, indices, mine)
        wanted = list(zip(indices, made, strict=True))[: max(0, len(prompts) - start)]
        for index, sample in wanted[mine.first :: mine.n]:
            raw = tae.denormalize(backend.tensor(sample[None]), tae_cfg)
            decoded = tae_tiles.stream(decoder, config.tae, raw, settings.num_frames, mine.decoders)
            pieces = (video.to_uint8(piece[0]) for piece in decoded)
            if mine.decoders.rank == 0:
                yield index, prompts[index], pieces
                progress.update(index + 1)
            for _ in pieces:  # other ranks wait for this one's tiles
                pass


def generate(
    params: Any,
    config: Any,
    text: dict,
    empty_text: dict,
    latent_shape: Sequence[int],
    indices: Sequence[int],
    by: Share,
) -> np.ndarray:
    """Latents float32 (b c t h w), in the transformer's space, of the prompts in `text`, one of `indices` for each.

    Noise is drawn from (seed, index). `config.sample` has steps, schedule and guidance_scale; the model sees the samples
    with their text and with the empty prompt (`empty_text`, batch 1), in one batch or each on ranks of its own. The state
    stays in float32.
    """
    count, settings = len(indices), config.sample
    noise = np.stack([_noise(config.seed, index, latent_shape) for index in indices])
    scale = settings.guidance_scale
    both = scale != 1 and by.branch is None  # with 1 the unconditional half would be multiplied by zero
    if both:
        text = {name: _with_empty(*pair, *empty_text[name]) for name, pair in text.items()}
    elif by.branch == 1:
        text = {name: tuple(half[count:] for half in _with_empty(*text[name], *empty_text[name])) for name in text}
    text = {name: (backend.tensor(values), mask) for name, (values, mask) in text.items()}

    cfg = config.model
    shapes, dtype = transformer.shapes(cfg), cfg.get("compute_dtype", "float32")
    exchange = comm.make(by.mesh, config.train.zero_stage, shapes, dtype)

    def velocity(x: ms.Tensor, t: float) -> ms.Tensor:
        x = ms.ops.concat([x, x]) if both else x
        times = np.full(x.shape[0], t, np.float32)
        out = transformer.apply(params, cfg, x, times, text, exchange)
        if by.branch is not None:
            return collectives.all_reduce(by.mesh.copies)(out * (1 - scale if by.branch else scale))
        return flow.guide(out[:count], out[count:], scale) if both else out

    return flow.euler(velocity, backend.tensor(noise), flow.schedule(settings.schedule, settings.steps)).asnumpy()


def latent_shape(config: Any) -> tuple[int, int, int, int]:
    """(c t h w) of one sample's latents. Raises ConfigError for a size that the two models cannot make."""
    settings = config.sample
    for key, patch in (("height", config.model.patch_size[1]), ("width", config.model.patch_size[2])):
        if settings[key] % (8 * patch):
            raise ConfigError(f"sample.{key} is {settings[key]}: expected a multiple of {8 * patch}")
    frames = -(-settings.num_frames // 8)
    return config.tae.latent_channels, frames, settings.height // 8, settings.width // 8


def write(folder: Path, index: int, prompt: str, pieces: Iterable[np.ndarray], count: int, fps: float) -> Path:
    """Write `count` frames, in pieces uint8 (n h w c), as `NN-slug.mp4` with a contact sheet `.png`.

    A single frame is a PNG alone. Returns the path without suffix.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "empty"
    base = folder / f"{index:02d}-{slug}"
    wanted = set(np.linspace(0, count - 1, min(count, SHEET_FRAMES)).round().astype(int))
    numbers, shown = itertools.count(), []

    def noted():
        for piece in pieces:
            shown.extend(frame.copy() for frame in piece if next(numbers) in wanted)
            yield piece

    if count > 1:
        video.write_mp4(base.with_suffix(".mp4"), noted(), fps)
    else:
        list(noted())
    video.write_sheet(base.with_suffix(".png"), np.stack(shown), columns=len(shown))
    return base


def _noise(seed: int, index: int, shape: Sequence[int]) -> np.ndarray:
    return streams.rng(Stream.SAMPLING_NOISE, seed, index).standard_normal(tuple(shape), dtype=np.float32)


def _with_empty(values: Any, mask: Any, empty_values: Any, empty_mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a batch followed by as many empty prompts."""
    count = len(values)
    return np.concatenate([values, np.repeat(empty_values, count, 0)]), np.concatenate(
        [mask, np.repeat(empty_mask, count, 0)]
    )


def _load(config: Any, workdir: Path, mesh: meshes.Mesh) -> tuple[dict, ConfigDict]:
    """Averaged weights, and the autoencoder's config with the latent statistics that they were trained with."""
    folder = Path(config.sample.checkpoint or workdir / "checkpoints")
    if checkpoint.latest(folder) is None:
        raise ConfigError(
            f"sample.checkpoint is {config.sample.checkpoint!r}, and there is no checkpoint in {folder}: "
            "train first, or name the checkpoints folder of a run"
        )
    layout = states.Layout(transformer.shapes(config.model), mesh, config.train.zero_stage)
    params, meta = states.load_average(folder, layout)
    statistics = {key: tuple(meta[key]) for key in ("latent_shift", "latent_scale")}
    tae_cfg = ConfigDict(config.tae.to_dict() | statistics)
    if mesh.world.rank == 0:
        print(f"sample: weights of step {meta['step']} in {folder}", flush=True)
    return params, tae_cfg


def _encode(prompts: list[str], config: Any, mesh: meshes.Mesh) -> tuple[dict, dict]:
    """Text of the prompts (b l d), and of the empty prompt with batch 1, of the same length."""
    if config.data.source == "csv":
        text = online.encode(prompts, config, mesh)
    else:
        text = toy_text.encode([*prompts, ""], config.model.text_dims)
    split = {name: ((values[:-1], mask[:-1]), (values[-1:], mask[-1:])) for name, (values, mask) in text.items()}
    return {name: first for name, (first, _) in split.items()}, {name: last for name, (_, last) in split.items()}
