"""The small autoencoder that ships with the package, trained from nothing on two cores.

    python launch.py --config=experiments/tiny_tae.py --workdir=runs/tiny_tae

wrote moviegen/models/tae/trained/tiny_tae.safetensors, as runs/tiny_tae/tae.safetensors. Numbers on the way: docs/tae.md.
"""

from ml_collections import ConfigDict

from experiments import common, sections


def get_config() -> ConfigDict:
    """Random crops of real clips mixed with the synthetic set."""
    return ConfigDict(
        dict(
            job="train_tae",
            seed=0,
            tae=common.tae("tiny", latent_shift=0.0, latent_scale=1.0),
            data=dict(
                source="clips",
                csv="",
                video_folder="",
                max_bad_fraction=0.0,
                allow_outside=False,
                workers=1,  # threads that make batches
                prefetch=2,  # steps ahead
                num_frames=16,  # two latent frames: temporal layers must see a neighbour
                height=32,
                width=32,
                synthetic_fraction=0.6,
                image_fraction=0.0,  # images are added when the demo trains on
                image_batch_size=24,
            ),
            loss=sections.tae_loss(l1=0.5, mse=2.0, kl=1e-5),
            optim=dict(
                learning_rate=8e-4,
                betas=(0.9, 0.99),
                eps=1e-8,
                weight_decay=0.0,
                no_decay="norm|bias|/b$",
                warmup_steps=300,  # at full rate from the first step the linear start is lost before anything is gained
                schedule="cosine",
                final_learning_rate=2e-5,
                clip_norm=1.0,
            ),
            evaluate=sections.tae_evaluation(),
            plan=sections.planning(),
            ema=dict(decay=0.995),
            train=dict(
                steps=3600,
                batch_size=2,
                max_bad_steps=10,
                log_every=10,
                zero_stage=1,  # the optimizer's state over the mesh's zero axis; 2 gradients too, 3 weights too
                validate_every=200,
                checkpoint_every=100,
                keep_checkpoints=2,
                keep_every=0,
                keep_best=False,
                rank_timeout=300.0,
                profile_steps=(),  # (first, count), experiments/common.py
                init_from="",
                linear_start=64,
            ),
        )
    )
