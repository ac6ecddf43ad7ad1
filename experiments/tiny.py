"""Movie Gen's whole course at toy size, on two CPU cores: autoencoder, text to image, text to video, samples, report.

    python launch.py --config=experiments/tiny.py --workdir=runs/tiny
    python launch.py --config=experiments/tiny.py:data=clips --workdir=runs/clips   # eight real clips, learned by heart
    python launch.py --config=experiments/tiny.py:quick                             # three minutes, poor results

A stage is this config with its own section of `stages` laid over it, and the function of its name in
moviegen/demo/stages.py.
"""

from ml_collections import ConfigDict

from experiments import common, sections

SIZE, FRAMES = 64, 16  # latents of 2x8x8, so 2x4x4 = 32 tokens


def get_config(data: str = "synthetic", quick: bool = False) -> ConfigDict:
    """data="synthetic": moving shapes, judged on held-out combinations. data="clips": captioned real clips."""
    config = ConfigDict(
        dict(
            job="demo",
            seed=0,
            tae=common.tae("tiny", latent_shift=0.0, latent_scale=1.0),  # latents are scaled by their own statistics
            model=common.transformer("tiny", position_lengths=(FRAMES // 8, SIZE // 16, SIZE // 16)),
            data=_data(data),
            optim=_optim(learning_rate=2e-3, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=50),
            train=dict(
                max_bad_steps=10,
                log_every=10,
                checkpoint_every=100,
                keep_checkpoints=1,
                keep_every=0,
                keep_best=False,
                validate_every=100,
                zero_stage=3,
                offload_optimizer=False,
                recompute="all",  # experiments/common.py
                peak_tflops=0.0,  # the same
                profile_steps=(),
                rank_timeout=300.0,
                # Latents as small and smooth as these show their content early: what moves where is decided below t = 0.2.
                time_logit_mean=-1.0,
            ),
            ema=dict(decay=0.99),
            plan=sections.planning(),
            look=dict(count=16),  # entries of the latent cache that --job=look shows
            sample=dict(
                steps=25,
                schedule="linear_quadratic",
                guidance_scale=4.5,  # of 3, 4.5 and 6 the best for shapes: docs/demo.md; the paper has 7.5
                num_frames=FRAMES,
                height=SIZE,
                width=SIZE,
                fps=8,
                batch_size=16,
                checkpoint="",
                prompts=(),  # of --job=sample; the stage `sample` has its own, all held-out combinations
            ),
            stages=dict(
                tae=dict(
                    data=dict(
                        tae_weights="package:tiny_tae",  # what it starts from
                        source="clips",
                        synthetic_fraction=0.65,
                        image_fraction=0.1,
                        image_batch_size=8,
                        csv="",
                        video_folder="",
                    ),
                    loss=sections.tae_loss(l1=0.5, mse=2.0, kl=1e-5),
                    # Fine-tuning at small steps: the shipped weights are the end of a schedule.
                    optim=_optim(learning_rate=1e-4, betas=(0.9, 0.99), weight_decay=0.0, warmup_steps=10),
                    train=_train(steps=80, batch_size=1),
                    ema=dict(decay=0.97),
                ),
                t2i=dict(
                    model=dict(position_lengths=(1, SIZE // 16, SIZE // 16)),
                    data=dict(image_fraction=1.0),
                    train=_train(steps=100, batch_size=64),
                ),
                t2v=dict(train=_train(steps=1300, batch_size=32)),
                sample=dict(samples_per_prompt=3 if data == "synthetic" else 1),
                report=dict(),
            ),
        )
    )
    return _shorten(config) if quick else config


def _data(source: str) -> dict:
    return dict(
        source=source,
        num_samples=1440,  # of videos and of images: eighteen of each combination
        height=SIZE,
        width=SIZE,
        num_frames=FRAMES,
        image_fraction=0.1,
        text_drop_prob=0.1,
        latent_folder="",  # default: WORKDIR/latents
        tae_weights="",  # those of the stage tae
        max_bad_fraction=0.0,
        workers=1,  # threads that make batches: two cores have no more to give
        prefetch=2,  # steps ahead
    )


def _optim(learning_rate: float, betas: tuple, weight_decay: float, warmup_steps: int) -> dict:
    return dict(
        learning_rate=learning_rate,
        betas=betas,
        eps=1e-8,
        weight_decay=weight_decay,
        no_decay="norm|bias|position|/b$",
        warmup_steps=warmup_steps,
        schedule="cosine",
        final_learning_rate=learning_rate / 20,
        clip_norm=1.0,
        accumulate=1,
    )


def _train(steps: int, batch_size: int) -> dict:
    # The demo joins its stages up: t2v starts from t2i, tae from data.tae_weights.
    return dict(steps=steps, batch_size=batch_size, init_from="")


def _shorten(config: ConfigDict) -> ConfigDict:
    """The same course in three minutes, most of which is compiling and measuring."""
    config.data.num_samples = 8
    config.model.update(hidden_size=48, num_layers=2, num_heads=2, ffn_size=96)
    config.sample.steps = 2
    config.stages.tae.data.image_fraction = 0.0  # images are one more shape to compile
    config.stages.sample.samples_per_prompt = 1
    config.train.update(log_every=1, checkpoint_every=2, validate_every=4)
    for name in ("tae", "t2i", "t2v"):
        config.stages[name].train.steps = 4
    config.stages.t2i.train.batch_size = config.stages.t2v.train.batch_size = 4
    return config
