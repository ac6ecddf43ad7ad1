import pytest

from experiments import common
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
        ("data=2", 1, "2 ranks.*--workers=2"),
        ("data=1", 4, "has 1 ranks.*are 4"),
        ("tensor=2", 2, "tensor=2"),
        ("data=two", 2, "data=two"),
        ("data=0", 1, "data=0"),
        ("data", 1, "'data'"),
    ],
)
def test_parse_refuses(text, ranks, words):
    with pytest.raises(ConfigError, match=words):
        mesh.parse(text, ranks)


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
    config.train.update(batch_size=6, zero_stage=4)
    wrong = " | ".join(mesh.violations({"data": 2, "zero": 2, "sp": 3}, config, "train"))
    assert all(
        words in wrong for words in ("sp=3 does not divide", "num_heads = 16", "batch_size is 6", "zero_stage is 4")
    )
    assert not mesh.violations({"data": 2, "zero": 1, "sp": 4}, common.stage("1b", 2), "train")
    assert "sp=2" in mesh.violations({"data": 1, "zero": 1, "sp": 2}, config, "train_tae")[0]
    assert not mesh.violations({"data": 1, "zero": 2, "sp": 1}, config, "train_tae")[1:]
