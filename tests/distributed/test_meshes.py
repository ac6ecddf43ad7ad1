"""Five optimizer steps give the same losses and the same weights on every mesh and at every ZeRO stage.

With exchanges that overlap with computing too, as they do on Ascend ("links"), and with blocks that keep their activations.
"""

import numpy as np
import pytest

from moviegen.storage import checkpoint
from moviegen.storage.writers import read_metrics
from tests.distributed import ranks
from tests.training import logs

TWO = ("data=2/0", "zero=2/1", "zero=2/2/float32/links", "zero=2/3/float32/links/none", "sp=2/3/float32/2")
HALF = ("zero=2/3/float16/links", "sp=2/2/float16/links")
MORE = ("zero=2/2", "zero=2/3", "sp=2/3", "zero=2/1/float32/links", "zero=2/3/float32/links")
MORE_HALF = tuple(f"{mesh}/float16/links" for mesh in ("zero=2/1", "zero=2/2", "sp=2/1", "sp=2/3"))
BUCKETS = tuple(f"{mesh}/float32/buckets" for mesh in ("data=2/0", "zero=2/2", "sp=2/3"))
FOUR = ("zero=2,sp=2/3", "data=2,sp=2/3")


def losses(folder, name):
    keys = "train/video_loss", "train/heldout_loss"
    lines = read_metrics(folder / name.replace("/", "-"))
    return [line[key] for line in lines for key in keys if key in line]


def compare(folder, names, reference="data=1-0", kinds=("video",)):
    one, meta = checkpoint.load(folder / reference / "checkpoints")
    logged = [{key: value for key, value in line.items() if key != "stage"} for line in logs.lines(folder / reference)]
    counts = [sum(f"train/{kind}_loss" in line for line in logged) for kind in kinds]
    assert meta["step"] == 5 and all(counts) and sum(counts) == 5
    assert sum("train/heldout_loss" in line for line in logged) == 1
    by_time = {key for line in logged for key in line if key.startswith("train/loss/t")}
    assert len(by_time) > 5 and all("train/weight_norm" in line for line in logged if "train/norm" in line)
    for name in names:
        other, its_meta = checkpoint.load(folder / name.replace("/", "-") / "checkpoints")
        for key in ("step", "position", "latent_shift", "latent_scale"):
            assert its_meta[key] == meta[key]
        np.testing.assert_allclose(its_meta["plateau"]["best"], meta["plateau"]["best"], atol=1e-5)
        for found, line in zip(logs.lines(folder / name.replace("/", "-")), logged, strict=True):
            assert found.pop("stage") == "train" and found == pytest.approx(line, rel=1e-5, abs=1e-5), name
        assert other.keys() == one.keys()
        for tree, values in one.items():
            assert other[tree].keys() == values.keys()
            for path, value in values.items():
                atol = 1e-5 * max(abs(value).max(), 1e-3)
                np.testing.assert_allclose(
                    other[tree][path], value, rtol=1e-5, atol=atol, err_msg=f"{name} {tree}/{path}"
                )


@pytest.mark.parametrize(
    ("count", "names", "half"),
    [
        pytest.param(2, TWO, HALF),
        pytest.param(2, MORE, MORE_HALF, marks=pytest.mark.slow),
        pytest.param(4, FOUR, (), marks=pytest.mark.slow),
    ],
)
def test_every_mesh_trains_as_one_rank_does(tmp_path, count, names, half):
    """Also with what a card would be given where it computes in bfloat16, in float16, and after a resume: the types fit."""
    long = [f"{name}{until}" for name in half for until in ("@5", "@10")]
    reference = ["data=1/0/float32@10"] if half else []
    ranks.run("check_meshes.py", count, tmp_path, str(tmp_path), "5", "data=1/0", *names, *reference, *long)
    compare(tmp_path, names)
    for name in half:
        found, exact = losses(tmp_path, name), losses(tmp_path, "data=1/0/float32")
        assert len(found) == 12 and found != exact  # ten steps, and a validation after five and after ten
        np.testing.assert_allclose(found, exact, rtol=1e-2, err_msg=name)


@pytest.mark.slow
def test_every_mesh_trains_on_three_buckets_as_one_rank_does(tmp_path):
    """Two of videos and one of images, of 18, 16 and 9 tokens: the same samples, losses, places and weights."""
    ranks.run("check_meshes.py", 2, tmp_path, str(tmp_path), "5", "data=1/0/float32/buckets", *BUCKETS)
    compare(tmp_path, BUCKETS, "data=1-0-float32-buckets", ("video", "image"))
    places = checkpoint.load(tmp_path / "data=1-0-float32-buckets" / "checkpoints")[1]["position"]
    assert places.keys() == {"16x48x48", "16x32x64", "1x48x48"}
    assert all(place["epoch"] + place["index"] for place in places.values())  # each has been drawn from
