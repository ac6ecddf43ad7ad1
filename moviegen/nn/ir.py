"""A compiled graph as MindSpore prints it: every primitive with the tensors that it takes and gives, and what that costs."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from moviegen.nn.dtypes import numpy_dtype

# MindSpore's names of dtypes in small letters, by short ones.
NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "f64": "float64", "bool": "bool"}
NAMES |= {f"{kind[0]}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_SHORT = {name: short for short, name in NAMES.items()}
_NODE = re.compile(
    r"^  (?:%\d+\(\S+\) = )?(\w\S*?)\((?:.*?)\n      : \(([^\n]*)\)$((?:\n      #[^\n]*)*)", re.MULTILINE | re.DOTALL
)
_PREFIX = re.compile(r"^(PrimFunc_|DoSignaturePrimitive::S-Prim-)")
_LINE = re.compile(r"# In file .*/moviegen/((?:\w+/)*\w+\.py):(\d+)")
_CONVOLUTIONS = re.compile(r"Conv(olution|[123]D)")


class Tensor(NamedTuple):
    """dtype as in `NAMES`, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return numpy_dtype(NAMES[self.dtype]).itemsize * math.prod(self.shape)


class Node(NamedTuple):
    """A call of a primitive.

    Args:
        op: its name.
        inputs: the tensors of each argument, several where that is a tuple; none where it is a number.
        outputs: the tensors of its result.
        constants: those of its arguments that are values folded into the graph.
        where: the innermost line of ours that it comes from, "nn/layers.py:40"; "" where there is none.
        taken: the arguments with their structure, a Tensor, a tuple of such, or None for what is no tensor.
    """

    op: str
    inputs: tuple[tuple[Tensor, ...], ...]
    outputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    where: str
    taken: tuple[Any, ...]


class Graph(NamedTuple):
    """A compiled function.

    Args:
        name: what it is a graph of, and whether to be run or for its gradient.
        nodes: its calls of primitives, in order; none where it does not compile.
        seconds: that compiling it took.
        refused: why it does not compile.
    """

    name: str
    nodes: list[Node]
    seconds: float
    refused: str = ""


def read(text: str) -> list[Node]:
    """The nodes of a saved graph in order; the last one, Return, takes the results. ValueError where one was not read."""
    nodes = []
    for op, types, comments in _NODE.findall(text):
        taken, given = (re.findall(r"<(.*?)>(?=, <|$)", part) for part in (types + ") -> (").split(") -> (")[:2])
        arguments = tuple(map(_value, taken))
        constants = [t for value, x in zip(arguments, taken, strict=True) if ", value=" in x for t in leaves(value)]
        lines = _LINE.findall(comments)
        nodes.append(
            Node(
                _PREFIX.sub("", op),
                tuple(tuple(leaves(value)) for value in arguments),
                tuple(t for x in given for t in leaves(_value(x))),
                tuple(constants),
                ":".join(lines[-1]) if lines else "",
                arguments,
            )
        )
    told = sum(map(int, re.findall(r"^Total number of cnodes: (\d+)", text, re.MULTILINE)))
    if len(nodes) != told:
        raise ValueError(f"{len(nodes)} of {told} nodes were read")
    return nodes


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors of a Tensor, a tuple of such, or None."""
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        for each in value:
            yield from leaves(each)


def _value(text: str) -> Any:
    """What a type such as `Tuple[Tensor[Float32]*2], TupleShape((2, 3), (4))` describes."""
    kinds, _, shapes = text.partition(", ")
    names = (name for name, n in re.findall(r"Tensor\[(\w+)\](?:\*(\d+))?", kinds) for _ in range(int(n or 1)))
    tokens = iter(re.findall(r"(?:Tuple|List)Shape\(|NoShape|\(|\)|\d+", shapes.partition(", value=")[0]))

    def parse(token: str) -> Any:
        if token == "NoShape":
            return None
        found = []
        while (following := next(tokens)) != ")":
            found.append(int(following) if token == "(" else parse(following))
        return Tensor(_SHORT[next(names).lower()], tuple(found)) if token == "(" else tuple(found)

    first = next(tokens, "NoShape")
    return parse(first)


def cost(node: Node) -> tuple[int, int]:
    """FLOP of a product of matrices, an attention or a convolution (0 of all else), and the bytes read and written."""
    found = [t for given in node.inputs for t in given] + list(node.outputs)
    moved = sum(t.size for t in found)
    shapes = [t.shape for t in found]
    back = node.op.endswith("Grad")
    if re.fullmatch("(Batch)?MatMul(Ext)?", node.op):  # (... m k) or (... k m), and (... m n): k is what is left
        a, out = shapes[0], shapes[-1]
        return 2 * math.prod(out) * (math.prod(a[-2:]) // out[-2]), moved
    if node.op.startswith("FlashAttentionScore"):  # q (b h n d), k (b h m d): 2 products, on the way back 5
        return (10 if back else 4) * math.prod(shapes[0]) * shapes[1][2], moved
    if _CONVOLUTIONS.match(node.op):
        # Of the output or its gradient, the input or its, and the weights or theirs, in whatever order: the weights are
        # moved over the smaller of the two pictures, transposed or not.
        x, y, w = (shapes[0], shapes[1], shapes[2]) if back else _convolved(node.op, shapes)
        spread = min(math.prod(x[2:]), math.prod(y[2:]))
        return (4 if back else 2) * x[0] * spread * math.prod(w), moved
    return 0, moved


def _convolved(op: str, shapes: list[tuple[int, ...]]) -> tuple:
    """Shapes of the two pictures and of the weights of a convolution that is no gradient of both."""
    return (shapes[0], shapes[1], shapes[-1]) if op.endswith("Filter") else (shapes[0], shapes[-1], shapes[1])
