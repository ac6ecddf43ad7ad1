"""Optimizer steps of the autoencoder give the same losses and weights on two ranks at every ZeRO stage."""

import numpy as np
import pytest

from moviegen import checkpoint
from moviegen.writers import read_metrics
from tests.distributed import ranks


def losses(folder):
    return [line["tae/loss"] for line in read_metrics(folder) if "tae/loss" in line]


@pytest.mark.parametrize(
    ("steps", "meshes"),
    [
        (2, ("data=2/0", "zero=2/3")),
        pytest.param(5, ("data=2/0", "zero=2/1", "zero=2/2", "zero=2/3"), marks=pytest.mark.slow),
    ],
)
def test_every_mesh_trains_the_autoencoder_as_one_rank_does(tmp_path, steps, meshes):
    ranks.run("check_tae_meshes.py", 2, tmp_path, str(tmp_path), str(steps), "data=1/0", *meshes)
    one, _ = checkpoint.load(tmp_path / "data=1-0" / "checkpoints")
    assert len(losses(tmp_path / "data=1-0")) == steps
    for name in meshes:
        folder = tmp_path / name.replace("/", "-")
        np.testing.assert_allclose(losses(folder), losses(tmp_path / "data=1-0"), rtol=1e-5, err_msg=name)
        other, _ = checkpoint.load(folder / "checkpoints")
        for tree, values in one.items():
            assert other[tree].keys() == values.keys()
            for path, value in values.items():
                # Biases before a norm move by rounding errors alone.
                atol = 1e-5 * max(abs(value).max(), 0.1)
                np.testing.assert_allclose(
                    other[tree][path], value, rtol=1e-5, atol=atol, err_msg=f"{name} {tree}/{path}"
                )
