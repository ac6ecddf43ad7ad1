"""Run as several ranks, or alone: trains the same few steps of the autoencoder on every mesh named, each into a folder.

check_tae_meshes.py FOLDER STEPS data=1/0 zero=2/3 zero=2/3/every ...    # mesh / ZeRO stage / with every loss, or a dtype
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments import common, tae  # noqa: E402
from moviegen.evaluation import reconstruction  # noqa: E402
from moviegen.jobs import train_tae  # noqa: E402
from moviegen.parallel import mesh as meshes  # noqa: E402
from moviegen.runner import Run  # noqa: E402


def experiment(steps: int, zero_stage: int, every_loss: bool, parts: int):
    """Widths that two ranks do not divide; no images, as each kind of sample compiles anew.

    `parts`: ranks that the batch is split over. One clip at a time on any mesh, and in validation, is compiled once; but the
    adversarial loss is weighted by what a whole micro-batch pulls.
    """
    config = tae.get_config(tiny=True)
    config.tae = common.tae("tiny", base_channels=3, channel_multipliers=(1, 1, 1, 1), norm_groups=3)
    config.data.update(num_frames=8, height=16, width=16, image_fraction=0.0)
    config.optim.update(learning_rate=3e-3, eps=1e-2, clip_norm=0.5)
    config.train.update(steps=steps, batch_size=2, log_every=1, checkpoint_every=steps, validate_every=steps)
    config.train.zero_stage = zero_stage
    config.optim.accumulate = 1 if every_loss else config.train.batch_size // parts
    config.loss.update(l1=0.5, mse=2.0, kl=1e-4, outlier=0.0)
    if every_loss:
        config.loss.update(outlier=1.0, outlier_radius=0.2, outlier_start=2)
        config.loss.adversarial.update(weight=0.5, start=2, dims=3, channels=2)
    config.ema.decay = 0.8
    return config


def main(folder: str, steps: str, *wanted: str) -> None:
    whole = reconstruction.validation_clips
    reconstruction.validation_clips = lambda config: {k: v[:8, :16, :16] for k, v in list(whole(config).items())[:3]}
    if meshes.ranks() > 1:
        meshes.setup({"data": meshes.ranks(), "zero": 1, "sp": 1})
    for name in wanted:
        text, stage, *more = name.split("/")
        axis, size = text.split("=")
        axes = dict.fromkeys(meshes.AXES, 1) | {axis: int(size)}
        mesh = meshes.make(axes, range(int(size))) if int(size) > 1 else meshes.ONE
        # With one rank's mesh every rank trains alone: one that only waited would wait longer than collectives do.
        alone = f"-by-{meshes.rank()}" if size == "1" and meshes.rank() else ""
        workdir = Path(folder) / (name.replace("/", "-") + alone)
        config = experiment(int(steps), int(stage), more == ["every"], mesh.batch.size)
        if more and more != ["every"]:
            config.tae.compute_dtype = more[0]
        train_tae.run(Run(config, workdir, mesh))


if __name__ == "__main__":
    main(*sys.argv[1:])
