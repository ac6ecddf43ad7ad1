import json

import numpy as np
import pytest

from experiments import common
from moviegen.data import latent_cache, video
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import encode_text
from moviegen.parallel import sync
from moviegen.parallel.mesh import Group, Mesh
from moviegen.runner import Run
from moviegen.storage.writers import read_metrics
from moviegen.text import encoders, store
from tests.text import tiny_encoders

TABLE = 'video,caption\na.mp4,a dog\nb.mp4,a red circle moves left\nc.png,a dog\nd.mp4,a dog\ne.mp4,"a ""sign"""\n'
UL2 = ["", "FPS-16 a dog", "FPS-16 a red circle moves left", "a dog", 'FPS-16 a "sign"']


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_encoders.make(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def config(folders, tmp_path):
    config = common.stage("1b", 2)
    config.text.update(encoders=folders, dtype="float32", batch_size=2)
    config.model.text_dims = tiny_encoders.WIDTHS
    (tmp_path / "train.csv").write_text(TABLE)
    config.data.update(
        fps=16.0, csv=str(tmp_path / "train.csv"), text_folders={n: str(tmp_path / "emb" / n) for n in folders}
    )
    return config


def stored(config, name):
    return store.open_store(config.data.text_folders[name])


def test_every_distinct_text_is_embedded_once(config, tmp_path, monkeypatch, capsys):
    embedded, embed = [], encoders.embed

    def noted(encoder, tokens, dtype):
        embedded.extend(map(tuple, tokens))
        return embed(encoder, tokens, dtype)

    monkeypatch.setattr(encode_text.encoders, "embed", noted)
    metrics = encode_text.run(Run(config, tmp_path))
    assert metrics == {"embedded": 5 + 5 + 2, "kept": 0, "cut": 0, "bad": 0}
    assert len(embedded) == 12
    assert len(stored(config, "ul2").keys) == len(stored(config, "metaclip").keys) == 5
    for name, texts in (("ul2", UL2), ("byt5", ["", "sign"])):
        files = encoders.look(config, name)
        encoder = encoders.load(files, "float32")
        for text in texts:
            found, ids = store.read(stored(config, name), text)
            assert ids.tolist() == files.tokenizer.encode([text])[0]
            np.testing.assert_allclose(found, embed(encoder, [ids.tolist()])[0], atol=1e-5)
    fingerprint = json.loads((tmp_path / "emb" / "byt5" / store.MANIFEST).read_text())
    assert fingerprint.keys() == {"encoder", "weights", "tokenizer", "budget", "dtype", "width"}
    out = capsys.readouterr().out
    assert "encode_text ul2 5/5" in out and "ul2: 5 texts embedded (" in out and "prompts/s" in out
    rates = [line.get("encode_text/ul2_prompts_per_second") for line in read_metrics(tmp_path, "encode_text")]
    assert len(rates) == 3 and max(filter(None, rates)) > 0


def test_a_second_run_embeds_what_is_new_alone(config, tmp_path, monkeypatch):
    encode_text.run(Run(config, tmp_path))
    monkeypatch.setattr(encode_text.encoders, "load", None)  # not even weights are loaded
    assert encode_text.run(Run(config, tmp_path)) == {"embedded": 0, "kept": 12, "cut": 0, "bad": 0}
    monkeypatch.undo()
    (tmp_path / "more.txt").write_text("a dog\na cat\n")
    config.text.prompts = str(tmp_path / "more.txt")
    assert encode_text.run(Run(config, tmp_path)) == {"embedded": 2, "kept": 5, "cut": 0, "bad": 0}
    assert store.contains(stored(config, "ul2"), [*UL2, "FPS-16 a cat"]).all()


def test_rates_are_those_of_the_latents_or_of_the_files(config, tmp_path, capsys):
    """What is shown, by the cache, is told; without data.fps the rest is looked up in the files, once each."""
    video.write_mp4(tmp_path / "a.mp4", np.zeros((2, 16, 16, 3), np.uint8), 30000 / 1001)
    writer = latent_cache.ShardWriter(tmp_path / "latents", "float32", 0)
    latents = np.random.default_rng(0).random((2, 16, 1, 2, 2), np.float32)
    writer.add("b.mp4", *latents, "video", fps=12.0)
    writer.flush()
    (tmp_path / "train.csv").write_text("video,caption\na.mp4,a dog\nb.mp4,a dog\nc.mp4,a dog\n")
    config.data.update(
        fps=0.0, video_folder=str(tmp_path), latent_folder=str(tmp_path / "latents"), max_bad_fraction=0.4
    )
    config.text.encoders.update(metaclip="", byt5="")
    assert encode_text.run(Run(config, tmp_path))["bad"] == 1
    assert store.contains(stored(config, "ul2"), ["FPS-30 a dog", "FPS-12 a dog"]).all()
    assert "line 4: " in (out := capsys.readouterr().out) and "c.mp4" in out


def test_a_stopped_run_keeps_its_shards(config, tmp_path, monkeypatch):
    config.text.encoders.update(ul2="", metaclip="")
    lines = [f'v{i}.mp4,"a ""{i * "x"}"""\n' for i in range(8)]
    (tmp_path / "train.csv").write_text("video,caption\n" + "".join(lines))
    monkeypatch.setattr(encode_text, "SHARD_SECONDS", 0.0)
    embed, calls = encoders.embed, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(*args)

    monkeypatch.setattr(encode_text.encoders, "embed", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_text.run(Run(config, tmp_path))
    assert len(stored(config, "byt5").keys) == 4
    assert encode_text.run(Run(config, tmp_path))["embedded"] == 4
    assert len(stored(config, "byt5").keys) == 8


def test_long_prompts_are_cut_and_counted(config, tmp_path, capsys):
    config.text.budgets.update(ul2=20, metaclip=40, byt5=10)
    (tmp_path / "train.csv").write_text(f'video,caption\na.mp4,"{"dog " * 2500} ""{"x" * 10000}"""\nb.mp4,dog\n')
    assert encode_text.run(Run(config, tmp_path))["cut"] == 3
    assert "ul2: 3 texts embedded" in (out := capsys.readouterr().out) and "1 cut to 20 tokens" in out
    assert stored(config, "metaclip").places[:, 2].max() >= 40
    text = "x" * 10_000
    assert len(store.read(stored(config, "byt5"), text)[1]) == 10


def test_bad_rows_are_listed_and_refused_above_the_share(config, tmp_path, capsys):
    (tmp_path / "train.csv").write_text("video,caption\na.mp4,a dog\nb.mp4,\nc.mp4,a cat, running\n")
    with pytest.raises(DataError, match="train.csv: 2 bad prompts and 1 good ones.*line 3: the caption is empty"):
        encode_text.run(Run(config, tmp_path))
    assert "line 4: has more or fewer fields" in capsys.readouterr().out
    config.data.max_bad_fraction = 0.7
    assert encode_text.run(Run(config, tmp_path)) == {"embedded": 5, "kept": 0, "cut": 0, "bad": 2}


def test_several_ranks_share_the_texts(config, tmp_path, monkeypatch):
    """One after another, each as if the other were not there; batches are theirs in turn."""
    monkeypatch.setattr(sync, "barrier", lambda group: None)
    monkeypatch.setattr(sync, "first_rank_alone", lambda world, do, marker: do())
    nothing = np.zeros(5, bool)
    monkeypatch.setattr(encode_text.store, "contains", lambda opened, texts: nothing[: len(texts)])
    config.text.encoders.update(metaclip="", byt5="")
    counts = []
    for rank in (0, 1):
        encode_text.run(Run(config, tmp_path, Mesh(2, world=Group("", 2, rank))))
        counts.append(len(stored(config, "ul2").keys))
    monkeypatch.undo()
    assert counts == [3, 5] and store.contains(stored(config, "ul2"), UL2).all()  # three batches: two, then one


def test_another_encoder_or_budget_needs_another_folder(config, tmp_path):
    encode_text.run(Run(config, tmp_path))
    config.text.budgets.byt5 = 50
    with pytest.raises(ConfigError, match="budget: 100 -> 50.*data.text_folders.byt5"):
        encode_text.run(Run(config, tmp_path))
    config.text.budgets.byt5 = 100
    config.text.encoders = tiny_encoders.make(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="weights: .*data.text_folders.byt5"):
        encode_text.run(Run(config, tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("text.encoders", {"ul2": "", "metaclip": "", "byt5": ""}, "text.encoders names no folder"),
        ("text.encoders.ul2", "nowhere", "text.encoders.ul2 is 'nowhere'"),
        ("data.text_folders.metaclip", "", "data.text_folders.metaclip is empty"),
        ("text.batch_size", 0, "text.batch_size is 0"),
        ("text.budgets.byt5", 1, "budget is 1"),
        ("data.csv", "gone.csv", "data.csv is 'gone.csv'"),
        ("text.camera", "wobble", "camera motion 'wobble'"),
    ],
)
def test_wrong_settings(config, tmp_path, key, value, words):
    *path, last = key.split(".")
    section = config
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(ConfigError, match=words):
        encode_text.run(Run(config, tmp_path))
