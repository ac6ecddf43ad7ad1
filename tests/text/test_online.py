import gc
import weakref

import numpy as np
import pytest

from experiments import common
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import encode_text
from moviegen.parallel.mesh import ONE
from moviegen.runner import Run
from moviegen.text import encoders, online
from tests.text import tiny_encoders

PROMPTS = ['a sign "OPEN 24h"', "a dog"]


@pytest.fixture
def config(tmp_path):
    folders = tiny_encoders.make(tmp_path / "encoders")
    config = common.stage("1b", 1)
    config.text.update(encoders=folders, dtype="float32", batch_size=2)
    config.model.text_dims = tiny_encoders.WIDTHS
    config.data.text_folders = {name: str(tmp_path / "emb" / name) for name in folders}
    return config


def test_a_plain_prompt_gives_what_the_cache_would(config, tmp_path):
    plain = online.encode(PROMPTS, config, ONE)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    config.text.prompts = str(tmp_path / "prompts.txt")
    encode_text.run(Run(config, tmp_path))
    config.text.encoders.update(ul2="", metaclip="", byt5="")
    cached = online.encode(PROMPTS, config, ONE)
    assert plain.keys() == cached.keys() == tiny_encoders.WIDTHS.keys()
    for name, (values, mask) in plain.items():
        assert values.shape[0] == 3 and not np.allclose(values[0], values[1])
        np.testing.assert_allclose(values, cached[name][0], atol=1e-5)
        np.testing.assert_array_equal(mask, cached[name][1])
    assert plain["byt5"][1].sum(1).tolist() == [len("OPEN 24h") + 1, 1, 1]
    config.sample.fps = 24
    with pytest.raises(DataError, match="no (ul2|metaclip) embeddings of the prompt 'a sign.*encode_text"):
        online.encode(PROMPTS, config, ONE)  # the text is another: FPS-24


def test_one_encoder_is_in_memory_at_a_time(config, monkeypatch):
    load, living = encoders.load, []

    def watched(*args):
        assert not [ref for ref in living if ref() is not None]
        encoder = load(*args)
        living.extend(weakref.ref(value) for value in encoder.params.values())
        return encoder

    monkeypatch.setattr(online.encoders, "load", watched)
    online.encode(PROMPTS, config, ONE)
    gc.collect()
    assert len(living) > 50 and not [ref for ref in living if ref() is not None]


def test_kept_encoders_are_loaded_once(config, monkeypatch):
    once, kept = online.encode(PROMPTS, config, ONE), {}
    first = online.encode(PROMPTS[:1], config, ONE, kept)
    monkeypatch.setattr(online.encoders, "load", None)
    again = online.encode(PROMPTS, config, ONE, kept)
    assert set(kept) == set(tiny_encoders.WIDTHS) == set(first)
    for name, (values, mask) in again.items():
        np.testing.assert_array_equal(values, once[name][0])
        np.testing.assert_array_equal(mask, once[name][1])


def test_cut_prompts_are_told(config, capsys):
    config.text.budgets.byt5 = 5
    found = online.encode(PROMPTS, config, ONE)
    assert found["byt5"][1].sum(1).tolist() == [5, 1, 1]
    assert "sample: 1 of 2 prompts are cut to 5 tokens for byt5" in capsys.readouterr().out


def test_what_is_wrong_with_any_encoder_comes_before_the_first_is_run(config, monkeypatch):
    monkeypatch.setattr(online.encoders, "load", None)
    config.text.encoders.ul2 = "nowhere"
    with pytest.raises(ConfigError, match="text.encoders.ul2 is 'nowhere'"):
        online.encode(PROMPTS, config, ONE)
    config.text.encoders.ul2 = ""
    with pytest.raises(DataError, match="a sign .*no ul2 embeddings of the prompt.*text.encoders.ul2"):
        online.encode(PROMPTS, config, ONE)
