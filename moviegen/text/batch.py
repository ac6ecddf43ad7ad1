"""Embeddings of some texts as one padded batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moviegen.errors import DataError
from moviegen.storage import files
from moviegen.text import store
from moviegen.text.store import StoredText

Embeddings = dict[str, tuple[np.ndarray, np.ndarray]]  # (b l d) and masks (b l) by encoder
TEXT_STEP = 64  # tokens, that text is padded to a multiple of: every length is a graph of its own


def read_text(samples: Sequence[Mapping[str, StoredText | Path]]) -> Embeddings:
    """Cached embeddings of some samples, l the longest rounded up to TEXT_STEP. Raises DataError.

    Those of an encoder are in a store or in an npz of the seed's.
    """
    text = {}
    for name in samples[0]:
        found = [_embeddings(sample[name]) for sample in samples]
        widths = {values.shape[1] for values in found}
        if len(widths) > 1:
            raise DataError(f"embeddings of {name} are {sorted(widths)} wide: they are of several encoders")
        text[name] = pad_text(found)
    return text


def pad_text(found: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (l d) of some texts as (b l d), zeros behind each, and the masks (b l)."""
    length = -(-max(map(len, found)) // TEXT_STEP) * TEXT_STEP
    embeddings = np.zeros((len(found), length, found[0].shape[1]), np.float32)
    masks = np.zeros((len(found), length), np.float32)
    for i, values in enumerate(found):
        embeddings[i, : len(values)], masks[i, : len(values)] = values, 1
    return embeddings, masks


def _embeddings(file: StoredText | Path) -> np.ndarray:
    """Embeddings (l d) of the true tokens of a text."""
    if isinstance(file, StoredText):
        return store.read(store.cached_store(file.folder), file.text)[0]
    found = files.read_npz(Path(file), ("text_emb", "mask"))
    if found["text_emb"].ndim != 2 or found["mask"].shape != found["text_emb"].shape[:1]:
        raise DataError(
            f"{file}: text_emb is {found['text_emb'].shape} and mask {found['mask'].shape}, expected (l d) and (l)"
        )
    return found["text_emb"][found["mask"] > 0]
