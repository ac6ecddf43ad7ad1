"""A process in which graphs are compiled as Ascend would be given them, and nothing that is compiled runs.

MindSpore parses, differentiates and optimizes a graph on any machine, also one whose kernels only a card has, and prints what
it then has in its pass "validate". So a model's step goes through on zeros that take no memory, whatever its size.

MS_DEV_SAVE_GRAPHS=1, MS_DEV_SAVE_GRAPHS_PATH and MS_DEV_DUMP_IR_PASSES=validate must be in the environment before MindSpore
is imported.
"""

import inspect
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore.ops.operations import comm_ops

from moviegen.nn import backend, ir, kernels
from moviegen.nn.dtypes import numpy_dtype

_LARGE = 1 << 26  # bytes from which arithmetic between graphs is not done either


class Refused(Exception):
    """A graph that does not compile, so that nobody knows what it gives."""


def zeros(dtype: str, shape: tuple[int, ...]) -> ms.Tensor:
    """Zeros that nobody has written and that take no memory."""
    return ms.Tensor.from_numpy(np.zeros(shape, numpy_dtype(dtype)))


def start(folder: Path, note: Callable[[ir.Graph], None]) -> None:
    """From here on this process compiles alone, with Ascend's forms; there is no way back.

    Every call of a compiled function passes `note(its graph)` and returns zeros in the shapes of the
    function's results. `folder` is where MindSpore saves them. Raises Refused where a graph does not compile.
    """
    backend.device()  # which runs a graph
    os.environ["MS_DEV_PRECOMPILE_ONLY"] = "1"  # a call of a compiled function ends before kernels are asked for
    kernels.ON_ASCEND = True
    backend.check_compute_dtype = lambda dtype, *key: dtype  # the CPU's lack of products in bfloat16 is no matter here
    # The ranks of a group need not exist: a primitive asks for its size alone, which the name says (`group_name`).
    comm_ops.get_group_size = lambda group: int(group.rpartition(" ")[2])
    comm_ops.get_rank = lambda group: comm_ops.get_group_size(group) - 1
    compiled = ms.jit

    def jit(fn: Callable, *args: Any, **options: Any) -> Callable:
        return _compile_only(fn, compiled(fn, *args, **options), folder, note)

    ms.jit = jit
    for name in ("__add__", "__mul__"):
        setattr(ms.Tensor, name, _unless_large(getattr(ms.Tensor, name)))


def group_name(of: str, size: int) -> str:
    """The name of a group of ranks that need not exist."""
    return f"{of} of {size}"


def _compile_only(fn: Callable, compiled: Callable, folder: Path, note: Callable) -> Callable:
    graphs: dict[Any, ir.Graph] = {}

    def call(*args: Any) -> Any:
        key = tuple((str(x.dtype), tuple(x.shape)) if isinstance(x, ms.Tensor) else x for x in args)
        if key not in graphs:
            graphs[key] = _compile(fn, compiled, args, folder)
        note(graphs[key])
        if graphs[key].refused:
            raise Refused
        return _zeros_like(graphs[key].nodes[-1].taken[0])

    return call


def _compile(fn: Callable, compiled: Callable, args: tuple, folder: Path) -> ir.Graph:
    for old in folder.rglob("*.ir"):
        old.unlink()
    begun, why = time.monotonic(), ""
    try:
        compiled(*args)
    except Exception as error:  # MindSpore raises whatever a model's mistake leads to
        why = told(error)
    seconds = time.monotonic() - begun
    saved = sorted(folder.rglob("*_validate_*.ir"))
    if not saved and not why:
        why = "MindSpore saved no graph"
    nodes = [] if why else ir.read(saved[-1].read_text(encoding="utf-8"))
    return ir.Graph(_name(fn), nodes, seconds, why)


def _name(fn: Callable) -> str:
    """Which function of a model was compiled, and whether to be run or for its gradient."""
    way = {"flat": "", "pull": ", pull"}.get(fn.__name__, ", value and gradient")
    while fn.__module__ == "moviegen.nn.layerwise" or fn.__module__.startswith("mindspore"):
        inner = [each for each in inspect.getclosurevars(fn).nonlocals.values() if inspect.isfunction(each)]
        if not inner:
            break
        fn = inner[0]
    if not fn.__module__.startswith("moviegen.models"):
        way = ""
    return f"{fn.__module__.removeprefix('moviegen.').replace('.', '/')}.py {fn.__name__.lstrip('_')}{way}"


def told(error: Exception) -> str:
    """The first lines of MindSpore's message, and the innermost line of ours."""
    text = str(error) or type(error).__name__
    lines = re.findall(r"In file .*/moviegen/((?:\w+/)*\w+\.py:\d+)", text)
    words = " ".join(text.partition("\n\n")[0].split())
    return f"{words[:300]}{f' ({lines[-1]})' if lines else ''}"


def _zeros_like(value: Any) -> Any:
    if isinstance(value, ir.Tensor):
        return zeros(ir.NAMES[value.dtype], value.shape)
    return None if value is None else tuple(map(_zeros_like, value))


def _unless_large(operator: Callable) -> Callable:
    """An operator of eager tensors that takes no time and memory where the result is large: it is of zeros anyway."""

    def of_zeros(self: ms.Tensor, other: Any) -> ms.Tensor:
        if self.nbytes < _LARGE or isinstance(other, ms.Tensor) and other.shape not in ((), self.shape):
            return operator(self, other)
        return self

    return of_zeros


def by_path(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] = {}) -> dict[str, ms.Tensor]:
    """Zeros for every parameter, float32 where `dtypes` does not name another."""
    return {path: zeros(dtypes.get(path, "float32"), tuple(shape)) for path, shape in shapes.items()}
