"""Run as several ranks: samples the same prompts on every mesh named, each into a folder of its name.

check_sampling.py FOLDER data=1 data=2 sp=2 sp=2/float16 ...    # mesh [/ compute dtype]

And once more by what training does with valid.prompts, as the step 1 of a run in the same folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402

from experiments import common  # noqa: E402
from moviegen.models.tae import model as tae
from moviegen.models.transformer import model as transformer  # noqa: E402
from moviegen.nn import backend
from moviegen.parallel import (
    mesh as meshes,  # noqa: E402
    sync,  # noqa: E402
)
from moviegen.runner import Run  # noqa: E402
from moviegen.sampling import previews  # noqa: E402
from moviegen.sampling.sampler import Request, Sampler  # noqa: E402
from moviegen.storage import checkpoint, safetensors_io  # noqa: E402
from moviegen.storage.writers import Writer  # noqa: E402
from moviegen.text import source  # noqa: E402

FRAMES = 48  # 6 latent frames: two tiles
# 9, 55 and 60 tokens of all encoders together, of 32, 32 and 64 places: packed into half of these.
PROMPTS = (
    "a red circle",
    "a blue square that moves slowly to the left and then up and then down and to the right until nobody can see it any more",
    'a sign that says "no parking on any day of the week"',
)


def experiment(folder: Path):
    config = common.shrink(common.stage("1b", 2))
    config.model = common.transformer(
        "tiny",
        hidden_size=24,
        num_layers=2,
        num_heads=4,
        ffn_size=36,
        position_lengths=(6, 1, 1),
        text_dims=dict(ul2=8, metaclip=8, byt5=8),
    )
    config.tae = common.tae("tiny", base_channels=4, channel_multipliers=(1, 1, 1, 1), norm_groups=2)
    config.sample.update(num_frames=FRAMES, height=16, width=16, steps=2, guidance_scale=3.0, batch_size=2)
    config.sample.update(checkpoint=str(folder / "start"), prompts=PROMPTS)
    config.valid.prompts = PROMPTS
    config.data.tae_weights = str(folder / "tae.safetensors")
    return config


def prepare(config) -> None:
    """Random weights; the output projection is not zero, or every velocity would be."""
    text = source.open_text(config)
    embeddings = text.read([text.prepare(prompt) for prompt in PROMPTS])
    assert [x.shape[1] for x in transformer._check_text(config.model, embeddings, len(PROMPTS))[1]] == [64, 64]
    rng = np.random.default_rng(0)
    weights = backend.to_numpy(transformer.init(config.model, 0))
    weights["final/proj"] = rng.standard_normal(weights["final/proj"].shape).astype(np.float32)
    meta = {"latent_shift": [0.0] * 16, "latent_scale": [1.0] * 16}
    checkpoint.save(Path(config.sample.checkpoint), 1, {"ema": weights}, meta)
    safetensors_io.write(tae.init(config.tae, 0), Path(config.data.tae_weights))


def main(folder: str, *wanted: str) -> None:
    folder = Path(folder)
    config = experiment(folder)
    world = meshes.setup({"data": meshes.ranks(), "zero": 1, "sp": 1})
    sync.first_rank_alone(world.world, lambda: prepare(config), folder / "prepared")
    for name in wanted:
        text, *dtype = name.split("/")
        config.model.compute_dtype = dtype[0] if dtype else "float32"
        axes = meshes.parse(text, 1)
        size = int(np.prod(list(axes.values())))
        mesh = meshes.make(axes, range(size)) if size > 1 else meshes.ONE
        into = folder / (name.replace("/", "-") if size > 1 else f"{name}-by-{meshes.rank()}")
        into.mkdir(exist_ok=True)  # the other ranks make it too
        requests = [Request(prompt, index) for index, prompt in enumerate(config.sample.prompts)]
        run = Run(config, into, mesh)
        sampler = Sampler(run)
        for request, pieces in sampler.sample(requests):
            np.save(into / f"{request.index}.npy", np.concatenate(list(pieces)))
        writer = Writer(into, rank=mesh.world.rank)
        previews.show(run)(*sampler._generator, 1, writer)
        writer.close()
    sync.barrier(world.world)


if __name__ == "__main__":
    main(*sys.argv[1:])
