import mindspore as ms
import numpy as np

from moviegen.nn import backend
from moviegen.parallel import comm
from moviegen.parallel.mesh import ONE, Group, Mesh

PAIR = Group("pair", 2, 1)


def test_one_rank_exchanges_nothing():
    local = comm.make(ONE, 3, {"w": (2,)})
    assert (local.sequence, local.batches, local.sharded) == (comm.LOCAL.sequence, 1, False)
    x = {"w": backend.tensor(np.float32([1, 2]))}
    reduce = local.reducer()
    assert local.all_gather(x)["w"] is x["w"] and reduce(x, last=True)["w"] is x["w"] and reduce({}, last=True) == {}
    assert local.all_reduce(x["w"]) is x["w"]


def test_one_rank_computes_with_the_types_of_a_mesh():
    """Weights arrive in their dtypes, whole where they are not sharded, and gradients leave in float32."""
    x = {path: backend.tensor(np.float32([1, 1 + 2**-12])) for path in ("norm", "w")}
    for mesh, stage in ((ONE, 3), (Mesh(zero=2, world=PAIR, shard=PAIR), 2)):
        made = comm.make(mesh, stage, {"norm": (2,), "w": (2,)}, {"norm": "float32", "w": "float16"})
        found = made.all_gather(x)
        assert found["norm"] is x["norm"] and found["w"].dtype == ms.float16
        np.testing.assert_array_equal(found["w"].asnumpy(), [1, 1])
    assert comm.make(ONE, 3, {}).reducer()(found, last=True)["w"].dtype == ms.float32


def test_parameters_are_shards_at_stage_3_alone():
    mesh = Mesh(zero=2, world=PAIR, shard=PAIR)
    assert [comm.make(mesh, stage, {}).sharded for stage in range(4)] == [False, False, False, True]
    assert not comm.make(Mesh(data=2, world=PAIR), 3, {}).sharded
    assert comm.make(mesh, 0, {}).batches == 2


def test_shards_are_gathered_by_their_whole_shapes_and_dtype(monkeypatch):
    asked = []
    monkeypatch.setattr(comm.zero, "start_whole", lambda *args: asked.append(args) or dict)
    found = comm.make(Mesh(zero=2, world=PAIR, shard=PAIR), 3, {"v": (3,), "w": (5,)}, {"w": "bfloat16"})
    found.all_gather({"w": "a shard"})
    assert asked == [(PAIR, {"w": "a shard"}, {"w": (5,)}, {"w": "bfloat16"})]
