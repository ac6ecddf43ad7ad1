"""What a card would be asked to run: kernels of the library, few of them, and no large constants."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Primitives that the graph engine compiles on the spot, for each shape. AddN sums the gradients of what is used twice.
ON_THE_SPOT = (
    {
        "AddN",
        "BiasAdd",
        "BiasAddGrad",
        "Gather",
        "LayerNorm",
        "LayerNormGrad",
        "Pack",
        "RealDiv",
        "ReduceMean",
        "ReduceSum",
    }
    | {"RsqrtGrad", "Slice", "SliceGrad", "Split", "Stack", "StridedSlice", "StridedSliceGrad", "UnsortedSegmentSum"}
    | {"Unstack", "ZerosLike", "OnesLike", "FillV2"}
)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    script = Path(__file__).with_name("ascend_graphs.py")
    command = [sys.executable, "-m", f"tests.models.transformer.{script.stem}", str(tmp_path_factory.mktemp("ir"))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_kernels_are_those_of_the_library(graphs):
    for name, (counts, _) in graphs.items():
        allowed = {"AddN"} if name.endswith("back") else set()
        assert ON_THE_SPOT & counts.keys() <= allowed, name


def test_a_block_is_few_launches(graphs):
    launches = {name: sum(counts.values()) for name, (counts, _) in graphs.items()}
    assert launches["one rank: block"] <= 47 and launches["one rank: block, back"] <= 115
    assert launches["sp=4, padded: block"] <= 53 and launches["sp=4, padded: block, back"] <= 127
    assert graphs["sp=4, padded: block"][0]["AlltoAll"] == 4


def test_no_constant_grows_with_the_sequence(graphs):
    """Neither a mask of all tokens for all tokens nor the loss's gradient of one number, spread over all values."""
    assert max(largest for _, largest in graphs.values()) <= 128, graphs  # the frequencies of time
