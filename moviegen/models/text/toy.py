"""A frozen stand-in for the three text encoders, for experiments that fit a laptop.

Every word is a fixed random vector derived from its spelling, without meaning or order. UL2 and MetaCLIP see the words,
ByT5 the bytes of quoted text alone (the text to be drawn).
"""

import functools
import re

import numpy as np

from moviegen import streams
from moviegen.streams import Stream

END = "</s>"  # closes every sequence, so that the empty prompt of guidance has a token to attend to


@functools.lru_cache(maxsize=65536)
def _vector(token: str, encoder: str, width: int) -> np.ndarray:
    return streams.rng(Stream.TOY_WORD, 0, token, encoder).standard_normal(width, dtype=np.float32)


def _words(prompt: str) -> list[str]:
    return re.findall(r"\w+", prompt.lower())


def _quoted_bytes(prompt: str) -> list[str]:
    quoted = re.findall(r'"([^"]*)"|“([^”]*)”', prompt)
    return [f"byte {byte}" for groups in quoted for byte in "".join(groups).encode()]


TOKENIZERS = {"ul2": _words, "metaclip": _words, "byt5": _quoted_bytes}


def encode(prompt: str, encoder: str, width: int) -> np.ndarray:
    """Embeddings float32 (l width) of a prompt's tokens by one encoder."""
    return np.stack([_vector(token, encoder, width) for token in (*TOKENIZERS[encoder](prompt), END)])
