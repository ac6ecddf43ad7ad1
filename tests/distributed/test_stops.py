"""What one of two ranks sees, a gradient that is not finite or a signal, both do alike: replicas, and shards of one state."""

import numpy as np

from moviegen.storage import checkpoint
from tests.distributed import ranks


def test_ranks_skip_the_same_step_and_stop_after_the_same(tmp_path):
    ranks.run("check_stops.py", 2, tmp_path, str(tmp_path))
    ends = ["stub: the inputs of step 2 cannot be made on another rank, which says why", "b.mp4: damaged"]
    assert checkpoint.latest(tmp_path / "torn" / "checkpoints") == 2
    for rank in (0, 1):
        said = (tmp_path / "ranks" / f"worker_{rank}.log").read_text()
        assert f"ends: {ends[rank]}\n" in said
        assert said.count("stub: skipped step 2 (norm inf), samples 2a.mp4, 2b.mp4") == (2 if rank == 0 else 0)
    (data, data_meta), (zero, zero_meta) = (
        checkpoint.load(tmp_path / axis / "checkpoints") for axis in ("data", "zero")
    )
    assert data_meta == zero_meta and data_meta["step"] == 5 and data_meta["skipped_steps"] == 1
    for tree in ("params", "ema", "opt/m", "opt/v"):
        assert np.isfinite(data[tree]["w"]).all()
        np.testing.assert_allclose(zero[tree]["w"], data[tree]["w"], rtol=1e-6)
