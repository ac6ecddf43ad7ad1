"""Run as several ranks: the training job on a very small model, saving at every step; test_kills.py kills it on the way.

train_and_save.py FOLDER STEPS

All of it is real but the gradient, which would take longer to compile than everything else: it is the weights times a
number that all ranks' parts of the batch go into.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402

from experiments import common  # noqa: E402
from moviegen.data import sources  # noqa: E402
from moviegen.jobs import train  # noqa: E402
from moviegen.models.transformer import step as transformer_step  # noqa: E402
from moviegen.nn import backend  # noqa: E402
from moviegen.parallel import mesh as meshes  # noqa: E402
from moviegen.runner import Run  # noqa: E402
from tests.data import made_up  # noqa: E402


def experiment(steps: int):
    config = common.shrink(common.stage("1b", 1))
    config.model.update(hidden_size=8, num_layers=1, num_heads=2, ffn_size=12, position_lengths=(2, 2, 2))
    config.model.update(latent_channels=4, text_dims=dict(ul2=8, metaclip=8, byt5=8))
    config.data.image_fraction = 0.25
    config.data.buckets.update(resolution=32, aspect_ratios=("1:1",), frames=(16, 8), max_fps=(16.0, 16.0))
    config.optim.update(learning_rate=0.01, warmup_steps=2)
    config.ema.decay = 0.9
    config.train.update(steps=steps, checkpoint_every=1, keep_checkpoints=2, keep_every=10, validate_every=steps + 1)
    return config.lock()


def made_up_tables(config, workdir, world):
    shapes = {"video/long": (6, 4, 2, 4, 4), "video/short": (9, 4, 1, 4, 4), "image": (5, 4, 1, 4, 4)}
    return made_up.of_shapes(config, shapes)


def loss_and_grads(params, cfg, latents, noise, t, text, comm, recompute, note):
    note(backend.tensor(np.zeros(len(t), np.float32)))
    loss = comm.all_reduce(backend.tensor(np.float32([(latents * noise).mean()])))
    return loss, {path: value * loss for path, value in params.items()}


def main(folder: str, steps: str) -> None:
    mesh = meshes.setup({"data": 1, "zero": meshes.ranks(), "sp": 1})
    sources.open_tables, transformer_step.loss_and_grads = made_up_tables, loss_and_grads
    note = Path(folder) / f"rank-{meshes.rank()}.tmp"
    note.write_text(str(os.getpid()))
    note.rename(note.with_suffix(".pid"))
    train.run(Run(experiment(int(steps)), Path(folder), mesh))


if __name__ == "__main__":
    main(*sys.argv[1:])
