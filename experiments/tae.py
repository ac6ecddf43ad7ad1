"""The temporal autoencoder at full size, on crops of 256x256 from your own videos; `:frames=32` for the longer clips.

Start it from an inflated image autoencoder with --config.train.init_from=FILE (docs/tae.md); `:compat=seed` has the
arithmetic of the seed's own checkpoint. Values are the seed's; the
paper gives none for this training but the mix of images and the outlier penalty.
"""

from ml_collections import ConfigDict

from experiments import common, sections


def get_config(tiny: bool = False, frames: int = 16, compat: str = "paper") -> ConfigDict:
    config = ConfigDict(
        dict(
            job="train_tae",
            seed=42,
            tae=common.tae(compat=compat),
            data=dict(
                source="csv",
                csv="",
                video_folder="",
                metadata="",  # a csv of --job=check_data: what files' headers say, so that none is opened for it again
                num_frames=frames,
                height=256,
                width=256,
                resize=0,  # seed: image_size 256, the crop's own: 0 scales to that; larger leaves room to crop from
                stride=1,  # of frames
                flip=False,
                max_bad_fraction=0.01,  # the seed replaces any number of bad files in silence
                allow_outside=False,  # of a csv's rows: whether they may name files outside video_folder, also by links
                # Threads that read and make batches, and how many steps ahead of theirs: as many batches wait in host memory.
                # 0 steps: none is made before it is needed. No result depends on either.
                workers=2,
                prefetch=2,
                synthetic_fraction=0.0,
                image_fraction=0.2,  # paper: 1 batch of images to 3 of video
                image_batch_size=1,
            ),
            # The seed sums over elements, so that the crop's size weighs the losses; its 1e-6 for KL becomes 1e-6 / 96 of a
            # mean. LPIPS: the seed's weight. The outlier penalty: the paper's, 50 000 steps without it and then 10 000 with.
            # adversarial.weight is 0: the seed has none, the paper does not tell its own (latent diffusion: 0.5).
            loss=sections.tae_loss(l1=1.0, lpips=1.0, kl=1e-8, outlier=1e5, outlier_start=83_000),
            optim=dict(
                learning_rate=1e-5,
                betas=(0.9, 0.999),
                eps=1e-8,  # what the seed asks for; it forgets to pass it on and gets 1e-6
                weight_decay=0.0,
                no_decay="norm|bias|/b$",
                warmup_steps=0,  # the seed asks for 1000 but its constant schedule ignores them
                schedule="constant",
                final_learning_rate=1e-7,
                clip_norm=1.0,
                accumulate=1,  # parts that a step's clips are taken in, one after another
            ),
            evaluate=sections.tae_evaluation(),
            plan=sections.planning(),
            # --job=convert: kind tae or lpips, naming moviegen, seed or diffusers; docs/tae.md has the commands.
            convert=dict(kind="tae", source="", heads="", target="", naming="moviegen"),
            runtime=sections.runtime(),
            ema=dict(decay=0.0),
            train=dict(
                steps=100_000,  # seed: 2000 passes over whatever set there is
                batch_size=1,
                max_bad_steps=10,  # with a loss or gradients that are not finite: each is skipped, so many in a row end the run
                log_every=10,
                recompute_levels=(),  # keep one tensor of each: (0,) at the pixels' size, where most of the memory goes
                zero_stage=1,  # the optimizer's state over the mesh's zero axis; 2 gradients too, 3 weights too
                validate_every=1000,
                checkpoint_every=1000,  # seed: every 50 passes
                keep_checkpoints=2,
                keep_every=0,
                keep_best=True,
                rank_timeout=300.0,
                profile_steps=(),  # (first, count), experiments/common.py
                init_from="",
            ),
        )
    )
    return common.shrink(config) if tiny else config
