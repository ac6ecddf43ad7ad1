"""Which Ascend kernel a primitive gets and what it takes, as the registry of MindSpore's own Ascend plugin says it."""

import functools
import json
from importlib import metadata
from pathlib import Path

from moviegen.errors import ConfigError
from moviegen.nn import ir

LARGEST_CONSTANT = 16_000_000  # bytes; a larger one is in the memory of every graph that has it
ANY = "f32 bf16 f16 i32 i64 bool u8"
# What a kernel is, from the best on; docs/ascend.md explains them.
KINDS = ("aclnn", "hccl", "aclop", "runtime", "graph", "none", "refused", "unknown")
LAUNCHED = ("aclnn", "hccl", "aclop", "none", "refused", "unknown")  # the others are views, or of the compiler alone


@functools.cache
def table() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Kind of kernel by primitive, and by primitive, where known, the dtypes that each input takes ("any": all that we have).

    Raises ConfigError where the installed MindSpore has no table.
    """
    version = metadata.version("mindspore")
    found = {path.stem.rpartition("_")[2]: path for path in Path(__file__).parent.glob("ascend_kernels_*.json")}
    if version not in found:
        raise ConfigError(
            f"MindSpore {version}: moviegen knows the Ascend kernels of {', '.join(sorted(found))} alone; audit with "
            f"that one, or make moviegen/nn/ascend_kernels_{version}.json as docs/ascend.md tells"
        )
    read = json.loads(found[version].read_text(encoding="utf-8"))
    kinds = {op: kind for kind, ops in read["kernels"].items() for op in ops.split()}
    return kinds, {op: inputs.split("; ") for inputs, ops in read["inputs"].items() for op in ops.split()}


def kernel(op: str) -> str:
    """The kind of kernel of a primitive, one of KINDS."""
    return table()[0].get(op, "unknown")


def complaint(node: ir.Node) -> str:
    """What is wrong with a node on Ascend, else nothing."""
    kind = kernel(node.op)
    if kind in ("unknown", "none", "refused"):
        why = {"unknown": "no primitive that the registry knows", "none": "no kernel, so the CPU's, with copies"}
        return why.get(kind, "the compiler refuses it")
    for i, (taken, given) in enumerate(zip(table()[1].get(node.op, []), node.inputs, strict=False)):
        wrong = [t.dtype for t in given if t.dtype not in (ANY if taken == "any" else taken).split()]
        if wrong:
            return f"input {i} is {wrong[0]}, the kernel takes {taken or 'none that we have'}"
    large = [t for t in node.constants if t.size > LARGEST_CONSTANT]
    return f"a constant of {large[0].size / 1e6:.0f} MB, {large[0].dtype} {large[0].shape}" if large else ""
