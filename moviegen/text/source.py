"""Where the embeddings of a config's texts come from: cached ones of the three encoders, or the toy's stand-in."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moviegen.models.text import toy
from moviegen.text import batch, prompts, store
from moviegen.text.store import StoredText

Found = Mapping[
    str, StoredText | Path | str
]  # of each encoder: in a store, in an npz of the seed's, the toy's own text


class TextSource(NamedTuple):
    """The one way from texts to embeddings. An encoder's text is what `prepare(prompt, fps, camera)` gives it.

    `find(name, texts)` says where the embeddings of a sample of this name with these texts are, `empty` where those of the
    empty prompt are, and `read` gives embeddings (b l d) and masks (b l) by encoder of several samples.
    """

    prepare: Callable[[str, float, str], dict[str, str]]
    find: Callable[[str, Mapping[str, str]], Found]
    empty: Found
    read: Callable[[Sequence[Found]], batch.Embeddings]


def is_toy(config: Any) -> bool:
    """Whether a config's texts get the toy's embeddings: its data is an embedded set."""
    return config.data.source != "csv"


def open_text(config: Any) -> TextSource:
    """The source of a config's embeddings."""
    return _toy(config.model.text_dims) if is_toy(config) else stored(config.data)


def stored(data: Any) -> TextSource:
    """The cached embeddings in `data.text_folders`: stores, by the text, or npz files, by the sample's name."""
    in_store = {name: store.is_store(folder) for name, folder in data.text_folders.items()}

    def find(name: str, texts: Mapping[str, str]) -> Found:
        return {
            encoder: StoredText(folder, texts[encoder]) if in_store[encoder] else Path(folder) / f"{name}.npz"
            for encoder, folder in data.text_folders.items()
        }

    empty = {
        encoder: StoredText(folder, "") if in_store[encoder] else Path(data.empty_text[encoder])
        for encoder, folder in data.text_folders.items()
    }
    return TextSource(prompts.prepare, find, empty, batch.read_text)


def _toy(text_dims: Mapping[str, int]) -> TextSource:
    def prepare(prompt: str, fps: float = 0, camera: str = "") -> dict[str, str]:
        return dict.fromkeys(text_dims, prompt)

    def read(samples: Sequence[Found]) -> batch.Embeddings:
        found = {}
        for encoder, width in text_dims.items():
            found |= toy.encode([sample[encoder] for sample in samples], {encoder: width})
        return found

    return TextSource(prepare, lambda name, texts: texts, prepare(""), read)
