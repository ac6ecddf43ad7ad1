"""Weights under Hugging Face's names, drawn by the goldens' recipe, give the outputs of its own implementation."""

import json
import re
from pathlib import Path

import mindspore as ms
import ml_dtypes
import numpy as np
import pytest

from moviegen.convert import huggingface
from moviegen.errors import ConfigError
from moviegen.models.text import clip, t5
from moviegen.nn import backend
from moviegen.storage import safetensors_io
from moviegen.storage.arraystore import Lazy
from tests.golden.recipe import golden_array

GOLDEN = Path(__file__).parents[1] / "golden"
T5 = ("t5_gated_gelu", "t5_gated_silu")


def golden(name):
    """Arrays by name, config.json and the stored file."""
    stored = np.load(GOLDEN / f"{name}.npz")
    config = json.loads(str(stored["config"]))
    arrays = {}
    for entry in stored["names"]:
        own, shape = re.fullmatch(r"(\S+) \((.*)\)", str(entry)).groups()
        arrays[own] = golden_array(own, [int(n) for n in shape.split(",") if n], config["salt"])
    if "shared.weight" in arrays:
        arrays["shared.weight"] = arrays["encoder.embed_tokens.weight"]  # one tensor, the reference set the second last
    return arrays, config, stored


@pytest.mark.parametrize("name", T5)
def test_t5_equals_the_reference_where_there_are_tokens(name):
    arrays, config, stored = golden(name)
    cfg = huggingface.t5_config(config)
    found = t5.apply(huggingface.t5(arrays, cfg), cfg, stored["input_ids"], stored["attention_mask"]).asnumpy()
    seen = stored["attention_mask"] == 1
    assert found.shape == stored["output"].shape and 10 < seen.sum() < seen.size
    np.testing.assert_allclose(found[seen], stored["output"][seen], atol=1e-4)


def test_clip_equals_the_reference():
    arrays, config, stored = golden("clip_text")
    cfg = huggingface.clip_text_config(config)
    last, pooled = clip.apply(huggingface.clip_text(arrays, cfg), cfg, stored["input_ids"], stored["attention_mask"])
    np.testing.assert_allclose(last.asnumpy(), stored["last_hidden_state"], atol=1e-4)
    np.testing.assert_allclose(pooled.asnumpy(), stored["text_embeds"], atol=1e-4)


def rounded_matrices(arrays):
    """In bfloat16 but for norms, biases and tables of positions, and back."""
    exact = re.compile("norm|bias|position_embedding")
    rounded = {name: array.astype(ml_dtypes.bfloat16).astype(np.float32) for name, array in arrays.items()}
    return {name: arrays[name] if exact.search(name) else array for name, array in rounded.items()}


def test_matrices_in_bfloat16_are_stored_so_and_differ_by_their_rounding_alone():
    arrays, config, stored = golden("t5_gated_gelu")
    cfg = huggingface.t5_config(config)
    params = huggingface.t5(arrays, cfg, "bfloat16")
    kept = {path for path, value in params.items() if value.dtype == ms.float32}
    assert kept == {path for path, value in params.items() if value.ndim == 1 or path == "distance"}
    given = stored["input_ids"], stored["attention_mask"]
    expected = t5.apply(huggingface.t5(rounded_matrices(arrays), cfg), cfg, *given).asnumpy()
    np.testing.assert_allclose(t5.apply(params, cfg, *given).asnumpy(), expected, atol=1e-5)


def test_clip_in_bfloat16():
    arrays, config, stored = golden("clip_text")
    cfg = huggingface.clip_text_config(config)
    given = stored["input_ids"], stored["attention_mask"]
    expected = clip.apply(huggingface.clip_text(rounded_matrices(arrays), cfg), cfg, *given)
    found = clip.apply(huggingface.clip_text(arrays, cfg, "bfloat16"), cfg, *given)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), atol=1e-5)


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_a_whole_t5_with_either_name_of_the_embedding(kept):
    arrays, config, _ = golden("t5_gated_gelu")
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        if name != kept:
            del arrays[name]
    expected = arrays[kept]
    arrays |= {"decoder.block.0.layer.0.SelfAttention.q.weight": np.ones(3), "lm_head.weight": np.ones(3)}
    params = huggingface.t5(arrays, huggingface.t5_config(config))
    np.testing.assert_array_equal(params["embedding"].asnumpy(), expected)


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    """Sharded files with an index: each array is read once, placed, and let go before the next."""
    arrays, config, _ = golden("t5_gated_silu")
    del arrays["encoder.embed_tokens.weight"]
    safetensors_io.write_shards(arrays, tmp_path, "float32", 60_000, {})
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    events = []

    def noted(name, lazy):
        def read():
            events.append(("read", name))
            return lazy.read()

        return Lazy(lazy.shape, lazy.dtype, read)

    def place(path, array):
        events.append(("place", path))
        return backend.tensor(array)

    found = {name: noted(name, lazy) for name, lazy in safetensors_io.lazy(tmp_path)[0].items()}
    params = huggingface.t5(found, huggingface.t5_config(config), place=place)
    assert [kind for kind, _ in events] == ["read", "place"] * len(arrays)
    np.testing.assert_array_equal(params["embedding"].asnumpy(), arrays["shared.weight"])


def test_a_whole_clip_has_its_text_config_inside():
    arrays, config, _ = golden("clip_text")
    whole = {"projection_dim": 48, "text_config": {k: v for k, v in config.items() if k != "projection_dim"}}
    assert huggingface.clip_text_config(whole) == huggingface.clip_text_config(config)
    others = {"vision_model.embeddings.class_embedding": np.ones(2), "logit_scale": np.ones(())}
    cfg = huggingface.clip_text_config(config)
    assert huggingface.clip_text(arrays | others, cfg).keys() == clip.shapes(cfg).keys()


def test_a_longer_position_table_is_loaded_as_it_is_and_a_shorter_one_stretched():
    arrays, config, stored = golden("clip_text")
    table = arrays["text_model.embeddings.position_embedding.weight"]  # 24 rows
    cfg = huggingface.clip_text_config(config)
    same = huggingface.clip_text(arrays, cfg)["position/token"].asnumpy()
    np.testing.assert_array_equal(same, table)
    cfg.positions = 50
    params = huggingface.clip_text(arrays, cfg)
    grown = params["position/token"].asnumpy()
    assert grown.shape == (50, 64)
    np.testing.assert_array_equal(grown[:20], table[:20])
    np.testing.assert_array_equal(grown[-1], table[-1])
    # A prompt of 10 tokens embeds as it did.
    short = stored["input_ids"][:1, :10]
    found, pooled = clip.apply(params, cfg, short, np.ones_like(short))
    np.testing.assert_allclose(found.asnumpy()[0], stored["last_hidden_state"][0, :10], atol=1e-4)
    np.testing.assert_allclose(pooled.asnumpy()[0], stored["text_embeds"][0], atol=1e-4)
    cfg.positions = 20
    with pytest.raises(ConfigError, match=r"position/token is \(24, 64\), expected \(20, 64\)"):
        huggingface.clip_text(arrays, cfg)


@pytest.mark.parametrize("which", ["t5_gated_gelu", "clip_text"])
def test_missing_extra_and_wrong_tensors_are_all_named(which):
    arrays, config, _ = golden(which)
    convert, configure = (
        (huggingface.t5, huggingface.t5_config)
        if which.startswith("t5")
        else (huggingface.clip_text, huggingface.clip_text_config)
    )
    missing, wrong = [name for name in arrays if "1" in name and len(arrays[name].shape) == 2][:2]
    del arrays[missing]
    arrays[wrong] = np.zeros((3, 3), np.float32)
    arrays["surprise.weight"] = np.zeros(2, np.float32)
    with pytest.raises(ConfigError) as error:
        convert(arrays, configure(config))
    for word in ("missing: blocks/", "extra: surprise.weight", "wrong shape: blocks/", "is (3, 3), expected"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("function", "change", "words"),
    [
        ("t5_config", {"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu'"),
        ("t5_config", {"d_kv": None}, "no d_kv"),
        ("t5_config", {"num_layers": 10**9}, "num_layers is 1000000000, expected a whole number from 1 to 1000"),
        ("t5_config", {"d_model": "64"}, "d_model is '64', expected a whole number"),
        ("t5_config", {"num_heads": -2}, "num_heads is -2, expected a whole number"),
        ("clip_text_config", {"hidden_act": "relu"}, "activation is 'relu'"),
        ("clip_text_config", {"hidden_size": None}, "no hidden_size"),
        ("clip_text_config", {"num_attention_heads": 7}, "num_heads is 7"),
    ],
)
def test_configs_of_other_models_are_refused(function, change, words):
    _, config, _ = golden("t5_gated_gelu" if function == "t5_config" else "clip_text")
    config = {key: value for key, value in (config | change).items() if value is not None}
    with pytest.raises(ConfigError, match=words):
        getattr(huggingface, function)(config)
