"""CLIP's text tower by itself; its agreement with the reference is in tests/convert/test_huggingface.py."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.errors import ConfigError
from moviegen.models.text import clip
from moviegen.models.text.shapes import CLIP_ACTIVATIONS

END = 39
IDS = np.array([[38, 9, 1, 7, END], [38, 3, END, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def config(**overrides):
    sizes = dict(vocab_size=40, width=12, ffn_size=20, num_layers=2, num_heads=3, positions=7, projection_width=5)
    others = dict(activation="quick_gelu", norm_eps=1e-5, end_token=END, compute_dtype="float32")
    return ConfigDict(sizes | others | overrides)


def random_params(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return {
        path: (rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 1)).astype(np.float32)
        for path, shape in clip.shapes(cfg).items()
    }


def by_hand(params, cfg, ids):
    """One text without padding, in float64 numpy."""
    p = {path: value.astype(np.float64) for path, value in params.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        std = np.sqrt((centred**2).mean(-1, keepdims=True) + cfg.norm_eps)
        return centred / std * p[name + "/scale"] + p[name + "/bias"]

    def affine(x, name):
        return x @ p[name + "/w"].T + p[name + "/b"]

    def act(x):
        if cfg.activation == "gelu":
            return x * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(x)
        return x / (1 + np.exp(-1.702 * x))

    n = len(ids)
    x = p["embedding"][ids] + p["position/token"][:n]
    for i in range(cfg.num_layers):
        at = f"blocks/{i}/"
        y = norm(x, at + "attn/norm")
        q, k, v = (affine(y, f"{at}attn/{c}").reshape(n, cfg.num_heads, -1).transpose(1, 0, 2) for c in "qkv")
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2])
        scores = np.exp(np.where(np.tri(n, dtype=bool), scores, -np.inf))
        y = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, -1)
        x = x + affine(y, at + "attn/o")
        x = x + affine(act(affine(norm(x, at + "mlp/norm"), at + "mlp/up")), at + "mlp/down")
    x = norm(x, "final/norm")
    return x, x[list(ids).index(END)] @ p["final/projection"].T


@pytest.mark.parametrize("activation", CLIP_ACTIVATIONS)
def test_every_text_of_a_padded_batch_is_computed_as_if_alone(activation):
    cfg = config(activation=activation)
    params = random_params(cfg)
    found, pooled = (out.asnumpy() for out in clip.apply(params, cfg, IDS, MASK))
    for row, own, ids, mask in zip(found, pooled, IDS, MASK, strict=True):
        expected, expected_pooled = by_hand(params, cfg, ids[mask == 1])
        np.testing.assert_allclose(row[mask == 1], expected, atol=2e-5)
        np.testing.assert_allclose(own, expected_pooled, atol=2e-5)


def test_configs_of_old_mean_the_largest_id_by_end_token_2():
    params = random_params(config())
    new, old = (clip.apply(params, config(end_token=end), IDS, MASK)[1].asnumpy() for end in (END, 2))
    np.testing.assert_array_equal(new, old)


def test_positions_are_stretched_behind_the_first_twenty():
    table = np.random.default_rng(0).standard_normal((77, 4)).astype(np.float32)
    grown = clip.stretch_positions(table, 256)
    assert grown.shape == (256, 4) and grown.dtype == np.float32
    np.testing.assert_array_equal(grown[:20], table[:20])
    np.testing.assert_array_equal(grown[[20, -1]], table[[20, -1]])
    at = np.linspace(20, 76, 236)
    for column in range(4):
        np.testing.assert_allclose(grown[20:, column], np.interp(at, np.arange(77), table[:, column]), atol=1e-6)
    np.testing.assert_array_equal(clip.stretch_positions(table, 77), table)


def test_more_tokens_than_positions_are_refused():
    cfg = config(positions=4)
    with pytest.raises(ConfigError, match="5 tokens, the model 4 positions"):
        clip.apply(random_params(cfg), cfg, IDS, MASK)


def test_a_vocabulary_of_another_model_is_refused():
    with pytest.raises(ConfigError, match="to 40, the model's vocabulary from 0 to 39"):
        clip.apply(random_params(config()), config(), IDS + 1, MASK)
