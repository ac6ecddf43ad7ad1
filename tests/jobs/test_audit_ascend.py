"""What a card would be given of every model, at toy size: no graph is refused, every primitive has a kernel."""

import json

import pytest

import moviegen
from moviegen import config as configs
from moviegen.errors import ConfigError, Found
from moviegen.jobs import audit_ascend
from moviegen.nn.ir import Graph, Node, Tensor
from tests.text import tiny_encoders


def audited(config, folder, mesh=None):
    """{step: {function: its graphs as audit.json has them}} of an experiment that has no faults."""
    metrics = moviegen.run(config, "audit_ascend", folder, mesh)
    assert metrics["aclnn"] > 0 and "Nothing is wrong" in (folder / "audit.md").read_text()
    steps = {}
    for step in json.loads((folder / "audit.json").read_text())["steps"]:
        for graph in step["graphs"]:
            steps.setdefault(step["step"], {}).setdefault(graph["graph"].rpartition("/")[2], []).append(graph)
    return steps


def ops(graphs):
    return {launch["op"] for graph in graphs for launch in graph["launches"]}


def test_a_generator_with_its_text_encoders(tmp_path):
    config = configs.load("experiments/1b_stage2.py:tiny")
    names = tiny_encoders.make(tmp_path / "encoders")
    config = configs.apply_overrides(
        config,
        {f"text.encoders.{name}": folder for name, folder in names.items()}
        | {f"model.text_dims.{name}": str(width) for name, width in tiny_encoders.WIDTHS.items()}
        | {"model.compute_dtype": "bfloat16", "data.source": "csv"},
    )
    steps = audited(config, tmp_path / "run")
    video, short = steps["train on a video"], steps["train on a video, a short text"]
    (forward,), (pull,) = video["block.py block"], video["block.py block, pull"]
    assert forward["calls"] == pull["calls"] == 2  # of two layers
    assert {"FlashAttentionScore", "RmsNorm", "SiLU"} <= ops([forward])
    assert {"FlashAttentionScoreGrad", "RmsNormGrad", "SiLUGrad"} <= ops([pull])
    attention = next(launch for launch in forward["launches"] if launch["op"] == "FlashAttentionScore")
    assert attention["dtypes"].startswith("bf16") and attention["kernel"] == "aclnn" and attention["flop"] > 0
    assert attention["where"].startswith("nn/")
    products = next(launch for launch in forward["launches"] if launch["op"] == "MatMul")
    assert products["dtypes"] == "bf16 -> bf16"
    # A short text is packed: rows are gathered, and the block's context is of another length.
    assert short["stages.py context"] != video["stages.py context"]
    assert "stages.py loss, value and gradient" in steps["train on an image"]
    assert {"optim.py square_sum", "optim.py adam_step"} <= set(steps["update"])
    assert steps["a step of sampling"]["stages.py epilogue"]
    assert {"t5.py block", "t5.py prologue"} <= set(steps["embed by ul2"]) & set(steps["embed by byt5"])
    assert steps["embed by metaclip"]["clip.py block"][0]["calls"] == 2
    assert steps["encode a video"] and steps["decode a video"]


def test_the_seeds_arithmetic_on_a_mesh_that_does_not_divide_the_sequence(tmp_path):
    config = configs.load("experiments/5b_stage2.py:tiny,compat=seed")
    # 9 patches of an image, one of them padding on the second of two ranks.
    config = configs.apply_overrides(
        config,
        {"model.compute_dtype": "bfloat16", "model.num_layers": "5", "data.height": "48", "data.width": "48"}
        | {"train.recompute": "2"},
    )
    steps = audited(config, tmp_path, "zero=2,sp=2")
    graphs = steps["train on an image"]
    parts = [graphs[f"block.py {name}"][0] for name in ("block", "queries", "attend", "queries, pull", "attend, pull")]
    assert [part["calls"] for part in parts] == [
        1,
        4,
        4,
        4,
        4,
    ]  # the first block is computed again, the others are kept
    for part, count in zip(parts, (4, 3, 1, 3, 2), strict=True):
        exchanged = [launch for launch in part["launches"] if launch["kernel"] == "hccl"]
        assert {launch["op"] for launch in exchanged} == {"AlltoAll"} and len(exchanged) == count
    assert "LayerNorm" not in ops(steps["train on an image"]["stages.py context"])
    assert "AllGather" in ops(steps["a step of sampling"]["stages.py epilogue"])


@pytest.mark.slow  # 300 graphs
def test_an_autoencoder_with_all_its_losses(tmp_path):
    config = configs.load("experiments/tae.py:tiny")
    config = configs.apply_overrides(config, {"loss.lpips": "1.0", "loss.adversarial.weight": "0.5"})
    steps = audited(config, tmp_path)
    clips = set(steps["train on clips"])
    assert {"lpips.py compare, pull", "discriminator.py hinge, value and gradient"} <= clips
    assert {"blocks.py norm_conv, pull", "losses.py outlier, pull"} <= clips
    assert {"train on images", "update", "encode a video", "decode a video", "compare by LPIPS"} <= set(steps)


def faulty():
    """A step with a graph that has a constant of 40 MB, and one that does not compile."""
    large, small = Tensor("f32", (10_000_000,)), Tensor("bf16", (4, 4))
    node = Node("Mul", ((large,), (large,)), (large,), (large,), "nn/layers.py:7", ())
    product = Node("MatMul", ((small,), (small,)), (small,), (), "nn/layers.py:8", ())
    graphs = [(Graph("models/a.py block", [node, product], 1.5), 48), (Graph("models/a.py loss", [], 0.1, "of f32"), 1)]
    return [audit_ascend.Step("train", graphs)]


FAULTS = [
    "train: models/a.py block: Mul of nn/layers.py:7: a constant of 40 MB, f32 (10000000,)",
    "train: models/a.py loss does not compile: of f32",
]


def test_faults_are_told_and_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit_ascend.isolate, "call", lambda *args: (faulty(), 0.0))
    with pytest.raises(Found, match=f"2 faults in 2 graphs, listed above and in {tmp_path}/audit.md"):
        moviegen.run("experiments/1b_stage1.py:tiny", "audit_ascend", tmp_path, "zero=2")
    assert json.loads((tmp_path / "audit.json").read_text())["wrong"] == FAULTS
    page = (tmp_path / "audit.md").read_text()
    assert page in capsys.readouterr().out and all(f"- {fault}" in page for fault in FAULTS)
    assert "1b_stage1-tiny on data=1,zero=2,sp=1" in page
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert ["train", "models/a.py block", "1", "48", "2", "0", "0", "0", "1.28e-10", "0.12", "1.5"] in rows
    assert ["train", "**all calls**", "", "", "96", "0", "0", "0", "6.14e-09", "5.76", ""] in rows
    assert ["MatMul", "aclnn", "1", "bf16 -> bf16", "nn/layers.py:8"] in rows


def test_an_experiment_that_trains_nothing(tmp_path):
    config = configs.load("experiments/1b_stage1.py:tiny").unlock()
    config.job = "export"
    with pytest.raises(ConfigError, match="the experiment's job is 'export', expected one that trains"):
        moviegen.run(config, "audit_ascend", tmp_path)
