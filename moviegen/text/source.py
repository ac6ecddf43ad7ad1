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
TEXT_STEP = 64  # tokens, that text beyond its budget is padded to a multiple of
HALF_STEP = 16  # tokens, that half of a budget is a multiple of: what a card's products are cut into
TOY_BUDGET = 32  # tokens of the toy, for each encoder: twice those of the longest captions of the embedded sets


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
    return _toy(config) if is_toy(config) else stored(config)


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
    read = functools.partial(read_text, budgets=budgets(config))
    return TextSource(functools.partial(prompts.of_request, config=config), find, empty, read)


def _toy(config: Any) -> TextSource:
    widths = {name: config.model.text_dims[name] for name in shapes.encoders(config.model)}

    def prepare(prompt: str) -> dict[str, str]:
        return dict.fromkeys(widths, prompt)

    def read(samples: Sequence[Found]) -> Embeddings:
        found = {name: [toy.encode(sample[name], name, width) for sample in samples] for name, width in widths.items()}
        return pad_text(found, dict.fromkeys(widths, TOY_BUDGET))

    return TextSource(prepare, lambda name, texts: texts, prepare(""), read)


def read_text(samples: Sequence[Found], budgets: Mapping[str, int] = {}) -> Embeddings:
    """Cached embeddings of some samples, padded as `pad_text` does. Raises DataError."""
    return pad_text(unpadded(samples), budgets)


def unpadded(samples: Sequence[Found]) -> dict[str, list[np.ndarray]]:
    """Cached embeddings (l d) of each of some samples, by encoder. Raises DataError."""
    text = {}
    for name in samples[0]:
        found = [_embeddings(sample[name]) for sample in samples]
        widths = {values.shape[1] for values in found}
        if len(widths) > 1:
            raise DataError(f"embeddings of {name} are {sorted(widths)} wide: they are of several encoders")
        text[name] = found
    return text


def budgets(config: Any) -> dict[str, int]:
    """Tokens that the longest cached texts have, by encoder; nothing where an experiment does not say."""
    return dict(config.get("text", {}).get("budgets", {}))


def pad_text(found: Mapping[str, Sequence[np.ndarray]], budgets: Mapping[str, int]) -> Embeddings:
    """Embeddings (l d) of some texts, by encoder, as (b l d) with zeros behind each, and the masks (b l); l > 0."""
    longest = {name: max(1, *map(len, texts)) for name, texts in found.items()}
    return {name: tokenizers.pad(found[name], n, np.float32) for name, n in lengths(longest, budgets).items()}


def lengths(longest: Mapping[str, int], budgets: Mapping[str, int]) -> dict[str, int]:
    """What texts are padded to, given the longest by encoder: half of their budgets, or where one does not fit all of them.

    Every length is a graph of its own, and these are two. Texts beyond a budget, or without one, are padded to a multiple of
    TEXT_STEP.
    """
    halves = {name: -(-budgets.get(name, 0) // (2 * HALF_STEP)) * HALF_STEP for name in longest}
    whole = 1 + any(0 < half < longest[name] for name, half in halves.items())
    return {
        name: whole * half if longest[name] <= 2 * half else -(-longest[name] // TEXT_STEP) * TEXT_STEP
        for name, half in halves.items()
    }


def possible_lengths(config: Any) -> list[dict[str, int]]:
    """All that `lengths` gives for an experiment's batches, as far as texts keep to their budgets; nothing without these.

    The captions of the toy all have one.
    """
    names = shapes.encoders(config.model)
    if is_toy(config):
        return [dict.fromkeys(names, TOY_BUDGET // 2)]
    most = {name: count for name, count in budgets(config).items() if name in names}
    return [lengths(dict.fromkeys(names, 1), most), lengths(most, most)] if len(most) == len(names) else []


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
