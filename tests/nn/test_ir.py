import pytest

from moviegen.nn import ir
from moviegen.nn.ir import Tensor

# As MindSpore 2.10 writes it in its pass "validate".
GRAPH = """
# Total params: 2
%para1_args0: <Tensor[Float32], (2, 3)> : [2, 3]

Node counting information:
Total number of nodes: 12
Total number of cnodes: 4

subgraph @257_6_flat_143() {
  %0(CNode_56) = PrimFunc_Mul(%para1_args0, Tensor(shape=[2, 1], dtype=Float32, value=
[[ 1.00000000e+00]
 [ 1.00000000e+00]])) cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Float32], (2, 3)>, <Tensor[Float32], (2, 1), value=...>) -> (<Tensor[Float32], (2, 3)>)
      # Fullname with scope: (Default/Mul-op0)
      # In file /a/moviegen/moviegen/nn/layerwise.py:28~29, 4~57/    def flat(*args):/
      # In file /a/moviegen/moviegen/nn/layers.py:80, 11~63/    return _bmm(ops.ones((row.shape[0], n, 1)), row)/
      # In file /a/site-packages/mindspore/ops/auto_generate/gen_ops_def.py:282~328/def mul(x, y):/
  %1(CNode_57) = PrimFunc_SplitWithSize(%0, (I64(1), I64(2)), I64(1)) cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Float32], (2, 3)>, <Tuple[Int64*2], TupleShape(NoShape, NoShape), elements_use_flags={[const vector]{1, 1}}>, <Int64, NoShape>) -> (<Tuple[Tensor[BFloat16]*2], TupleShape((2, 1), (2, 2))>)
      # Fullname with scope: (Default/SplitWithSize-op0)
  %2(CNode_58) = MakeTuple(%0, %1) cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Float32], (2, 3)>, <List[Tensor[BFloat16]*2], ListShape((2, 1), (2, 2)), elements_use_flags={[const vector]{1, 1}}>) -> (<Tuple[Tensor[Float32],Tuple[Tensor[BFloat16]*2]], TupleShape((2, 3), TupleShape((2, 1), (2, 2)))>)
  Return(%2) cnode_attrs: {checkpoint: Bool(1)}
      : (<Tuple[Tensor[Float32],Tuple[Tensor[BFloat16]*2]], TupleShape((2, 3), TupleShape((2, 1), (2, 2))), elements_use_flags={[const vector]{[0]:{1}, [1]:{1}}}>)
}
"""  # noqa: E501


def test_a_graph_is_read():
    mul, split, pair, end = ir.read(GRAPH)
    halves = Tensor("bf16", (2, 1)), Tensor("bf16", (2, 2))
    whole, column = Tensor("f32", (2, 3)), Tensor("f32", (2, 1))
    assert (mul.op, mul.inputs, mul.outputs, mul.constants) == ("Mul", ((whole,), (column,)), (whole,), (column,))
    assert mul.where == "nn/layers.py:80" and split.where == ""
    assert (split.op, split.inputs, split.outputs) == ("SplitWithSize", ((whole,), (), ()), halves)
    assert pair.inputs == ((whole,), halves)
    assert end.op == "Return" and end.taken == ((whole, halves),)


def test_a_node_that_is_not_read_does_not_go_unseen():
    with pytest.raises(ValueError, match="3 of 4 nodes"):
        ir.read(GRAPH.replace("MakeTuple(", "Make Tuple("))


def node(op, inputs, outputs, dtype="f32"):
    """A node of tensors of these shapes."""
    inputs, outputs = ([Tensor(dtype, shape) for shape in shapes] for shapes in (inputs, outputs))
    return ir.Node(op, tuple((t,) for t in inputs), tuple(outputs), (), "", ())


def test_bytes_are_those_read_and_written():
    assert ir.cost(node("Add", [(4, 5), (5,)], [(4, 5)])) == (0, 180)
    assert ir.cost(node("Add", [(4, 5), (5,)], [(4, 5)], "bf16")) == (0, 90)


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "flop"),
    [
        ("MatMul", [(2, 3), (3, 5)], [(2, 5)], 2 * 2 * 3 * 5),
        ("MatMul", [(2, 3), (5, 3)], [(2, 5)], 2 * 2 * 3 * 5),  # transposed
        ("MatMul", [(3, 2), (3, 5)], [(2, 5)], 2 * 2 * 3 * 5),
        ("BatchMatMul", [(7, 2, 3), (7, 3, 5)], [(7, 2, 5)], 7 * 2 * 2 * 3 * 5),
        ("MatMulExt", [(7, 2, 3), (3, 5)], [(7, 2, 5)], 7 * 2 * 2 * 3 * 5),
        ("FlashAttentionScore", [(1, 2, 6, 4), (1, 2, 9, 4)], [(1, 2, 6, 4)], 2 * 2 * 2 * 6 * 9 * 4),
        ("FlashAttentionScoreGrad", [(1, 2, 6, 4), (1, 2, 9, 4)], [(1, 2, 6, 4)], 5 * 2 * 2 * 6 * 9 * 4),
        ("Conv2D", [(2, 3, 8, 8), (5, 3, 3, 3)], [(2, 5, 8, 8)], 2 * 2 * 64 * 5 * 3 * 9),
        ("Conv2D", [(2, 3, 8, 8), (5, 3, 3, 3)], [(2, 5, 4, 4)], 2 * 2 * 16 * 5 * 3 * 9),  # stride 2
        ("Conv2DBackpropInput", [(2, 5, 4, 4), (5, 3, 3, 3)], [(2, 3, 8, 8)], 2 * 2 * 16 * 5 * 3 * 9),
        ("Conv2DBackpropFilter", [(2, 5, 4, 4), (2, 3, 8, 8)], [(5, 3, 3, 3)], 2 * 2 * 16 * 5 * 3 * 9),
        ("Conv2DTranspose", [(2, 5, 4, 4), (5, 3, 3, 3)], [(2, 3, 8, 8)], 2 * 2 * 16 * 5 * 3 * 9),
        ("Conv3DExt", [(2, 3, 4, 8, 8), (5, 3, 1, 3, 3)], [(2, 5, 4, 8, 8)], 2 * 2 * 256 * 5 * 3 * 9),
        (
            "ConvolutionGrad",
            [(2, 5, 4, 4), (2, 3, 8, 8), (5, 3, 3, 3)],
            [(2, 3, 8, 8), (5, 3, 3, 3), (5,)],
            2 * 2 * 2 * 16 * 5 * 3 * 9,
        ),
    ],
)
def test_flop_follow_from_shapes(op, inputs, outputs, flop):
    assert ir.cost(node(op, inputs, outputs))[0] == flop
