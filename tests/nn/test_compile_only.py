"""Each in a process of its own, since there is no way back."""

import json
import os
import subprocess
import sys

SCRIPT = """
import json, os, sys
from pathlib import Path

from moviegen.nn import ascend, compile_only, ir, kernels
import mindspore as ms
import numpy as np
from mindspore import ops
from moviegen.nn import layers, layerwise
from moviegen.parallel import collectives
from moviegen.parallel.mesh import Group

graphs, zeros = [], compile_only.zeros
compile_only.start(Path(sys.argv[1]), graphs.append)
table = ms.Tensor(np.arange(8_000_000, dtype=np.float32)[:, None])  # ones would be folded away

def norm(p, x):
    return layers.rms_norm(x, p["scale"], 1e-5)

def two(p, x):
    return ops.sum(x * x), x

def wrong(p, x):
    return ops.matmul(x, ops.cast(x, ms.bfloat16))

def large(p, x):
    return x[:, :1] * table + x[:, 1:]

def exchanged(p, x):
    return collectives.all_to_all(Group(compile_only.group_name("sequence", 4), 4, 3), 1, 2)(x)

found = {}
params, x = {"scale": zeros("float32", (16,))}, zeros("float32", (4, 16))
found["norm"] = layerwise.run(norm, params, x).shape
layerwise.run(norm, params, x)
dparams, (dx,) = layerwise.pull(norm, params, (x,), (x,))
found["pull"] = dparams["scale"].shape, dx.shape
(value, same), _, (slope,) = layerwise.value_and_grad(two, {}, x, wrt=1, aux=True)
found["value"] = value.shape, same.shape, slope.shape
found["exchanged"] = layerwise.run(exchanged, {}, zeros("bfloat16", (1, 8, 6, 2))).shape
layerwise.run(large, {}, zeros("float32", (8_000_000, 2)))
# Of 2 GB, which nothing has to be computed or kept for.
vast = layerwise.run(norm, {"scale": zeros("float32", (25,))}, zeros("float32", (20_000_000, 25)))
found["vast"] = (vast + vast).shape
try:
    layerwise.run(wrong, {}, zeros("float32", (4, 4)))
except compile_only.Refused:
    found["refused"] = True
found["names"] = [graph.name.rpartition("/")[2] for graph in graphs]
found["why"] = graphs[-1].refused
found["kernels"] = [[f"{node.op} {ascend.kernel(node.op)}" for node in graph.nodes] for graph in graphs]
found["complaints"] = [ascend.complaint(node) for graph in graphs for node in graph.nodes if ascend.complaint(node)]
print(json.dumps(found))
"""


def test_graphs_are_compiled_in_ascends_forms_and_nothing_runs(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    saved = tmp_path / "saved"
    saved.mkdir()
    env = os.environ | {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_DUMP_IR_PASSES": "validate", "GLOG_v": "4"}
    env |= {"MS_DEV_SAVE_GRAPHS_PATH": str(saved), "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", saved], capture_output=True, text=True, env=env, cwd=saved
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["norm"] == [4, 16] and found["pull"] == [[16], [4, 16]]
    assert found["value"] == [[], [4, 16], [4, 16]]
    assert found["exchanged"] == [1, 2, 24, 2] and found["vast"] == [20_000_000, 25]
    assert found["refused"] and "input type must be same" in found["why"]
    assert "RmsNorm aclnn" in found["kernels"][0] and "RmsNormGrad aclnn" in found["kernels"][2]
    assert found["kernels"][0] == found["kernels"][1]
    assert found["names"][0].endswith("norm") and "AlltoAll hccl" in found["kernels"][4]
    assert found["complaints"] == ["a constant of 32 MB, f32 (8000000, 1)"]
