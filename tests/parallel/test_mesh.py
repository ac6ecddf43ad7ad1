import pytest
from mindspore import communication

from moviegen.errors import ConfigError
from moviegen.parallel import mesh, rules


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
    """Of every rank of data=2, zero=3, sp=4: neighbours share a sequence, one replica is contiguous, replicas are apart."""
    monkeypatch.setattr(mesh, "_group", lambda members, kind: members)
    for rank in range(24):
        monkeypatch.setattr(mesh, "rank", lambda rank=rank: first + rank)
        found = mesh.make({"data": 2, "zero": 3, "sp": 4}, range(first, first + 24))
        data, zero = rank // 12, rank // 4 % 3
        assert found.world == tuple(range(first, first + 24))
        assert found.sequence == tuple(first + data * 12 + zero * 4 + s for s in range(4))
        assert found.shard == tuple(first + data * 12 + i for i in range(12))
        assert found.replicas == (first + rank % 12, first + rank % 12 + 12)


@pytest.mark.parametrize(
    ("text", "stage", "job", "groups"),
    [
        ("sp=1", 3, "train", ""),
        ("data=8", 3, "train", "world"),
        ("zero=8", 3, "train", "world"),
        ("sp=8", 3, "train", "world sequence"),
        ("zero=2,sp=4", 3, "train", "world sequence"),
        ("data=2,sp=4", 3, "train", "world sequence shard replicas"),
        ("data=2,sp=4", 0, "train", "world sequence"),
        ("data=2,zero=4", 1, "train_tae", "world shard"),
        ("data=2,zero=4", 2, "train_tae", "world shard replicas"),
        ("data=2,zero=4", 0, "sample", "world replicas"),
        ("data=4,zero=2", 3, "sample", "world shard"),
    ],
)
def test_a_group_without_exchanges_of_its_own_opens_no_communicator(monkeypatch, text, stage, job, groups):
    created = []
    monkeypatch.setenv("MS_WORKER_NUM", "8")
    monkeypatch.setattr(communication, "create_group", lambda name, members: created.append((name, members)))
    axes, wanted = mesh.parse(text, 8), groups.split()
    opened = rules.communicators(axes, stage, job)
    assert [*opened] == wanted
    if not opened:
        return
    mesh._group.cache_clear()
    made = mesh.make(axes, range(8), opened)
    mesh._group.cache_clear()
    assert sorted(name.split("-")[0] for name, _ in created) == sorted(wanted[1:])
    for kind in ("world", "sequence", "shard", "replicas"):
        group = getattr(made, kind)
        assert bool(group.name) == (kind in wanted or (group.size == 8 and kind != "sequence"))
        assert group.size == {"world": 8, "sequence": axes["sp"], "shard": axes["zero"] * axes["sp"]}.get(
            kind, axes["data"]
        )
    assert all(len(name) < 100 and members[0] == 0 for name, members in created)


def test_ranks_of_a_sequence_share_their_part_of_the_batch():
    parts = [mesh.Mesh(2, 3, 4, world=mesh.Group("", 24, rank)).batch for rank in range(24)]
    assert [part.rank for part in parts] == [i for i in range(6) for _ in range(4)]
    assert {part.size for part in parts} == {6}
