"""Run by itself: compiles stages in their forms for Ascend and prints what primitives MindSpore would give a card.

It saves each graph in its pass "validate", before the CPU refuses kernels that it lacks. Ranks need not exist.
"""

import functools
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

FOLDER = Path(sys.argv[1])
os.environ |= dict(MS_DEV_SAVE_GRAPHS="1", MS_DEV_SAVE_GRAPHS_PATH=str(FOLDER), MS_DEV_DUMP_IR_PASSES="validate")
os.chdir(FOLDER)  # where a graph does not run, MindSpore leaves a file in the current folder

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore.ops.operations import comm_ops  # noqa: E402

from moviegen.models.transformer import model, stages  # noqa: E402
from moviegen.models.transformer.shapes import SequenceShard, encoders, parameter_dtypes, shapes  # noqa: E402
from moviegen.nn import backend, kernels, layerwise, tree  # noqa: E402
from moviegen.parallel.comm import Comm  # noqa: E402
from moviegen.parallel.mesh import ALONE, Group  # noqa: E402
from tests.models.transformer.tiny_transformer import config  # noqa: E402

NOT_LAUNCHED = {"MakeTuple", "TupleGetItem", "Return", "Depend", "UpdateState", "Load", "Reshape", "ExpandDims"}


def zeros(shape, dtype=ms.float32):
    return ms.ops.zeros(shape, dtype)


def read(compiled, *given):
    """[primitives and how often each is there, numbers in the largest constant] of what `compiled` makes a graph of."""
    for old in FOLDER.rglob("*.ir"):
        old.unlink()
    try:
        compiled(*given)
    except Exception as error:  # the CPU has no such kernel
        print(str(error).split("\n")[0], file=sys.stderr)
    text = next(FOLDER.rglob("*_validate_*.ir")).read_text()
    # A node is its text, over several lines where constants are printed, and its types.
    nodes = re.findall(r"^  (?:%\d+\(\S+\) = )?(\w\S*?)\(.*?\n      : \(([^\n]*)\)$", text, re.M | re.S)
    assert len(nodes) == sum(map(int, re.findall(r"number of cnodes: (\d+)", text)))
    names = [re.sub("^(PrimFunc_|DoSignaturePrimitive::S-Prim-)", "", name) for name, _ in nodes]
    constants = [shape for _, types in nodes for shape in re.findall(r"\(([\d, ]+)\), value=", types)]
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n.strip()])) for shape in constants]
    return Counter(name for name in names if name not in NOT_LAUNCHED), max(sizes, default=0)


def main():
    kernels.ON_ASCEND = True
    backend.check_compute_dtype = lambda dtype: dtype
    comm_ops.get_group_size, comm_ops.get_rank = (lambda group, i=i: int(group.split()[i]) for i in (3, 1))
    cfg, found = config(compute_dtype="bfloat16", num_heads=4), {}
    kinds = parameter_dtypes(cfg)
    params = {path: zeros(shape, getattr(ms, kinds[path])) for path, shape in shapes(cfg).items()}
    outer = {path: x for path, x in params.items() if not path.startswith(("blocks/", "final/"))}
    of_latents, of_text = model.split(outer)
    d, m, loss_and_grads = cfg.hidden_size, 64, functools.partial(layerwise.value_and_grad, aux=True)
    for name, group, grid in (("one rank", ALONE, (2, 2, 3)), ("sp=4, padded", Group("rank 3 of 4", 4, 3), (2, 3, 3))):
        context_of, _ = stages.build_text(cfg, True)
        stage = stages.build(cfg, (1, cfg.latent_channels, grid[0], 2 * grid[1], 2 * grid[2]), True, Comm(group))
        n = SequenceShard(grid, group).tokens
        latents, time = zeros((1, cfg.latent_channels, grid[0], 2 * grid[1], 2 * grid[2])), zeros((1, d))
        text = [zeros((1, m, cfg.text_dims[name])) for name in encoders(cfg)]
        start, packed = [latents, zeros((1,))], [*text, zeros((1, m, 1)), zeros((1, m), ms.int32)]
        x = [zeros((1, n, d)), zeros((1, n, d)), zeros((1, 6 * d)), zeros((1, m, d)), zeros((1, m, 1))]
        begun = [x[0], x[1], time, x[2]]
        final, block = tree.sub(params, "final"), tree.sub(params, "blocks/0")
        found |= {
            f"{name}: start": read(layerwise.run, stage.start, of_latents, *start),
            f"{name}: start, back": read(layerwise.pull, stage.start, of_latents, start, begun, 0),
            f"{name}: context": read(layerwise.run, context_of, of_text, *packed),
            f"{name}: context, back": read(layerwise.pull, context_of, of_text, packed, x[3:4], 0),
            f"{name}: block": read(layerwise.run, stage.block, block, *x),
            f"{name}: block, back": read(layerwise.pull, stage.block, block, x, x[:1], 4),
            f"{name}: loss": read(loss_and_grads, stage.loss, final, x[0], time, latents),
            f"{name}: epilogue": read(layerwise.run, stage.epilogue, final, x[0], time),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
