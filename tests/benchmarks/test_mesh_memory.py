import pytest

from benchmarks import mesh_memory


@pytest.mark.parametrize("axis", mesh_memory.MESHES)
def test_one_rank_is_measured(axis, monkeypatch):
    small = dict(hidden_size=8, num_layers=1, num_heads=2, ffn_size=12, position_lengths=(1, 2, 2))
    monkeypatch.setattr(mesh_memory, "STATE", small)
    monkeypatch.setattr(mesh_memory, "ACTIVATIONS", small)
    assert mesh_memory.measure(axis, 1) >= 0
