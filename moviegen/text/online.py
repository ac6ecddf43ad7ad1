"""The text of sampling: a plain prompt where an encoder's weights are at hand, cached embeddings where not."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.errors import ConfigError, DataError
from moviegen.models.transformer import shapes
from moviegen.parallel.mesh import Mesh
from moviegen.text import encoders, source, tokenizers
from moviegen.text.store import StoredText


def encode(
    given: Sequence[str], config: Any, mesh: Mesh, kept: dict[str, encoders.Encoder] | None = None
) -> source.Embeddings:
    """Embeddings (b l d) and masks (b l) of the prompts and, last, for guidance, of the empty one, by encoder.

    An encoder that `text.encoders` names is loaded, run and let go before the next, or taken from and left in `kept`; the
    others' embeddings are cached, in npz files called as the prompts are or in stores. Every rank of the mesh must call
    this with the same prompts. Raises ConfigError or DataError naming what is missing.
    """
    given = [*given, ""] if config.sample.guidance_scale != 1 else list(given)
    if source.is_toy(config):
        text = source.open_text(config)
        return text.read([text.find(prompt, text.prepare(prompt)) for prompt in given])
    settings = config.get("text")  # without it all embeddings are cached ones
    named = [name for name in shapes.encoders(config.model) if settings and settings.encoders[name]]
    looked = {name: encoders.look(config, name) for name in named}
    text = source.stored(config, without=looked)
    texts = [text.prepare(prompt) for prompt in given]
    samples = []
    for prompt, own in zip(given, texts, strict=True):
        samples.append(text.find(prompt, own) if prompt else text.empty)
        for name, found in samples[-1].items():
            _check_there(found, prompt, own[name], name)
    embedded = source.unpadded(samples)
    for name, files in looked.items():
        arrays = _run(files, [each[name] for each in texts], config, mesh, kept)
        whose = (f"{prompt!r} by {files.folder}" for prompt in given)
        embedded[name] = [source.finite(*each) for each in zip(arrays, whose, strict=True)]
    return source.pad_text(embedded, source.budgets(config))


def _run(files: encoders.Files, texts: list[str], config: Any, mesh: Mesh, kept: dict | None) -> list[np.ndarray]:
    budget = config.text.budgets[files.name]
    tokens, cut = tokenizers.cut(files.tokenizer.encode(texts), budget)
    count = len(texts) - (config.sample.guidance_scale != 1)  # without guidance's empty one
    if cut and mesh.world.rank == 0:
        print(f"sample: {cut} of {count} prompts are cut to {budget} tokens for {files.name}", flush=True)
    size = config.text.batch_size
    try:
        encoder = (kept or {}).get(files.name) or encoders.load(files, config.text.dtype, mesh, config.train.zero_stage)
        if kept is not None:
            kept[files.name] = encoder
        batches = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        return [array for batch in batches for array in encoders.embed(encoder, batch)]
    finally:
        encoder = None
        gc.collect()  # tens of gigabytes, before the generator's weights are read


def _check_there(found: StoredText | Path, prompt: str, text: str, name: str) -> None:
    if found.is_file():
        return
    if isinstance(found, StoredText):
        raise DataError(
            f"{found.folder}: no {name} embeddings of the prompt {prompt!r}, told as {text!r}: run --job=encode_text on "
            f"it with the same sample.num_frames and sample.fps, or name the encoder's folder in text.encoders.{name}"
        )
    if not prompt:
        raise ConfigError(
            f"data.empty_text.{name} is {str(found)!r}, no file: guidance needs the empty prompt's embeddings"
        )
    raise DataError(
        f"{found}: no {name} embeddings of the prompt {prompt!r}; data.text_folders.{name} must hold them, or "
        f"text.encoders.{name} name the encoder's folder"
    )
