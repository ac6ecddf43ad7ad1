"""Where the embeddings of a config's texts come from: cached ones of the three encoders, or the toy's stand-in."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.errors import DataError
from moviegen.models.text import toy
from moviegen.models.transformer import shapes
from moviegen.storage import files
from moviegen.text import prompts, store, tokenizers
from moviegen.text.store import StoredText

Found = Mapping[str, StoredText | Path | str]  # by encoder: in a store, in an npz of the seed's, the toy's own text
Embeddings = dict[str, tuple[np.ndarray, np.ndarray]]  # (b l d) and masks (b l) by encoder
TEXT_STEP = 64  # tokens, that text is padded to a multiple of: every length is a graph of its own


class TextSource(NamedTuple):
    """The one way from texts to embeddings.

    `prepare(prompt)` gives the text for each encoder of a prompt that is to be sampled, `find(name, texts)` says where
    the embeddings of a sample of this name with these texts are, `empty` where those of the empty prompt are, and `read`
    gives the embeddings of several samples.
    """

    prepare: Callable[[str], dict[str, str]]
    find: Callable[[str, Mapping[str, str]], Found]
    empty: Found
    read: Callable[[Sequence[Found]], Embeddings]


def is_toy(config: Any) -> bool:
    """Whether a config's texts get the toy's embeddings: its data is an embedded set."""
    return config.data.source != "csv"


def open_text(config: Any) -> TextSource:
    """The source of a config's embeddings."""
    return _toy(config.model) if is_toy(config) else stored(config)


def folders(config: Any) -> dict[str, str]:
    """The folder of embeddings of every encoder that the model attends to."""
    return {name: config.data.text_folders.get(name, "") for name in shapes.encoders(config.model)}


def stored(config: Any, without: Collection[str] = ()) -> TextSource:
    """The cached embeddings in `data.text_folders`: stores, by the text, or npz files, by the sample's name.

    `find` raises a DataError for a name whose npz would be outside of its folder.
    """
    places = {name: folder for name, folder in folders(config).items() if name not in without}
    in_store = {name: store.is_store(folder) for name, folder in places.items()}

    def find(name: str, texts: Mapping[str, str]) -> Found:
        return {
            encoder: StoredText(folder, texts[encoder])
            if in_store[encoder]
            else files.inside(Path(folder), f"{name}.npz")
            for encoder, folder in places.items()
        }

    empty = {
        encoder: StoredText(folder, "") if in_store[encoder] else Path(config.data.empty_text.get(encoder, ""))
        for encoder, folder in places.items()
    }
    return TextSource(functools.partial(prompts.of_request, config=config), find, empty, read_text)


def _toy(model: Any) -> TextSource:
    widths = {name: model.text_dims[name] for name in shapes.encoders(model)}

    def prepare(prompt: str) -> dict[str, str]:
        return dict.fromkeys(widths, prompt)

    def read(samples: Sequence[Found]) -> Embeddings:
        return {
            encoder: toy.encode([sample[encoder] for sample in samples], {encoder: width})[encoder]
            for encoder, width in widths.items()
        }

    return TextSource(prepare, lambda name, texts: texts, prepare(""), read)


def read_text(samples: Sequence[Found]) -> Embeddings:
    """Cached embeddings of some samples, l the longest rounded up to TEXT_STEP. Raises DataError."""
    text = {}
    for name in samples[0]:
        found = [_embeddings(sample[name]) for sample in samples]
        widths = {values.shape[1] for values in found}
        if len(widths) > 1:
            raise DataError(f"embeddings of {name} are {sorted(widths)} wide: they are of several encoders")
        text[name] = pad_text(found)
    return text


def pad_text(found: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (l d) of some texts as (b l d), zeros behind each, and the masks (b l); l > 0 even if all are empty."""
    return tokenizers.pad(found, -(-max(1, *map(len, found)) // TEXT_STEP) * TEXT_STEP, np.float32)


def _embeddings(file: StoredText | Path) -> np.ndarray:
    """Embeddings (l d) of the true tokens of a text."""
    if isinstance(file, StoredText):
        return finite(store.read(store.cached_store(file.folder), file.text)[0], str(file))
    values, mask = files.read_npz(Path(file), ("text_emb", "mask")).values()
    if values.ndim != 2 or mask.shape != values.shape[:1]:
        raise DataError(f"{file}: text_emb is {values.shape} and mask {mask.shape}, expected (l d) and (l)")
    return finite(values[mask > 0], str(file))


def finite(embeddings: np.ndarray, of: str) -> np.ndarray:
    """The embeddings. DataError, naming what they are of, where one is no number."""
    if not np.isfinite(embeddings).all():
        raise DataError(f"{of}: its embeddings are not all finite: embed it again, with text.dtype=float32 if need be")
    return embeddings
