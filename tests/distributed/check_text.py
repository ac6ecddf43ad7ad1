"""Run as several ranks: embeds the prompts of FOLDER/prompts.txt on a mesh, and by one rank alone.

check_text.py FOLDER zero=2/3 data=2/0 ...    # mesh / ZeRO stage
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments import common  # noqa: E402
from moviegen.jobs import encode_text  # noqa: E402
from moviegen.parallel import (
    mesh as meshes,  # noqa: E402
    sync,  # noqa: E402
)
from moviegen.runner import Run
from tests.text import tiny_encoders  # noqa: E402


def experiment(folder: Path, name: str):
    config = common.stage("1b", 2)
    config.model.text_dims = tiny_encoders.WIDTHS
    config.text.update(encoders={n: str(folder / "encoders" / n) for n in tiny_encoders.WIDTHS})
    config.text.update(prompts=str(folder / "prompts.txt"), batch_size=2, dtype="bfloat16")
    config.data.text_folders = {n: str(folder / name.replace("/", "-") / n) for n in tiny_encoders.WIDTHS}
    return config


def main(folder: str, *wanted: str) -> None:
    folder = Path(folder)
    world = meshes.setup({"data": meshes.ranks(), "zero": 1, "sp": 1})
    for name in wanted:
        text, stage = name.split("/")
        config = experiment(folder, name)
        config.train.zero_stage = int(stage)
        mesh = meshes.make(meshes.parse(text, meshes.ranks()), range(meshes.ranks()))
        encode_text.run(Run(config, folder / name.replace("/", "-"), mesh))

    def alone():
        encode_text.run(Run(experiment(folder, "alone"), folder / "alone"))

    sync.first_rank_alone(world.world, alone, folder / "alone.done")


if __name__ == "__main__":
    main(*sys.argv[1:])
