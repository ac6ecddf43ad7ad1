"""Folders of tiny text encoders as Hugging Face lays them out: config.json, weights, tokenizer files."""

import io
import json
from pathlib import Path

import numpy as np

from moviegen.storage import safetensors_io

WIDTHS = {"ul2": 16, "metaclip": 12, "byt5": 8}
WORDS = ["a red circle moves left", "a blue square rests", "green crosses move up and down", "FPS-16 Zoom in. a dog"]


def make(root: Path, seed: int = 0) -> dict[str, str]:
    """The three encoders in folders of their names; returns {encoder: folder}."""
    for name in WIDTHS:
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        config, shapes = CONFIGS[name](folder)
        (folder / "config.json").write_text(json.dumps(config))
        safetensors_io.write(arrays(shapes, seed), folder / "model.safetensors")
    return {name: str(root / name) for name in WIDTHS}


def arrays(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape) * (0.3 if len(shape) == 2 else 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def t5(width: int, vocabulary: int, gate: str) -> tuple[dict, dict]:
    config = dict(vocab_size=vocabulary, d_model=width, d_kv=4, d_ff=24, num_layers=2, num_heads=2)
    config |= dict(feed_forward_proj=f"gated-{gate}", layer_norm_epsilon=1e-6, model_type="t5")
    shapes = {"shared.weight": (vocabulary, width), "encoder.final_layer_norm.weight": (width,)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 2)
    for i in range(2):
        at = f"encoder.block.{i}.layer"
        shapes |= {f"{at}.{part}.layer_norm.weight": (width,) for part in (0, 1)}
        shapes |= {f"{at}.0.SelfAttention.{c}.weight": (8, width) for c in "qkv"}
        shapes[f"{at}.0.SelfAttention.o.weight"] = (width, 8)
        shapes |= {f"{at}.1.DenseReluDense.wi_{j}.weight": (24, width) for j in (0, 1)}
        shapes[f"{at}.1.DenseReluDense.wo.weight"] = (width, 24)
    return config, shapes


def ul2(folder: Path) -> tuple[dict, dict]:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    ids = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_writer=model, vocab_size=40, hard_vocab_limit=False, minloglevel=2, **ids
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    return t5(WIDTHS["ul2"], 64, "silu")


def byt5(folder: Path) -> tuple[dict, dict]:
    return t5(WIDTHS["byt5"], 384, "gelu")


def metaclip(folder: Path) -> tuple[dict, dict]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    d, n = WIDTHS["metaclip"], len(pieces)
    inside = dict(vocab_size=n, hidden_size=d, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3)
    inside |= dict(max_position_embeddings=30, hidden_act="quick_gelu", eos_token_id=n - 1)
    shapes = {"text_model.embeddings.token_embedding.weight": (n, d), "text_projection.weight": (5, d)}
    shapes["text_model.embeddings.position_embedding.weight"] = (30, d)
    norms = ["text_model.final_layer_norm"]
    for i in range(2):
        at = f"text_model.encoder.layers.{i}"
        norms += [f"{at}.layer_norm1", f"{at}.layer_norm2"]
        products = {f"{at}.self_attn.{c}_proj": (d, d) for c in ("q", "k", "v", "out")}
        products |= {f"{at}.mlp.fc1": (20, d), f"{at}.mlp.fc2": (d, 20)}
        for name, shape in products.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {f"{name}.{leaf}": (d,) for name in norms for leaf in ("weight", "bias")}
    return dict(projection_dim=5, text_config=inside, model_type="clip"), shapes


CONFIGS = {"ul2": ul2, "metaclip": metaclip, "byt5": byt5}
