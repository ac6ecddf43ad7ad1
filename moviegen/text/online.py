"""The text of sampling: a plain prompt where an encoder's weights are at hand, cached embeddings where not."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.errors import ConfigError, DataError
from moviegen.parallel.mesh import Mesh
from moviegen.text import batch as text_batch
from moviegen.text import encoders, prompts, store, tokenizers

Text = dict[str, tuple[np.ndarray, np.ndarray]]


def encode(given: Sequence[str], config: Any, mesh: Mesh) -> Text:
    """Embeddings (b l d) and masks (b l) of the prompts and, last, of the empty one, by encoder.

    An encoder that `text.encoders` names is loaded, run and let go before the next; the others' embeddings are those of
    `data.text_folders`: a store, or the seed's `<folder>/<prompt>.npz` and `data.empty_text`. Every rank of the mesh
    must call this with the same prompts. Raises ConfigError or DataError naming what is missing.
    """
    settings = config.get("text")
    fps = config.sample.fps if settings and settings.fps else 0
    texts = [prompts.prepare(prompt, fps, settings.camera if settings else "") for prompt in (*given, "")]
    names = [name for name in config.data.text_folders if settings and settings.encoders[name]]
    looked = [encoders.look(config, name) for name in names]
    found = {name: cached(given, texts, config.data, name) for name in config.data.text_folders if name not in names}
    for files in looked:
        found[files.name] = text_batch.pad_text(_run(files, [text[files.name] for text in texts], config, mesh))
    return found


def _run(files: encoders.Files, texts: list[str], config: Any, mesh: Mesh) -> list[np.ndarray]:
    budget = config.text.budgets[files.name]
    tokens, cut = tokenizers.cut(files.tokenizer.encode(texts), budget)
    if cut and mesh.world.rank == 0:
        print(f"sample: {cut} of {len(texts) - 1} prompts are cut to {budget} tokens for {files.name}", flush=True)
    size = config.text.batch_size
    try:
        encoder = encoders.load(files, config.text.dtype, mesh, config.train.zero_stage)
        batches = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        return [array for batch in batches for array in encoders.embed(encoder, batch)]
    finally:
        encoder = None
        gc.collect()  # tens of gigabytes, before the generator's weights are read


def cached(
    given: Sequence[str], texts: Sequence[dict[str, str]], data: Any, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Cached embeddings and masks of one encoder, those of the empty prompt last."""
    folder = data.text_folders[name]
    if store.is_store(folder):
        files = [store.Entry(folder, text[name]) for text in texts]
        for prompt, file in zip((*given, ""), files, strict=True):
            if not store.has(file):
                raise DataError(
                    f"{folder}: no {name} embeddings of the prompt {prompt!r}: run --job=encode_text on it, or name the "
                    f"encoder's folder in text.encoders.{name}"
                )
    else:
        files = [Path(folder) / f"{prompt}.npz" for prompt in given]
        for prompt, file in zip(given, files, strict=True):
            if not file.is_file():
                raise DataError(
                    f"{file}: no {name} embeddings of the prompt {prompt!r}; data.text_folders.{name} must hold them, or "
                    f"text.encoders.{name} name the encoder's folder"
                )
        if not Path(data.empty_text[name]).is_file():
            raise ConfigError(
                f"data.empty_text.{name} is {data.empty_text[name]!r}, no file: guidance needs the empty prompt's embeddings"
            )
        files.append(Path(data.empty_text[name]))
    return text_batch.read_text([{name: file} for file in files])[name]
