import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import common
from moviegen.convert import sd35, seed, tae_names
from moviegen.models.tae import model as tae
from moviegen.nn import backend

GOLDEN = Path(__file__).parents[1] / "golden"
CFG = common.tae("full", base_channels=32)


def numbered():
    """Our parameters, each with a value of its own."""
    rng = np.random.default_rng(0)
    return {path: rng.standard_normal(shape).astype(np.float32) for path, shape in tae.shapes(CFG).items()}


def reference(name):
    entries = (re.fullmatch(r"(\S+) \((.*)\)", str(e)).groups() for e in np.load(GOLDEN / name)["names"])
    return {key: tuple(int(n) for n in shape.split(",") if n.strip()) for key, shape in entries}


def test_the_seed_s_names_and_shapes_and_the_way_back():
    assert json.loads(str(np.load(GOLDEN / "tae.npz")["config"])).get("base_channels", 32) == CFG.base_channels
    params = numbered()
    found = tae_names.export(params, CFG, "seed")
    wanted = {key: shape for key, shape in reference("tae.npz").items() if ".temb_proj." not in key}
    assert {key: value.shape for key, value in found.items()} == wanted
    for path, value in backend.to_numpy(seed.tae(found, CFG)).items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)


def test_diffusers_names_hold_the_image_part():
    params = numbered()
    found = tae_names.export(params, CFG, "diffusers")
    assert {key: value.shape for key, value in found.items()} == reference("sd35_vae.npz")
    for path, value in backend.to_numpy(sd35.tae(found, CFG)).items():
        if "/temporal" not in path:
            np.testing.assert_array_equal(value, params[path], err_msg=path)


def test_our_own_names_stay():
    params = numbered()
    assert tae_names.export(params, CFG, "moviegen").keys() == params.keys()


@pytest.mark.parametrize("naming", ["moviegen", "seed", "diffusers"])
def test_no_two_arrays_share_a_name(naming):
    params = {path: v for path, v in numbered().items() if naming != "diffusers" or "/temporal" not in path}
    assert len(tae_names.export(params, CFG, naming)) == len(params)
