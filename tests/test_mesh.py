import threading

import pytest

from experiments import common, tae
from moviegen import mesh
from moviegen.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "ranks", "data"), [(None, 1, 1), ("", 4, 4), ("data=2", 2, 2), ("sp=1,zero=1, data=3", 3, 3)]
)
def test_parse(text, ranks, data):
    assert mesh.parse(text, ranks) == {"data": data, "zero": 1, "sp": 1}


def test_parse_all_axes():
    assert mesh.parse("data=2,zero=3,sp=4", 24) == {"data": 2, "zero": 3, "sp": 4}


@pytest.mark.parametrize(
    ("text", "ranks", "words"),
    [
        ("tensor=2", 2, "tensor=2"),
        ("data=two", 2, "data=two"),
        ("data=0", 1, "data=0"),
        ("data", 1, "'data'"),
    ],
)
def test_parse_refuses(text, ranks, words):
    with pytest.raises(ConfigError, match=words):
        mesh.parse(text, ranks)


def test_a_rank_is_what_msrun_calls_it(monkeypatch):
    for name in ("MS_ROLE", "MS_NODE_ID"):
        monkeypatch.delenv(name, raising=False)
    assert mesh.rank() == 0
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    assert mesh.rank() == 0
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setenv("RANK_ID", "0")  # of its scheduler: msrun leaves it to all ranks of the first machine
    with pytest.raises(ConfigError, match="--node_rank"):
        mesh.rank()
    monkeypatch.setenv("MS_NODE_ID", "9")
    assert mesh.rank() == 9


@pytest.mark.parametrize("first", [0, 24])
def test_groups_cut_the_grid_along_its_axes(monkeypatch, first):
    """Of every rank of data=2, zero=3, sp=4: neighbours share a sequence, one copy is contiguous, copies are apart."""
    monkeypatch.setattr(mesh, "_group", lambda members: members)
    for rank in range(24):
        monkeypatch.setattr(mesh, "rank", lambda rank=rank: first + rank)
        found = mesh.make({"data": 2, "zero": 3, "sp": 4}, range(first, first + 24))
        data, zero = rank // 12, rank // 4 % 3
        assert found.world == tuple(range(first, first + 24))
        assert found.sequence == tuple(first + data * 12 + zero * 4 + s for s in range(4))
        assert found.shard == tuple(first + data * 12 + i for i in range(12))
        assert found.copies == (first + rank % 12, first + rank % 12 + 12)


def test_ranks_of_a_sequence_share_their_part_of_the_batch():
    parts = [mesh.Mesh(2, 3, 4, world=mesh.Group("", 24, rank)).batch for rank in range(24)]
    assert [part.rank for part in parts] == [i for i in range(6) for _ in range(4)]
    assert {part.size for part in parts} == {6}


def test_every_broken_rule_is_named_at_once():
    config = common.stage("1b", 2)
    config.train.update(batch_size=6, zero_stage=4, rank_timeout=0.0, keep_checkpoints=0)
    wrong = " | ".join(mesh.violations({"data": 2, "zero": 2, "sp": 3}, 8, config, "train"))
    for words in (
        "it has 12 ranks, but there are 8: change the mesh or start --workers=12",
        "sp=3 does not divide model.num_heads = 16",
        "batch_size is 6",
        "zero_stage is 4",
        "rank_timeout is 0.0",
        "keep_checkpoints is 0",
    ):
        assert words in wrong
    assert not mesh.violations({"data": 2, "zero": 1, "sp": 4}, 8, common.stage("1b", 2), "train")


def test_the_autoencoder_has_no_sequence_and_two_batches():
    (many, sp, one, images) = mesh.violations({"data": 2, "zero": 1, "sp": 2}, 1, tae.get_config(), "train_tae")
    assert "it has 4 ranks, but there is 1" in many and "sp=2" in sp
    assert "train.batch_size is 1, not a multiple of 2" in one and "data.image_batch_size is 1" in images


@pytest.mark.parametrize(
    ("number", "counts"),
    [(1, {"an image": 448}), (2, {"a video": 14336, "an image": 448}), (3, {"a video": 73728, "an image": 2304})],
)
def test_token_counts_of_the_stages(number, counts):
    assert mesh.token_counts(common.stage("30b", number)) == counts


def test_a_note_tells_what_large_padding_costs():
    config = common.stage("30b", 2)
    assert not mesh.notes({"data": 1, "zero": 1, "sp": 8}, config, "train")
    config.data.update(height=48, width=48)  # 3 x 3 patches
    (note,) = mesh.notes({"data": 1, "zero": 1, "sp": 8}, config, "train")
    assert "the 9 tokens of an image: each rank takes 2" in note and "78% more work" in note
    assert not mesh.notes({"data": 8, "zero": 1, "sp": 1}, config, "train")
    assert not mesh.notes({"data": 8, "zero": 1, "sp": 1}, common.stage("30b", 2), "sample")


def test_the_others_wait_for_the_first_rank(tmp_path, monkeypatch):
    """Threads stand in for ranks; the marker of an earlier run counts for nothing."""
    met, done, marker = threading.Barrier(2), [], tmp_path / "ranks" / "x.done"
    marker.parent.mkdir()
    marker.touch()
    here = threading.local()
    monkeypatch.setattr(mesh, "current", lambda: mesh.Mesh(2, world=mesh.Group("", 2, here.rank)))
    monkeypatch.setattr(mesh, "barrier", lambda group: met.wait(20))
    monkeypatch.setattr(mesh.time, "sleep", lambda seconds: waited.set())
    waited = threading.Event()

    def make():
        assert waited.wait(20)
        done.append(here.rank)

    def run(rank):
        here.rank = rank
        mesh.first_rank_alone(make, marker)
        assert done == [0]
        done_by.append(rank)

    done_by = []
    threads = [threading.Thread(target=run, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done_by) == [0, 1]


def test_what_the_first_rank_finds_the_others_take(tmp_path, monkeypatch):
    file = tmp_path / "new" / "found.txt"

    def ask(rank):
        monkeypatch.setattr(mesh, "current", lambda: mesh.Mesh(data=2, world=mesh.Group("both", 2, rank)))
        monkeypatch.setattr(mesh, "first_rank_alone", lambda do, marker: rank or do())
        return mesh.found_by_first(lambda: f"by {rank}", file.write_text, file.read_text, file)

    assert ask(0) == "by 0" and ask(1) == "by 0"
    monkeypatch.undo()
    assert mesh.found_by_first(lambda: 3, None, None, tmp_path / "alone" / "x") == 3  # one rank leaves nothing
    assert not (tmp_path / "alone").exists()
