import numpy as np
import pytest

from moviegen.convert import lpips as convert
from moviegen.errors import ConfigError
from moviegen.models import lpips


def arrays():
    vgg, heads = {}, {}
    for path, shape in lpips.shapes().items():
        kind, i, *leaf = path.split("/")
        value = np.broadcast_to(np.float32(int(i) + 1), shape)
        if kind == "head":
            heads[f"lin{i}.model.1.weight"] = value.reshape(1, -1, 1, 1)
        else:
            vgg[f"features.{convert.CONVS[int(i)]}.{'weight' if leaf == ['w'] else 'bias'}"] = value
    return vgg, heads


def test_every_array_has_its_place_and_the_classifier_none():
    vgg, heads = arrays()
    params = convert.vgg(vgg | {"classifier.6.bias": np.zeros(1000)}, heads)
    assert {path: value.shape for path, value in params.items()} == lpips.shapes()
    for path, value in params.items():
        assert (value.asnumpy() == int(path.split("/")[1]) + 1).all()


def test_files_of_another_network_are_refused_by_name():
    vgg, heads = arrays()
    vgg["features.3.weight"] = vgg.pop("features.2.weight")
    heads["lin4.model.1.weight"] = np.zeros((1, 10, 1, 1))
    with pytest.raises(
        ConfigError, match=r"missing: conv/1/w; extra: features.3.weight; wrong shape: head/4 is \(10,\)"
    ):
        convert.vgg(vgg, heads)
