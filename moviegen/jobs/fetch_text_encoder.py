"""Fetches the repositories of text encoders into folders that encode_text and sample read."""

from pathlib import Path

from moviegen.errors import ConfigError
from moviegen.runner import Run
from moviegen.text import fetch


def run(run: Run) -> dict[str, float]:
    """Fill every folder that `text.encoders` names from `text.repositories`; return how many were fetched and kept.

    What a stopped run has downloaded is not downloaded again, and a folder that is whole is only checked.
    """
    config = run.config
    folders = {name: Path(folder) for name, folder in config.text.encoders.items() if folder}
    if not folders:
        raise ConfigError("text.encoders names no folder: set those to fill, such as text.encoders.byt5=encoders/byt5")
    counts = {"fetched": 0, "kept": 0}
    for name, folder in folders.items():
        repository = config.text.repositories[name]
        new = fetch.fetch(name, repository, folder, config.text.endpoint, config.text.offline)
        counts["fetched" if new else "kept"] += 1
        state = "fetched" if new else "there and whole"
        print(f"fetch_text_encoder: {name}: {repository} {state} in {folder}", flush=True)
    return counts
