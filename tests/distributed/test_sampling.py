"""The same videos come out of every mesh, each decoded by one rank, or by the ranks of a sequence together."""

import numpy as np

from moviegen.data import video
from tests.distributed import ranks

MESHES = ("data=2", "zero=2", "sp=2")
HALF = ("zero=2/float16", "sp=2/float16")


def test_every_mesh_samples_what_one_rank_does(tmp_path):
    ranks.run("check_sampling.py", 2, tmp_path, str(tmp_path), "data=1", *MESHES, *HALF)
    for index in range(3):
        one = np.load(tmp_path / "data=1-by-0" / f"{index}.npy")
        assert one.shape == (48, 16, 16, 3) and one.std() > 5
        for name in MESHES:
            other = np.load(tmp_path / name / f"{index}.npy")
            assert np.abs(other.astype(int) - one).max() <= 1, f"{name}: sample {index}"
            (shown,) = (tmp_path / name / "previews/step-00000001").glob(f"{index:02d}-*.mp4")
            found, fps = video.read(shown)
            video.write_mp4(tmp_path / "same.mp4", other, fps)  # what is left of noise by compressing it
            same = video.read(tmp_path / "same.mp4")[0].astype(int)
            assert np.abs(found - same).mean() < 1, f"{name}: preview {index}"
        for name in HALF:
            other = np.load(tmp_path / name.replace("/", "-") / f"{index}.npy")
            assert np.abs(other.astype(int) - one).mean() < 1, f"{name}: sample {index}"
    first, second = (np.load(tmp_path / "data=1-by-0" / f"{index}.npy").astype(int) for index in (0, 1))
    assert np.abs(first - second).max() > 20
