"""Tokenizers of the three encoders, read from the files that come with their weights."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.errors import ConfigError

BYT5_VOCABULARY = 384  # pad, end, unknown, 256 bytes, 125 sentinels
_BYTE, _END = 3, 1
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
FILES = {"t5": ("spiece.model", "tokenizer.json"), "clip": ("vocab.json", "merges.txt"), "byt5": ()}  # by kind
_CHUNK = 4096  # texts given to a library at once


class Tokenizer(NamedTuple):
    """`encode(texts)` -> ids of each with the encoder's own first and last tokens, uncut; ids are below `size`."""

    encode: Callable[[Sequence[str]], list[list[int]]]
    size: int
    digest: str  # short checksum of the files that it was read from


def open_tokenizer(kind: str, folder: str | Path) -> Tokenizer:
    """The tokenizer of an encoder: kind "byt5" (needs no file), "t5" or "clip". Raises ConfigError.

    "t5" reads the first of its FILES that is there, "clip" both. They need the libraries of the extra `text`.
    """
    folder = Path(folder)
    if kind == "byt5":
        return Tokenizer(lambda texts: [byt5(text) for text in texts], BYT5_VOCABULARY, "bytes")
    files = [folder / name for name in FILES[kind] if (folder / name).is_file()]
    if not files or (kind == "clip" and len(files) < 2):
        wanted = (" or " if kind == "t5" else " and ").join(FILES[kind])
        raise ConfigError(f"{folder}: has no {wanted}, the tokenizer's files: copy them next to the weights")
    read = {"spiece.model": _sentencepiece, "tokenizer.json": _t5_json, "vocab.json": _clip}[files[0].name]
    used = files if kind == "clip" else files[:1]
    try:
        encode, size = read(folder)
    except ImportError as error:
        raise ConfigError(f"tokenizers need the extra `text`: pip install -e '.[text]' ({error})") from error
    except Exception as error:  # the libraries raise whatever they like for a broken file
        named = ", ".join(map(str, used))
        raise ConfigError(f"{named}: not a tokenizer of this kind ({str(error) or error!r})") from error
    digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in used))
    return Tokenizer(encode, size, digest.hexdigest()[:16])


def byt5(text: str) -> list[int]:
    """UTF-8 bytes, each 3 higher, and the end token 1 (arXiv 2105.13626)."""
    return [byte + _BYTE for byte in text.encode("utf-8", errors="ignore")] + [_END]


def cut(tokens: Sequence[list[int]], budget: int) -> tuple[list[list[int]], int]:
    """Tokens of at most `budget` for each text, the last token kept last, and how many texts lost some."""
    if budget < 2:
        raise ConfigError(f"a token budget is {budget}: expected 2 or more, a start or a word and the end")
    short = [ids if len(ids) <= budget else [*ids[: budget - 1], ids[-1]] for ids in tokens]
    return short, sum(len(ids) > budget for ids in tokens)


def pad(texts: Sequence[Any], length: int, dtype: Any = np.int32) -> tuple[np.ndarray, np.ndarray]:
    """Ids (l) or embeddings (l d) as (b length ...), zeros behind each text, and masks float32 (b length)."""
    padded = np.zeros((len(texts), length, *np.shape(texts[0])[1:]), dtype)
    mask = np.zeros((len(texts), length), np.float32)
    for row, own in enumerate(texts):
        padded[row, : len(own)], mask[row, : len(own)] = own, 1
    return padded, mask


def _sentencepiece(folder: Path) -> tuple[Any, int]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    model.LoadFromSerializedProto((folder / "spiece.model").read_bytes())
    end = model.eos_id()
    if end < 0:
        raise ValueError("it has no end token")
    return lambda texts: [[*ids, end] for ids in model.encode(list(texts))], model.vocab_size()


def _t5_json(folder: Path) -> tuple[Any, int]:
    from tokenizers import Tokenizer as Library

    model = Library.from_file(str(folder / "tokenizer.json"))
    model.no_truncation()
    model.no_padding()
    end = model.token_to_id("</s>")
    if end is None:
        raise ValueError("it has no token </s>")

    def encode(texts):
        found = (item.ids for item in _batches(model, texts))
        return [ids if ids[-1:] == [end] else [*ids, end] for ids in found]

    return encode, model.get_vocab_size()


def _clip(folder: Path) -> tuple[Any, int]:
    from tokenizers import Regex, Tokenizer as Library, decoders, models, normalizers, pre_tokenizers

    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    start, end = vocab[_CLIP_START], vocab[_CLIP_END]
    model = Library(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=_CLIP_END))
    cleaning = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    model.normalizer = normalizers.Sequence(cleaning)
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    model.decoder = decoders.ByteLevel()
    return lambda texts: [[start, *item.ids, end] for item in _batches(model, texts)], max(vocab.values()) + 1


def _batches(model: Any, texts: Sequence[str]):
    for first in range(0, len(texts), _CHUNK):
        yield from model.encode_batch(list(texts[first : first + _CHUNK]))
