"""The transformer's learned positions, factorised over time, height and width: one table for each axis."""

import functools
from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.models.transformer.shapes import AXES
from moviegen.nn import backend
from moviegen.nn.positions import resize_table


def interpolate_positions(params: Mapping[str, Any], cfg: Any) -> dict[str, ms.Tensor]:
    """The same parameters with position tables of cfg.position_lengths, for a next stage of larger clips."""
    grown = backend.to_tensors(params)
    for axis, length in zip(AXES, cfg.position_lengths, strict=True):
        path = f"position/{axis}"
        if grown[path].shape[0] != length:
            grown[path] = backend.tensor(resize_table(grown[path].asnumpy(), length))
    return grown


@functools.lru_cache
def make_positions(shard, lengths):
    """positions(p): learned position of each of this rank's tokens, (1 m d), the sum of a row of each axis's table."""
    nt, nh, nw = shard.grid
    index, alone = shard.indices(), shard.group.size == 1
    rows = []
    for at, length in zip((index // (nh * nw), index // nw % nh, index % nw), lengths, strict=True):
        rows.append(
            ms.Tensor(((at[:, None] == np.arange(length)) & (index < shard.patches)[:, None]).astype(np.float32))
        )

    def positions(p):
        if alone:
            t = ops.expand_dims(ops.expand_dims(p["position/t"][:nt], 1), 1)
            h = ops.expand_dims(p["position/h"][:nh], 1)
            return ops.reshape(t + (h + p["position/w"][:nw]), (1, nt * nh * nw, -1))
        # Rows are picked by products with zeros and ones: the positions of all tokens never exist at once.
        found = ops.matmul(rows[0], p["position/t"]) + ops.matmul(rows[1], p["position/h"])
        return ops.expand_dims(found + ops.matmul(rows[2], p["position/w"]), 0)

    return positions
