import pytest

from moviegen.parallel.mesh import Group, Mesh
from moviegen.sampling.assignment import assign


@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 1, 1), (2, 2, 2), (4, 1, 2), (1, 3, 2)])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("tiles", [1, 5])
@pytest.mark.parametrize("requests", [12, 7, 1])
def test_every_request_is_computed_and_decoded_exactly_once(axes, guided, tiles, requests):
    data, zero, sp = axes
    decoded, rounds = [], set()
    for rank in range(data * zero * sp):
        mesh = Mesh(*axes, world=Group("", data * zero * sp, rank), sequence=Group("", sp, rank % sp))
        by = assign(mesh, guided, tiles)
        assert by.tile_group.size == (sp if tiles == 5 else 1)
        batches = list(by.batches(requests, 2))
        rounds.add((len(batches), *{len(batch) for batch, _ in batches}))
        for batch, places in batches:
            decoded += [batch[place] for place in places] if by.tile_group.rank == 0 else []
    assert sorted(decoded) == list(range(requests))
    assert len(rounds) == 1  # every rank has equally many batches, all of one size


def test_without_requests_there_is_no_batch():
    assert list(assign(Mesh(), True).batches(0, 4)) == []
