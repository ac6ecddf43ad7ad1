"""Every case builds and steps, at sizes that compile in seconds."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as command, cases, data_pipelines

TRANSFORMER = dict(size="tiny", batch=1, grid=(1, 2, 2), text_tokens=2, hidden_size=8, num_heads=2, ffn_size=12)
TAE = dict(size="tiny", base_channels=2, channel_multipliers=(1, 1, 1, 1), norm_groups=1, side=16)
SMALL = {
    cases.transformer: TRANSFORMER | dict(num_layers=1),
    cases.transformer_training_step: TRANSFORMER | dict(num_layers=1),
    cases.sampling: TRANSFORMER | dict(num_layers=1, steps=2),
    cases.attention: dict(heads=2, tokens=16, width=4),
    cases.tae: TAE | dict(batch=1, frames=8),
    cases.tae_decode: TAE | dict(frames=8),
    data_pipelines.videos: dict(stored=(6, 32, 48), clips=2, frames=2, height=16, width=32),
    data_pipelines.latents: dict(count=3, shape=(2, 1, 2, 2)),
    cases.byt5: dict(batch=2, tokens=6, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2),
}


@pytest.mark.parametrize("name", cases.CASES)
def test_a_case_is_measured(name, tmp_path):
    case = cases.CASES[name]
    case = case._replace(sizes=case.sizes | SMALL[case.sizes.get("source", case.build)], repeats=1)
    result = cases.measure_case(case, tmp_path)
    reads = case.build == cases.data_pipeline
    assert result["seconds"] > 0 and (result["peer_seconds" if reads else "gradient_norm"] > 0)
    assert ("loss" in result) == (case.build in (cases.transformer, cases.transformer_training_step, cases.tae))
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["repeats"] == 1
    if name in command.PEERS:  # torch is given what ours had
        with np.load(tmp_path / "arrays.npz") as arrays:
            assert arrays.files and all(np.isfinite(arrays[key]).all() for key in arrays.files)


def test_the_peers_are_cases():
    assert set(command.PEERS) <= set(cases.CASES)
