"""Stages 1 to 4 on videos of your own, from files to samples: docs/training.md goes through it. Copy it, change what you like.

    python launch.py --config=experiments/own.py:size=5b,buckets --workdir=runs/own
    python launch.py --config=experiments/own.py:tiny --workdir=runs/own   # three steps of each, to try your files

Of the folder in which it is started it takes videos/, clips.csv (video,caption of all), train.csv and heldout.csv (the same in
two parts), tae.safetensors, and text encoders in encoders/. It fills latents/ and embeddings/.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(size: str = "1b", tiny: bool = False, buckets: bool = False) -> ConfigDict:
    jobs = {}
    for number in (1, 2, 3, 4):
        config = _stage(size, number, tiny, buckets)
        # Latents first: captions tell the rates at which they are shown.
        for name, job in (("latents", "encode_video"), ("text", "encode_text")):
            jobs[f"{name}{number}"] = before = config.copy_and_resolve_references()
            before.job, before.data.csv = job, "clips.csv"
        jobs[f"stage{number}"] = config
    for name, job in (("average", "average_weights"), ("sample", "sample")):
        jobs[name] = jobs["stage4"].copy_and_resolve_references()
        jobs[name].job = job
    return common.chain(**jobs)


def _stage(size: str, number: int, tiny: bool, buckets: bool) -> ConfigDict:
    config = common.stage(size, number, in_buckets=buckets)
    if tiny:
        config = common.shrink(config)
        config.model.text_dims = dict(ul2=16, metaclip=12, byt5=8)  # of the encoders that docs/training.md makes up
    config.data.update(source="csv", csv="train.csv", validation_csv="heldout.csv", video_folder="videos")
    config.data.update(latent_folder=f"latents/{number}", tae_weights="package:tiny_tae" if tiny else "tae.safetensors")
    for name in config.model.text_dims:
        config.text.encoders[name], config.data.text_folders[name] = f"encoders/{name}", f"embeddings/{name}"
    return config
