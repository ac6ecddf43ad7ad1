"""The three frozen text encoders: opened from their folders, run on batches of tokens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.convert import huggingface
from moviegen.errors import ConfigError
from moviegen.models.text import clip, t5
from moviegen.models.text.shapes import FLOAT32
from moviegen.nn import backend, dtypes, kernels
from moviegen.parallel import comm, sharding
from moviegen.parallel.mesh import ONE, Mesh
from moviegen.storage import arraystore, fingerprint, safetensors_io
from moviegen.text import tokenizers

KINDS = {"ul2": "t5", "metaclip": "clip", "byt5": "byt5"}  # encoder -> kind of its tokenizer
DTYPES = ("float32", "bfloat16", "float16")  # the last rehearses bfloat16's types on a CPU
LENGTH_STEP = 32  # texts are padded to a multiple: every length is a graph of its own
_SPARE_ROWS = 256  # by which an embedding table may be longer than its vocabulary: tables are rounded up


class Files(NamedTuple):
    """An encoder's folder, looked at: tokenizer, config (compute dtype included), arrays by name to be read."""

    name: str
    folder: Path
    tokenizer: tokenizers.Tokenizer
    cfg: Any
    arrays: dict


class Encoder(NamedTuple):
    """Weights on this rank, whole or a shard (zero_stage 3), and how to run them."""

    is_clip: bool
    cfg: Any
    params: dict
    comm: comm.Comm


def look(config: Any, name: str) -> Files:
    """The folder `text.encoders.NAME` but for its weights. Raises ConfigError or DataError where these do not fit."""
    named, dtype = config.text.encoders[name], config.text.dtype
    folder = Path(named)
    if not named or not folder.is_dir():
        raise ConfigError(
            f"text.encoders.{name} is {named!r}, which is not a folder: --job=fetch_text_encoder fills one"
        )
    if dtype not in DTYPES:
        raise ConfigError(f"text.dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    kind, cfg = KINDS[name], read_config(folder, name)
    tokenizer = tokenizers.open_tokenizer(kind, folder)
    if not tokenizer.size <= cfg.vocab_size <= tokenizer.size + _SPARE_ROWS:
        raise ConfigError(
            f"{folder}: the tokenizer has {tokenizer.size} tokens, the model {cfg.vocab_size}: one is of another model"
        )
    if cfg.width != config.model.text_dims[name]:
        raise ConfigError(
            f"{folder}: embeddings are {cfg.width} wide, model.text_dims.{name} is {config.model.text_dims[name]}: take "
            "the encoder that the model was trained with, or train one with that width"
        )
    if kind == "clip":
        cfg.positions = max(cfg.positions, config.text.budgets[name])
    cfg.compute_dtype = kernels.product_dtype(dtype)
    return Files(name, folder, tokenizer, cfg, safetensors_io.lazy(folder)[0])


def read_config(folder: Path, name: str) -> Any:
    """The config of an encoder from its config.json. Raises ConfigError naming the file."""
    file = folder / "config.json"
    read = huggingface.clip_text_config if KINDS[name] == "clip" else huggingface.t5_config
    try:
        return read(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read as an encoder's config ({error})") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def digest(files: Files) -> str:
    """A short checksum of config.json and of every weight file, read once through."""
    return fingerprint.digest(sorted([files.folder / "config.json", *files.folder.glob("*.safetensors")]))


def load(files: Files, dtype: str, mesh: Mesh = ONE, zero_stage: int = 0) -> Encoder:
    """Matrices stored in `dtype`, the rest in float32; on a mesh at stage 3 every rank keeps its shard of each tensor alone."""
    sharded = zero_stage == 3 and mesh.shard.size > 1

    def place(path, array):
        return backend.tensor(sharding.cut(array, mesh.shard) if sharded else array)

    is_clip = KINDS[files.name] == "clip"
    params = (huggingface.clip_text if is_clip else huggingface.t5)(files.arrays, files.cfg, dtype, place)
    shapes = (clip if is_clip else t5).shapes(files.cfg)
    kinds = dtypes.by_path(shapes, files.cfg.compute_dtype, FLOAT32)
    return Encoder(is_clip, files.cfg, params, comm.make(mesh, zero_stage, shapes, kinds))


def embed(encoder: Encoder, tokens: Sequence[list[int]], dtype: str = "float32") -> list[np.ndarray]:
    """Embeddings (l width) in `dtype` of each text's token ids, trimmed to its own length.

    On a sharded encoder every rank must call this equally often, with as many texts or not, of its own choice.
    """
    longest = max(map(len, tokens))
    padded = -(-longest // LENGTH_STEP) * LENGTH_STEP
    ids, mask = tokenizers.pad(tokens, min(padded, encoder.cfg.positions) if encoder.is_clip else padded)
    found = (clip if encoder.is_clip else t5).apply(encoder.params, encoder.cfg, ids, mask, encoder.comm)
    found = (found[0] if encoder.is_clip else found).asnumpy()
    cast = (arraystore.cast(row[: len(own)], dtype) for row, own in zip(found, tokens, strict=True))
    return [np.array(array, copy=True) for array in cast]
