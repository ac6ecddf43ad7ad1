"""T5's encoder by itself; its agreement with the reference is in tests/convert/test_huggingface.py."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.errors import ConfigError
from moviegen.models.text import t5
from moviegen.models.text.shapes import T5_ACTIVATIONS
from moviegen.nn import layerwise
from moviegen.parallel import comm, sharding, zero
from moviegen.parallel.mesh import Group, Mesh


def config(**overrides):
    sizes = dict(vocab_size=40, width=12, head_width=4, ffn_size=20, num_layers=3, num_heads=2)
    others = dict(distance_buckets=8, max_distance=16, activation="gelu", norm_eps=1e-6, compute_dtype="float32")
    return ConfigDict(sizes | others | overrides)


def random_params(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return {
        path: (rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 1)).astype(np.float32)
        for path, shape in t5.shapes(cfg).items()
    }


IDS = np.array([[5, 9, 1, 7, 2], [3, 3, 1, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def by_hand(params, cfg, ids):
    """One text without padding, in float64 numpy, from the paper's description."""
    p = {path: value.astype(np.float64) for path, value in params.items()}

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * scale

    def act(x):
        if cfg.activation == "silu":
            return x / (1 + np.exp(-x))
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    n, h = len(ids), cfg.num_heads
    bias = p["distance"][t5.distance_buckets(n, cfg.distance_buckets, cfg.max_distance)].transpose(2, 0, 1)
    x = p["embedding"][ids]
    for i in range(cfg.num_layers):
        block = {path.split("/", 2)[2]: value for path, value in p.items() if path.startswith(f"blocks/{i}/")}
        y = norm(x, block["attn/norm"])
        q, k, v = ((y @ block[f"attn/{c}"].T).reshape(n, h, -1).transpose(1, 0, 2) for c in "qkv")
        scores = np.exp(q @ k.transpose(0, 2, 1) + bias)
        y = scores / scores.sum(-1, keepdims=True) @ v
        x = x + y.transpose(1, 0, 2).reshape(n, -1) @ block["attn/o"].T
        y = norm(x, block["mlp/norm"])
        x = x + (act(y @ block["mlp/gate"].T) * (y @ block["mlp/up"].T)) @ block["mlp/down"].T
    return norm(x, p["final/norm"])


@pytest.mark.parametrize("activation", T5_ACTIVATIONS)
def test_every_text_of_a_padded_batch_is_computed_as_if_alone(activation):
    cfg = config(activation=activation)
    params = random_params(cfg)
    found = t5.apply(params, cfg, IDS, MASK).asnumpy()
    for row, ids, mask in zip(found, IDS, MASK, strict=True):
        expected = by_hand(params, cfg, ids[mask == 1])
        np.testing.assert_allclose(row[mask == 1], expected, atol=2e-5)


def test_distances_share_buckets_logarithmically():
    """Of 32 buckets up to 128, from the definition: 8 + 8 log(d / 8) / log(16), 16 more for keys after the query."""
    found = t5.distance_buckets(300, 32, 128)
    for query, key in [
        (0, 0),
        (5, 4),
        (4, 5),
        (20, 13),
        (13, 20),
        (0, 8),
        (8, 0),
        (0, 16),
        (64, 0),
        (0, 200),
        (299, 0),
    ]:
        d = abs(key - query)
        own = d if d < 8 else min(15, 8 + math.floor(8 * math.log(d / 8) / math.log(16) + 1e-9))
        assert found[query, key] == own + 16 * (key > query), (query, key)
    assert set(np.unique(found)) == set(range(32)) - {16}


def test_more_layers_compile_nothing_more():
    params, before = {}, None
    for layers in (1, 3):
        cfg = config(num_layers=layers, num_heads=3)
        params = random_params(cfg)
        t5.apply(params, cfg, IDS, MASK)
        compiled = layerwise._forward.cache_info().misses
        assert before is None or compiled == before
        before = compiled


def test_shards_are_put_together_a_block_at_a_time(monkeypatch):
    """Stage 3 over two ranks, the exchange replaced by knowing all shards: the same embeddings."""
    cfg = config()
    params, group = random_params(cfg), Group("pair", 2, 1)
    shards = {path: sharding.cut(value, group) for path, value in params.items()}
    asked = []

    def start_whole(own, given, shapes, dtype):
        assert own == group and given.keys() == shapes.keys()
        asked.append(len(given))
        for path, value in given.items():
            np.testing.assert_array_equal(value, shards[path])
            assert tuple(shapes[path]) == params[path].shape
        return lambda: {path: params[path] for path in given}

    monkeypatch.setattr(zero, "start_whole", start_whole)
    mesh = Mesh(zero=2, world=group, shard=group)
    found = t5.apply(shards, cfg, IDS, MASK, comm.make(mesh, 3, t5.shapes(cfg))).asnumpy()
    monkeypatch.undo()
    np.testing.assert_array_equal(found, t5.apply(params, cfg, IDS, MASK).asnumpy())
    assert asked == [2, 9, 9, 9, 1]


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        (IDS + 36, MASK, "from 36 to 45, the model's vocabulary from 0 to 39.*tokenizer is of another model"),
        (IDS - 1, MASK, "from -1"),
        (IDS, MASK[:, :4], r"\(2, 5\), the mask \(2, 4\)"),
        (IDS[0], MASK[0], r"shape \(5,\)"),
    ],
)
def test_tokens_that_do_not_fit(ids, mask, words):
    cfg = config()
    with pytest.raises(ConfigError, match=words):
        t5.apply(random_params(cfg), cfg, ids, mask)


def test_parameters_that_do_not_fit():
    cfg = config()
    params = random_params(cfg)
    with pytest.raises(ConfigError, match="missing .*blocks/2/attn/k"):
        t5.apply({path: value for path, value in params.items() if path != "blocks/2/attn/k"}, cfg, IDS, MASK)
