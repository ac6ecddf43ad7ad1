"""Embeds a table of prompts with the three text encoders, so that training reads embeddings and never runs them."""

import time
from pathlib import Path

from moviegen.data import captions, latent_cache
from moviegen.errors import ConfigError
from moviegen.parallel import sync
from moviegen.runner import Run
from moviegen.storage.writers import Progress, Writer
from moviegen.text import encoders, store, tokenizers

SHARD_BYTES = 256 << 20
SHARD_SECONDS = 60.0  # what a kill may cost


def run(run: Run) -> dict[str, float]:
    """Embed the prompts of `text.prompts` (default `data.csv`) and return how many, of all encoders together.

    The captions of a csv are embedded as training with this config tells them, the lines of a txt as sampling does.
    Every encoder that `text.encoders` names writes to the store `data.text_folders.NAME`; each text once, and the empty
    one of guidance. Texts that are there already are kept, so a run that was stopped goes on and a store grows. With
    several ranks each embeds its share, with all of the weights or, at zero_stage 3, shards over the mesh. Bad rows are
    listed, more than `data.max_bad_fraction` of them refused.
    """
    config, mesh = run.config, run.mesh
    names = [name for name, folder in config.text.encoders.items() if folder]
    if not names:
        raise ConfigError("text.encoders names no folder: set those of the encoders to run, such as text.encoders.byt5")
    for name in names:
        if not config.data.text_folders[name]:
            raise ConfigError(f"data.text_folders.{name} is empty: name the folder to write the embeddings to")
    if config.text.batch_size < 1:
        raise ConfigError(f"text.batch_size is {config.text.batch_size}, expected 1 or more")
    # Before any work, so that what is wrong with the last is told too.
    looked = [encoders.look(config, name) for name in names]
    key = "text.prompts" if config.text.prompts else "data.csv"
    path, most = config.text.prompts or config.data.csv, config.data.max_bad_fraction
    folder = config.data.latent_folder
    cached, lost = ((cache := latent_cache.open_cache(folder)).rates, cache.lost) if folder else ({}, {})
    found, bad = captions.read(path, config, key, cached, lost)
    captions.refuse_too_many_bad(path, len(found), list(bad.values()), most, "prompts", tell=mesh.world.rank == 0)
    writer = run.open_writer("encode_text")
    totals = {"embedded": 0, "kept": 0, "cut": 0}
    for files in looked:
        texts = list(dict.fromkeys(["", *(row.texts[files.name] for row in found)]))
        for what, count in _encode(run, files, texts, writer).items():
            totals[what] += count
    writer.close()
    return totals | {"bad": len(bad)}


def _encode(run: Run, files: encoders.Files, texts: list[str], writer: Writer) -> dict[str, int]:
    config, world = run.config, run.mesh.world
    name, settings = files.name, config.text
    folder, key, budget = Path(config.data.text_folders[name]), f"data.text_folders.{name}", settings.budgets[name]

    def check_or_write():
        fingerprint = {"encoder": name, "weights": encoders.digest(files), "tokenizer": files.tokenizer.digest}
        fingerprint |= {"budget": budget, "dtype": settings.dtype, "width": files.cfg.width}
        store.check_or_write(folder, fingerprint, key)

    sync.first_rank_alone(world, check_or_write, run.workdir / "ranks" / f"encode_text_{name}.done")
    there = store.contains(store.open_store(folder), texts)
    sync.wait(world)  # no rank writes before all have seen the same
    missing = [text for text, known in zip(texts, there, strict=True) if not known]
    tokens, cut = tokenizers.cut(files.tokenizer.encode(missing), budget)
    order = sorted(range(len(missing)), key=lambda i: len(tokens[i]))  # like with like: little padding, few graphs
    size, rate, kept = settings.batch_size, 0.0, len(texts) - len(missing)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if batches:
        # With the same number of batches on every rank, as ranks that share weights must all take part: where one has
        # none left it embeds the last again and keeps nothing of it.
        encoder = encoders.load(files, settings.dtype, run.mesh, config.train.zero_stage)
        progress = Progress(f"encode_text {name}", len(missing), world.rank)
        waiting, begun, saved = [], time.monotonic(), time.monotonic()
        for first in range(0, len(batches), world.size):
            mine = first + world.rank
            batch = batches[min(mine, len(batches) - 1)]
            found = encoders.embed(encoder, [tokens[i] for i in batch], settings.dtype)
            if mine < len(batches):
                waiting += [(missing[i], tokens[i], array) for i, array in zip(batch, found, strict=True)]
            done = sum(map(len, batches[: first + world.size]))
            full = sum(array.nbytes for _, _, array in waiting) > SHARD_BYTES
            if waiting and (full or done == len(missing) or time.monotonic() - saved > SHARD_SECONDS):
                store.write_shard(folder, *zip(*waiting, strict=True))
                waiting, saved = [], time.monotonic()
            progress.update(done)
        rate = len(missing) / (time.monotonic() - begun)
    writer.write_scalars(0, {f"encode_text/{name}_prompts_per_second": rate})
    sync.wait(world)
    if world.rank == 0:
        counts = f"{len(missing)} texts embedded ({rate:.1f} prompts/s), {kept} there before"
        print(f"encode_text: {name}: {counts}, {cut} cut to {budget} tokens; in {folder}", flush=True)
    return {"embedded": len(missing), "kept": kept, "cut": cut}
