import pytest

from moviegen.convert import names
from moviegen.errors import ConfigError


def test_pairs_are_swapped_in_order_and_back():
    pairs = [(".mid.", ".mid_block."), (".mid_block.0.", ".mid_block.one."), (".w.", ".weight.")]
    for ours, theirs in (
        ("encoder/mid/0/w", "encoder.mid_block.one.weight"),
        ("encoder/w/mid", "encoder.weight.mid_block"),
    ):
        assert names.swap(ours, pairs) == theirs
        assert names.swap(theirs, pairs, back=True) == ours.replace("/", ".")


def test_any_run_of_prefixes_is_dropped_at_the_start_alone():
    arrays = {"ema.network.model.a.model.b": 1, "c": 2, "models.d": 3}
    assert names.strip_prefixes(arrays, "ema|network|model") == {"a.model.b": 1, "c": 2, "models.d": 3}
    with pytest.raises(ConfigError, match="'model.c' and 'c' are the same parameter of two sets of weights"):
        names.strip_prefixes({"model.c": 1, "c": 2}, "model")


def test_layers_the_rest_and_the_unknown():
    given = ["layers.10.q.weight", "layers.0.q.weight", "norm.weight", "layers.0.z", "layers.x.q.weight"]
    found, unknown = names.by_layers(given, r"layers\.(\d+)\.(.+)", {"q.weight": "attn/q"}, {"norm.weight": "norm"})
    assert found == {
        "blocks/0/attn/q": "layers.0.q.weight",
        "blocks/10/attn/q": "layers.10.q.weight",
        "norm": "norm.weight",
    }
    assert unknown == ["layers.0.z", "layers.x.q.weight"]
