"""Shows what a latent cache holds: some entries decoded, on a page, with what the model is told of each."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from moviegen import streams
from moviegen.data import captions, latent_cache, sources, video
from moviegen.errors import ConfigError, DataError
from moviegen.evaluation import page
from moviegen.models.tae import tiles as tae_tiles, weights as tae_weights
from moviegen.runner import Run
from moviegen.storage import files
from moviegen.storage.writers import Progress
from moviegen.streams import Stream
from moviegen.text import source

_NAMED = 5  # of the rows whose captions cannot be told
UNKNOWN_RATE = 16.0  # at which videos are played where nothing notes theirs


def run(run: Run) -> dict[str, float]:
    """Decode `look.count` entries of the cache `data.latent_folder` (default: WORKDIR/latents), drawn by the seed.

    Of each a draw of its posterior is shown, mean + std * noise as training takes it, decoded with `data.tae_weights`, and
    beside it what the latents are and each prompt that `data.csv`, or the embedded set, tells the model of it. Leaves
    `look.html` and the videos and pictures that it shows in `look`. Raises ConfigError or DataError, also for weights that
    did not make the latents.
    """
    config, workdir = run.config, run.workdir
    folder = Path(config.data.latent_folder or workdir / "latents")
    cache, weights = latent_cache.open_cache(folder), tae_weights.configured(config)
    names = sorted(cache.shards) or sorted(str(path.relative_to(folder)) for path in folder.rglob("*.npz"))
    if not names:
        raise ConfigError(f"data.latent_folder is {str(folder)!r}, which holds no latents: --job=encode_video fills it")
    if latent_cache.autoencoder(folder) not in (None, tae_weights.digest(weights)):
        raise ConfigError(
            f"data.tae_weights is {str(weights)!r}, which did not make the latents in {folder}: name those"
        )
    told = _told(config, cache)
    chosen = streams.rng(Stream.LOOK, config.seed).permutation(len(names))[: config.look.count]
    params, cards = tae_weights.load_to_compute(weights, config.tae), []
    progress = Progress("look", len(chosen))
    for number, index in enumerate(chosen):
        found = cache.find(names[index])
        file, words = _decoded(found, number, params, config, workdir)
        texts = [f"{', '.join(of)}: {page.escape(text)}" for text, of in told.get(_stem(found.name), ())]
        words = [f"<b>{page.escape(found.name)}</b>", *words, *(texts or ["no caption"])]
        cards.append(page.card(page.linked(file), "<br>".join(words)))
        progress.update(number + 1)
    files.write_text(_page(cache, names, cards), workdir / "look.html")
    print(f"look: {len(cards)} of {len(names)} entries of {folder}, in {workdir / 'look.html'}", flush=True)
    return {"entries": len(cards)}


def _decoded(
    found: latent_cache.StoredLatents, number: int, params: Any, config: Any, workdir: Path
) -> tuple[str, list[str]]:
    """Writes what an entry shows; returns the file, relative to the workdir, and what its latents are."""
    mean, std = found.read()
    if mean.shape[1] != config.tae.latent_channels:
        raise DataError(f"{found}: {mean.shape[1]} channels, tae.latent_channels is {config.tae.latent_channels}")
    noise = streams.rng(Stream.LOOK, config.seed, found.name).standard_normal(mean.shape, np.float32)
    drawn = (mean + std * noise).swapaxes(0, 1)[None]  # (1 c t h w)
    frames = int(found.bucket.split("x")[0]) if found.bucket else 8 * len(mean) if len(mean) > 1 else 1
    image = frames == 1
    pieces = (video.to_uint8(piece[0]) for piece in tae_tiles.stream(params, config.tae, drawn, frames))
    file = f"look/{number:03d}{'.png' if image else '.mp4'}"
    if image:
        video.write_png(workdir / file, next(pieces)[0])
    else:
        video.write_mp4(workdir / file, pieces, found.fps or UNKNOWN_RATE)
    rate = f"{found.fps:g} frames a second" if found.fps else f"rate not noted, played at {UNKNOWN_RATE:g}"
    return file, [
        f"bucket {found.bucket or 'not noted'}" + ("" if image else f", {rate}"),
        f"latents {' x '.join(map(str, mean.shape))}: mean {mean.mean():.3f}, deviation {mean.std():.3f}; the posterior's "
        f"own {std.mean():.3g}",
    ]


def _told(config: Any, cache: latent_cache.Cache) -> dict[str, list[tuple[str, list[str]]]]:
    """By a sample's name without suffix: each text that the model is told of it, with the encoders that are given it."""
    found: dict[str, list[tuple[str, list[str]]]] = {}

    def add(name: str, texts: dict[str, str]) -> None:
        for text in dict.fromkeys(filter(None, texts.values())):
            found.setdefault(_stem(name), []).append((text, [of for of, own in texts.items() if own == text]))

    if source.is_toy(config):
        for items in sources.embedded(config).values():
            for item in items:
                add(item.name, source.open_text(config).prepare(item.caption))
    elif config.data.csv:
        try:
            rows, bad = captions.read(config.data.csv, config, cached=cache.rates)
        except DataError as error:  # it has no column of captions, say
            print(f"look: captions are not shown: {error}", flush=True)
            return {}
        for row in rows:
            add(row.video, row.texts)
        for line in list(bad.values())[:_NAMED]:
            print(f"look: no caption: {line}", flush=True)
    return found


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))


def _page(cache: latent_cache.Cache, names: list[str], cards: list[str]) -> str:
    intro = (
        f"<p>{len(cards)} of {len(names)} entries of {page.escape(str(cache.folder))}, drawn at random. Each is a draw of its "
        "posterior, mean + std * noise as training takes it, decoded again. Latents are told as they are stored; training "
        "normalizes them by the statistics below.</p>"
    )
    buckets = Counter(found.bucket or "not noted" for found in cache.shards.values()) or {"of the seed": len(names)}
    sections = [page.section("Entries", intro + page.grid(cards, "wide"))]
    rows = [(page.escape(name), str(count)) for name, count in sorted(buckets.items())]
    sections.append(page.section("Buckets", page.table(("frames x height x width", "entries"), rows)))
    if statistics := cache.statistics():
        rows = [
            (str(c), f"{shift:.4g}", f"{scale:.4g}") for c, (shift, scale) in enumerate(zip(*statistics, strict=True))
        ]
        sections.append(page.section("Statistics", page.table(("channel", "shift", "scale"), rows)))
    return page.document("What the model sees", sections)
