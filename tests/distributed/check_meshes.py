"""Run as several ranks, or alone: trains the same few steps on every mesh named, each into a folder of its name.

check_meshes.py FOLDER STEPS data=1,zero=2,sp=2/3 sp=2/3/float16/links@10 sp=2/3/float32/none ...

Each is mesh / ZeRO stage [/ compute dtype [/ links: exchanges overlap with computing, as on Ascend] [/ train.recompute]
[/ buckets: of three shapes]] [@ its own steps, of half the batch].
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


from experiments import common  # noqa: E402
from moviegen.data import sources  # noqa: E402
from moviegen.jobs import train  # noqa: E402
from moviegen.parallel import (
    mesh as meshes,  # noqa: E402
    sync,  # noqa: E402
)
from moviegen.runner import Run  # noqa: E402
from moviegen.training import validation  # noqa: E402
from tests.data import made_up  # noqa: E402
from tests.distributed import links  # noqa: E402

# Whatever is computed, on any mesh, is computed of as many samples at a time: most graphs are compiled once.
MICRO_BATCH = 4
validation.TIMES, sources.HELDOUT_SAMPLES = (0.5,), MICRO_BATCH + 2  # which two ranks share as 4 and 2


def experiment(folder: Path, steps: int):
    """Text to video at 2 x 6 x 6 latents: 18 tokens, which four ranks do not divide."""
    config = common.shrink(common.stage("1b", 2))
    config.model = common.transformer(
        "tiny",
        hidden_size=24,
        num_layers=2,
        num_heads=4,
        ffn_size=36,
        position_lengths=(2, 3, 3),
        text_dims=dict(ul2=8),
    )
    config.data.update(
        height=48, width=48, num_frames=16, num_samples=MICRO_BATCH, latent_folder=str(folder / "latents")
    )
    config.data.update(text_drop_prob=0.3, image_fraction=0.0)  # each kind of sample compiles anew
    config.optim.update(learning_rate=0.01, eps=1e-3, clip_norm=0.5, warmup_steps=2)
    config.ema.decay = 0.8
    config.train.update(steps=steps, batch_size=16, checkpoint_every=2, validate_every=5, keep_checkpoints=3)
    return config


def use_buckets(config) -> None:
    """Of 18, 16 and 9 tokens, the last of images in every fourth step; all micro-batches are of one size."""
    shapes = dict(resolution=48, aspect_ratios=("1:1", "2:1"), frames=(16,), max_fps=(16.0,))
    config.data.buckets.update(shapes | dict(weights=("1x32x64=0",), batch_sizes=("16x32x64=16",)))
    config.data.image_fraction = 0.25
    config.model.position_lengths = (2, 3, 4)
    config.train.batch_size = 8


def made_up_tables(config, workdir, world):
    """Of each bucket more rows than a batch, and held-out ones that batches do not divide."""
    shapes = {"video/square": (20, 16, 2, 6, 6), "video/wide": (17, 16, 2, 4, 8), "image": (9, 16, 1, 6, 6)}
    shapes |= {"heldout/square": (5, 16, 2, 6, 6), "heldout/wide": (3, 16, 2, 4, 8)}
    return made_up.of_shapes(config, shapes)


def main(folder: str, steps: str, *wanted: str) -> None:
    folder, open_tables = Path(folder), sources.open_tables
    world = meshes.setup({"data": meshes.ranks(), "zero": 1, "sp": 1})
    for name in wanted:
        name, _, until = name.partition("@")
        text, stage, *how = name.split("/")
        sizes = dict(item.split("=") for item in text.split(","))
        axes = {axis: int(sizes.get(axis, 1)) for axis in meshes.AXES}
        size = axes["data"] * axes["zero"] * axes["sp"]
        config = experiment(folder, int(until or steps))
        config.train.zero_stage = int(stage)
        if until:
            config.train.batch_size //= 2
        config.model.compute_dtype = how[0] if how else "float32"
        config.train.recompute = next((each for each in how[1:] if each not in ("links", "buckets")), "all")
        sources.open_tables = made_up_tables if "buckets" in how else open_tables
        if "buckets" in how:
            use_buckets(config)
        config.optim.accumulate = config.train.batch_size // (axes["data"] * axes["zero"] * MICRO_BATCH)

        def work(size=size, axes=axes, config=config, name=name):
            mesh = meshes.make(axes, range(size)) if size > 1 else meshes.ONE
            train.run(Run(config, folder / name.replace("/", "-"), mesh))

        if "links" in how:
            links.use()
            work()
            links.leave()
        elif size > 1:
            work()
        else:
            sync.first_rank_alone(world.world, work, folder / "alone.done")


if __name__ == "__main__":
    main(*sys.argv[1:])
