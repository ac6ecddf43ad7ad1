from importlib import metadata

import pytest

from moviegen.errors import ConfigError
from moviegen.nn import ascend, ir
from moviegen.nn.ir import Tensor


def node(op, *dtypes, constants=()):
    inputs = tuple((Tensor(dtype, (2, 2)),) for dtype in dtypes)
    return ir.Node(op, inputs, (Tensor("f32", (2, 2)),), constants, "", ())


@pytest.mark.parametrize(
    ("op", "dtypes", "wrong"),
    [
        ("RmsNorm", ("f32", "f32"), ""),
        ("RmsNorm", ("f64", "f32"), "input 0 is f64, the kernel takes f32 bf16 f16"),
        ("FlashAttentionScore", ("bf16", "bf16", "f32"), "input 2 is f32, the kernel takes bf16 f16"),
        ("MaxPool", ("f32",), ""),
        ("MaxPool", ("bf16",), "input 0 is bf16, the kernel takes f32 f16 i32 i64 u8"),
        ("StridedSlice", ("u8",), ""),  # its list is "any"
        ("Reshape", ("bool",), ""),
        ("AdamWeightDecay", ("f32",), "no kernel, so the CPU's, with copies"),
        ("Any", ("f32",), "the compiler refuses it"),
        ("Adder", ("f32",), "no primitive that the registry knows"),
    ],
)
def test_what_a_kernel_does_not_take(op, dtypes, wrong):
    assert ascend.complaint(node(op, *dtypes)) == wrong


def test_a_large_constant():
    rows = 4_000_000  # 16 MB are allowed
    assert not ascend.complaint(node("Mul", "f32", constants=(Tensor("f32", (rows, 1)),)))
    wrong = ascend.complaint(node("Mul", "f32", constants=(Tensor("f32", (rows + 1, 1)),)))
    assert wrong == "a constant of 16 MB, f32 (4000001, 1)"


def test_the_table():
    kinds, inputs = ascend.table()
    assert len(kinds) == 1320 and set(kinds.values()) | {"unknown"} == set(ascend.KINDS)
    assert inputs.keys() <= kinds.keys() and len(inputs) == 462
    assert kinds["RmsNorm"] == "aclnn" and inputs["RmsNorm"] == ["f32 bf16 f16"] * 2


def test_a_mindspore_without_a_table(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda package: "2.11.0")
    ascend.table.cache_clear()
    with pytest.raises(ConfigError, match=r"MindSpore 2.11.0: .* kernels of 2.10.0 alone.*ascend_kernels_2.11.0.json"):
        ascend.table()
    ascend.table.cache_clear()
