"""LPIPS weights out of the public torch files: torchvision's VGG16 and the channel weights of the lpips package."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moviegen.models import lpips
from moviegen.nn import backend
from moviegen.nn.tree import match

CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of torchvision's vgg16().features


def vgg(vgg_arrays: Mapping[str, np.ndarray], head_arrays: Mapping[str, np.ndarray]) -> dict:
    """Returns the parameters of `models.lpips` from the arrays of VGG16 and of the heads.

    Names are `features.0.weight` ... and `lin0.model.1.weight` ... VGG16's classifier is ignored. ConfigError as of `match`.
    """
    found: dict[str, Any] = {}
    unknown = []
    for name, value in vgg_arrays.items():
        layer = re.fullmatch(r"features\.(\d+)\.(weight|bias)", name)
        if layer and int(layer[1]) in CONVS:
            found[f"conv/{CONVS.index(int(layer[1]))}/{layer[2][0]}"] = np.asarray(value, np.float32)
        elif not name.startswith("classifier."):
            unknown.append(name)
    for name, value in head_arrays.items():
        layer = re.fullmatch(r"lin(\d)(?:\.|__)model(?:\.|__)1(?:\.|__)weight", name)
        if layer:
            found[f"head/{layer[1]}"] = np.asarray(value, np.float32).reshape(-1)
        else:
            unknown.append(name)
    match(found, unknown, lpips.shapes(), "; expected torchvision's vgg16 and the `vgg` heads of lpips 0.1")
    return backend.to_tensors(found)
