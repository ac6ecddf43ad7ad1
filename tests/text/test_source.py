import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import common, tiny
from moviegen.errors import DataError
from moviegen.models.text import toy
from moviegen.text import source, store


@pytest.fixture
def config(tmp_path):
    """UL2 in a store, ByT5 in an npz."""
    store.check_or_write(tmp_path / "ul2", {"encoder": "ul2"}, "key")
    tokens = [[1], [5, 6, 1]]
    embeddings = [np.full((len(ids), 6), i, np.float32) for i, ids in enumerate(tokens)]
    store.write_shard(tmp_path / "ul2", ["", "FPS-16 a dog"], tokens, embeddings)
    for path, tokens in ((tmp_path / "byt5" / "deep" / "a.npz", 2), (tmp_path / "empty.npz", 1)):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, text_emb=np.ones((4, 3), np.float32), mask=np.arange(4) < tokens)
    folders = {name: str(tmp_path / name) for name in ("ul2", "byt5")}
    data = dict(source="csv", text_folders=folders, empty_text=dict(ul2="", byt5=str(tmp_path / "empty.npz")))
    sample, text = dict(num_frames=8, fps=16), dict(tell_fps=True, camera="")
    return ConfigDict(dict(data=data, text=text, sample=sample, model=dict(text_dims=dict(ul2=6, byt5=3))))


def test_the_toy_is_for_embedded_sets():
    assert source.is_toy(tiny.get_config()) and source.is_toy(common.shrink(common.stage("1b", 1)))
    assert not source.is_toy(common.stage("1b", 1))


def test_cached_embeddings_of_stores_and_files(config):
    text = source.open_text(config)
    sample = text.find("deep/a", text.prepare("a dog"))
    assert all(found.is_file() for found in (*sample.values(), *text.empty.values()))
    assert not any(found.is_file() for found in text.find("b", text.prepare("a cat")).values())
    found = text.read([sample, text.empty])
    assert {name: (values.shape[2], mask.sum(1).tolist()) for name, (values, mask) in found.items()} == {
        "ul2": (6, [3, 1]),
        "byt5": (3, [2, 1]),
    }


def test_texts_without_a_token_are_one_of_padding(config, tmp_path):
    np.savez(tmp_path / "byt5" / "none.npz", text_emb=np.ones((4, 3), np.float32), mask=np.zeros(4))
    text = source.open_text(config)
    sample = text.find("none", text.prepare("a dog"))
    values, mask = text.read([sample, sample])["byt5"]
    assert values.shape == (2, source.TEXT_STEP, 3) and not values.any() and not mask.any()


def test_embeddings_that_are_no_numbers_are_named(config, tmp_path, monkeypatch):
    np.savez(tmp_path / "byt5" / "nan.npz", text_emb=np.full((4, 3), np.nan, np.float32), mask=np.arange(4) < 2)
    text = source.open_text(config)
    with pytest.raises(DataError, match="nan.npz: its embeddings are not all finite"):
        text.read([text.find("nan", text.prepare("a dog"))])
    np.savez(tmp_path / "byt5" / "pad.npz", text_emb=np.float32([[1], [np.inf]]) * np.ones(3), mask=np.arange(2) < 1)
    text.read([text.find("pad", text.prepare("a dog"))])  # what is behind the text is nobody's
    monkeypatch.setattr(store, "read", lambda *_: (np.full((1, 6), np.inf, np.float32), None))
    with pytest.raises(DataError, match="'FPS-16 a cat' in .*ul2: its embeddings are not all finite"):
        text.read([text.find("pad", text.prepare("a cat"))])


@pytest.mark.parametrize("name", ["../empty", "link/empty", "/etc/x", "a\0b", "x" * 300])
def test_a_name_from_outside_stays_in_its_folder(config, tmp_path, name):
    (tmp_path / "byt5" / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="byt5: .* leads out of the folder|cannot be the name of a file in .*byt5"):
        source.open_text(config).find(name, {"ul2": "a dog"})


def test_an_encoder_of_width_0_is_left_out(config):
    config.model.text_dims.byt5 = 0
    config.data.text_folders.byt5 = ""
    text = source.open_text(config)
    assert set(text.read([text.find("b", text.prepare("a dog")), text.empty])) == {"ul2"}
    config.data.source = "synthetic"
    text = source.open_text(config)
    assert set(text.read([text.find("b", text.prepare("a dog")), text.empty])) == {"ul2"}


def test_the_toy_has_the_same_interface(config):
    config.data.source = "synthetic"
    text = source.open_text(config)
    sample = text.find("any", text.prepare('a dog "x"'))
    mixed = {"ul2": sample["ul2"], "byt5": text.empty["byt5"]}
    found = text.read([sample, text.empty, mixed])
    for name, prompts in (("ul2", ['a dog "x"', "", 'a dog "x"']), ("byt5", ['a dog "x"', "", ""])):
        own = [toy.encode(prompt, name, config.model.text_dims[name]) for prompt in prompts]
        values, mask = found[name]
        assert values.shape[1] == source.TOY_BUDGET // 2 and mask.sum(1).tolist() == list(map(len, own))
        for row, expected in zip(values, own, strict=True):
            np.testing.assert_array_equal(row[: len(expected)], expected)


@pytest.mark.parametrize(
    "longest, expected",
    [
        (dict(ul2=256, metaclip=3, byt5=1), dict(ul2=256, metaclip=128, byt5=64)),
        (dict(ul2=3, metaclip=129, byt5=1), dict(ul2=512, metaclip=256, byt5=128)),
        (dict(ul2=512, metaclip=256, byt5=101), dict(ul2=512, metaclip=256, byt5=128)),
        (dict(ul2=3, metaclip=3, byt5=129), dict(ul2=512, metaclip=256, byt5=192)),
    ],
    ids=["short", "one is long", "as long as may be", "longer"],
)
def test_texts_have_few_lengths(longest, expected):
    """Two as they are padded, of which the larger's half is the smaller: packed into half or not they are three."""
    budgets = dict(ul2=512, metaclip=256, byt5=101)
    assert source.lengths(longest, budgets) == expected
    text = source.pad_text({name: [np.ones((n, 2)), np.ones((0, 2))] for name, n in longest.items()}, budgets)
    assert {name: values.shape for name, (values, _) in text.items()} == {n: (2, x, 2) for n, x in expected.items()}
    assert {name: mask.sum(1).tolist() for name, (_, mask) in text.items()} == {n: [x, 0] for n, x in longest.items()}
