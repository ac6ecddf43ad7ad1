"""Optimizer steps of the autoencoder give the same losses and weights on two ranks at every ZeRO stage."""

import numpy as np
import pytest

from moviegen.storage import checkpoint
from moviegen.storage.writers import read_metrics
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


@pytest.mark.slow
def test_float16_rehearses_bfloat16_s_types_on_every_mesh(tmp_path):
    names = [f"{each}/float16" for each in ("data=1/0", "data=2/0", "zero=2/1", "zero=2/2", "zero=2/3")]
    ranks.run("check_tae_meshes.py", 2, tmp_path, str(tmp_path), "2", *names)
    one, *others = (losses(tmp_path / name.replace("/", "-")) for name in names)
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero=2/3", "zero=2/1", "data=2/0"])
def test_the_discriminator_and_the_outlier_penalty_on_a_mesh(tmp_path, name):
    """Losses alone: the adaptive weight is a quotient of norms, and weights after five steps differ by 4e-4 at most."""
    ranks.run("check_tae_meshes.py", 2, tmp_path, str(tmp_path), "5", "data=1/0/every", f"{name}/every")
    folders = [tmp_path / f"{each}/every".replace("/", "-") for each in ("data=1/0", name)]
    one, other = ([line for line in read_metrics(folder) if "tae/loss" in line] for folder in folders)
    assert "tae/discriminator" in one[-1] and "tae/outlier" in one[-1] and "tae/discriminator" not in one[0]
    for alone, together in zip(one, other, strict=True):
        for key in ("loss", "kl", "outlier", "adversarial", "discriminator", "verdict_real", "verdict_fake"):
            if f"tae/{key}" in alone:
                assert together[f"tae/{key}"] == pytest.approx(alone[f"tae/{key}"], rel=1e-4, abs=1e-5), key
