import json

import numpy as np
import pytest

from experiments import common
from moviegen.errors import ConfigError, DataError
from moviegen.storage import safetensors_io
from moviegen.text import encoders
from tests.text import tiny_encoders


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_encoders.make(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def config(folders):
    config = common.stage("1b", 1)
    config.text.update(encoders=folders, dtype="float32")
    config.model.text_dims = tiny_encoders.WIDTHS
    return config


@pytest.mark.parametrize("name", encoders.KINDS)
def test_every_text_is_embedded_as_if_alone_and_trimmed(config, name):
    files = encoders.look(config, name)
    encoder = encoders.load(files, "float32")
    tokens = files.tokenizer.encode(["a dog", "", "a red circle moves left and up"])
    together = encoders.embed(encoder, tokens)
    assert [len(array) for array in together] == list(map(len, tokens)) and len(set(map(len, tokens))) == 3
    for ids, array in zip(tokens, together, strict=True):
        assert array.shape == (len(ids), tiny_encoders.WIDTHS[name]) and array.dtype == np.float32
        np.testing.assert_allclose(encoders.embed(encoder, [ids])[0], array, atol=1e-5)


def test_half_the_memory_in_bfloat16(config):
    files = encoders.look(config, "byt5")
    tokens = files.tokenizer.encode(["open"])
    whole = encoders.load(files, "float32")
    exact = encoders.embed(whole, tokens)[0]
    encoder = encoders.load(files, "bfloat16")
    assert sum(v.nbytes for v in encoder.params.values()) < 0.55 * sum(v.nbytes for v in whole.params.values())
    rough = encoders.embed(encoder, tokens, "bfloat16")[0]
    assert rough.dtype.name == "bfloat16" and 0 < abs(rough.astype(np.float32) - exact).max() < 0.1


@pytest.mark.parametrize("name", encoders.KINDS)
def test_float16_rehearses_the_types_of_a_card(config, name):
    files = encoders.look(config, name)
    tokens = files.tokenizer.encode(["a dog", "open"])
    exact = np.concatenate(encoders.embed(encoders.load(files, "float32"), tokens))
    files.cfg.compute_dtype = "float16"
    found = np.concatenate(encoders.embed(encoders.load(files, "float16"), tokens))
    assert found.dtype == np.float32 and 1e-5 < abs(found - exact).mean() / abs(exact).mean() < 1e-2


@pytest.mark.parametrize("name", encoders.KINDS)
def test_weights_are_moved_to_the_card_once(config, card, name):
    files = encoders.look(config, name)
    encoder = encoders.load(files, "float32")
    assert sorted(map(id, card)) == sorted(map(id, encoder.params.values()))
    for _ in range(2):
        before = len(card)
        encoders.embed(encoder, files.tokenizer.encode(["a dog", "open"]))
        assert not {id(x) for x in encoder.params.values()} & {id(x) for x in card[before:]}


def test_metaclip_takes_its_budget_of_tokens(config):
    """Its table has 30 rows."""
    files = encoders.look(config, "metaclip")
    assert files.cfg.positions == 256
    ids = files.tokenizer.encode(["x" * 250])
    assert len(ids[0]) == 252 and encoders.embed(encoders.load(files, "float32"), ids)[0].shape == (252, 12)


def test_digests_follow_config_and_weights(config, tmp_path):
    first = encoders.digest(encoders.look(config, "byt5"))
    again = tiny_encoders.make(tmp_path / "same")
    other = tiny_encoders.make(tmp_path / "other", seed=1)
    config.text.encoders = again
    assert encoders.digest(encoders.look(config, "byt5")) == first
    config.text.encoders = other
    assert encoders.digest(encoders.look(config, "byt5")) != first


def change_config(folder, **values):
    path = folder / "byt5" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda folder, config: config.text.encoders.update(byt5="nowhere"), ConfigError, "fetch_text_encoder"),
        (lambda folder, config: (folder / "byt5" / "config.json").unlink(), ConfigError, "config.json: cannot be read"),
        (lambda folder, config: change_config(folder, vocab_size=1000), ConfigError, "tokenizer has 384.*model 1000"),
        (lambda folder, config: change_config(folder, vocab_size=300), ConfigError, "tokenizer has 384.*model 300"),
        (lambda folder, config: change_config(folder, d_model=9), ConfigError, "9 wide, model.text_dims.byt5 is 8"),
        (lambda folder, config: config.text.update(dtype="int8"), ConfigError, "text.dtype is 'int8'"),
        (lambda folder, config: (folder / "byt5" / "model.safetensors").unlink(), DataError, "no model.safetensors"),
        (
            lambda folder, config: (folder / "byt5" / "model.safetensors").write_bytes(b"\0" * 30),
            DataError,
            "not a readable safetensors file",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, config, spoil, error, words):
    config.text.encoders = tiny_encoders.make(tmp_path)
    spoil(tmp_path, config)
    with pytest.raises(error, match=words):
        encoders.look(config, "byt5")


def test_missing_and_extra_tensors_are_named(tmp_path, config):
    config.text.encoders = tiny_encoders.make(tmp_path)
    file = tmp_path / "byt5" / "model.safetensors"
    arrays = safetensors_io.read(file)
    arrays["surprise"] = arrays.pop("encoder.final_layer_norm.weight")
    safetensors_io.write(arrays, file)
    with pytest.raises(ConfigError, match="missing: final/norm; extra: surprise"):
        encoders.load(encoders.look(config, "byt5"), "float32")
