"""Presets that the experiments derive from: the two models and Movie Gen's training stages.

Values are the seed's (the MindSpore example of Movie Gen in mindone) where a comment does not say otherwise; "paper" is
arXiv 2410.13720. A whole number of a stage means: 1 = text to image at 256 px, 2 = text to video joint with images at
256 px, 3 = the same at 768 px, 4 = fine-tuning on few chosen videos at 768 px.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments import sections
from moviegen.config import nearest
from moviegen.errors import ConfigError

# 30b: paper, table of the architecture. 5b and 1b: the seed; the paper has a 5B model too but not its dimensions.
TRANSFORMERS = {
    "30b": dict(hidden_size=6144, num_layers=48, num_heads=48, ffn_size=16384),
    "5b": dict(hidden_size=3072, num_layers=32, num_heads=24, ffn_size=8192),
    "1b": dict(hidden_size=1536, num_layers=24, num_heads=16, ffn_size=4096),
    "tiny": dict(
        hidden_size=192,
        num_layers=6,
        num_heads=6,
        ffn_size=512,
        position_lengths=(4, 4, 4),
        text_dims=dict(ul2=64, metaclip=32, byt5=32),
        weight_std=0.07,  # about 1 / sqrt(hidden_size), as 0.02 is for the large ones
        position_std=0.2,  # with 0.02 directions were right in 44% at best: docs/demo.md
        compute_dtype="float32",
    ),
}
TAES = {
    "full": dict(
        base_channels=128,
        channel_multipliers=(1, 2, 4, 4),
        num_res_blocks=2,
        norm_groups=32,
        # Of products; a CPU needs --config.tae.compute_dtype=float32. The seed trains 32 frames and samples in bfloat16.
        compute_dtype="bfloat16",
    ),
    "small": dict(base_channels=32, channel_multipliers=(1, 2, 4, 4), num_res_blocks=2, norm_groups=1),
    "tiny": dict(base_channels=16, channel_multipliers=(1, 2, 4, 8), num_res_blocks=1, norm_groups=1),
}


def transformer(size: str, compat: str = "paper", **overrides: Any) -> ConfigDict:
    """Config of the generator: size "30b", "5b", "1b" or "tiny".

    compat="seed" gives the arithmetic of the seed's checkpoints: no norm before cross-attention, RMSNorm on text.
    Raises ConfigError for an unknown size, compat or override.
    """
    values = dict(
        latent_channels=16,
        patch_size=(1, 2, 2),
        position_lengths=(32, 96, 96),  # latent frames, patch rows, patch columns; each stage chooses its own
        text_dims=dict(ul2=4096, metaclip=1280, byt5=1472),  # 0: the model has no such encoder
        norm_eps=1e-5,
        cross_attention_norm=_is_paper(compat),
        text_norm="layer" if _is_paper(compat) else "rms",
        weight_std=0.02,  # the seed's, for both
        position_std=0.02,
        compute_dtype="bfloat16",
    )
    return _preset("transformer", TRANSFORMERS, size, values, overrides)


def tae(preset: str = "full", compat: str = "paper", **overrides: Any) -> ConfigDict:
    """Config of the temporal autoencoder: "full" (119 M weights), "small" (a quarter of its width) or "tiny" (ships trained).

    compat="seed" pads the temporal upsampling with zeros as the seed does; the paper replicates frames everywhere.
    Raises ConfigError for an unknown preset, compat or override.
    """
    values = dict(
        latent_channels=16,
        temporal_attention=True,
        temporal_upsample_padding="replicate" if _is_paper(compat) else "zeros",
        spatial_tile=0,  # latents: pictures with a larger side are encoded and decoded in tiles of so many; 0: never
        # Of SD3.5's image autoencoder, which both start from. They are used where latents or weights come without statistics
        # of their own: the seed's caches, weights of others. Ours are measured.
        latent_shift=0.0609,
        latent_scale=1.5305,
        compute_dtype="float32",
    )
    return _preset("tae", TAES, preset, values, overrides)


def _is_paper(compat: str) -> bool:
    if compat not in ("paper", "seed"):
        raise ConfigError(f"compat is {compat!r}, expected 'paper' or 'seed'")
    return compat == "paper"


def _preset(what: str, table: dict, name: str, values: dict, overrides: dict) -> ConfigDict:
    if name not in table:
        raise ConfigError(f"{what} preset {name!r} does not exist{nearest(name, table)}: {', '.join(table)}")
    values = values | table[name]
    for key in overrides:
        if key not in values:
            raise ConfigError(f"{what} has no setting {key!r}{nearest(key, values)}; it has: {', '.join(values)}")
    return ConfigDict(values | overrides)


# Sizes are multiples of 16: the TAE takes 8, a patch takes 2. The seed asks for 256x455, which its latents silently cut
# to 256x448. Position tables: the paper grows 16 -> 32 -> 96 rows and columns, its 16 being a square of 256 px; the
# seed's wide pictures need 28 columns from the start. T is 32 throughout (256 frames), as in the paper.
# batch_size counts all ranks: the seed's number for one device times its 8 devices.
STAGES = {
    1: dict(
        size=(256, 448),
        resolution=256,
        num_frames=1,
        positions=(32, 32, 32),
        image_fraction=1.0,
        steps=30_000,  # paper: 210 000
        batch_size=8 * 70,  # paper: 9216
        learning_rate=1e-4,  # paper: 1e-4
    ),
    2: dict(
        size=(256, 448),
        resolution=256,
        num_frames=256,
        positions=(32, 32, 32),
        image_fraction=1 / 11,  # paper: 1 image batch to 10 of video; the seed has what its CSV happens to hold
        steps=20_000,  # paper: 185 000
        batch_size=8 * 1,  # paper: 1536, later 3072
        learning_rate=1e-4,  # paper, and an earlier version of the seed: 6e-5
    ),
    3: dict(
        size=(576, 1024),
        resolution=768,
        num_frames=256,
        positions=(32, 96, 96),
        image_fraction=1 / 11,
        steps=20_000,  # paper: 74 500
        batch_size=8 * 1,  # paper: 1536 falling to 512
        learning_rate=1e-4,  # paper: 6e-5, halved whenever the validation loss stands still, down to 1e-5
    ),
    # Of the fine-tuning the paper tells the data (a small curated set, half of it clips of 16 s, the others of 10.6 to 16),
    # the rates, a small batch on 512 GPUs and a cosine. Batch, learning rate and steps are unknown: ours begin where its
    # stage 3 ends.
    4: dict(
        size=(576, 1024),
        resolution=768,
        num_frames=256,
        positions=(32, 96, 96),
        image_fraction=0.0,  # the set that the paper tells of is of videos
        steps=5_000,
        batch_size=8 * 1,
        learning_rate=1e-5,
        schedule="cosine",
        frames=(256,),  # paper: clips of 16 s at 16 a second, the others at 24: 10.67 s
        max_fps=(24.0,),
        rates=(16.0, 24.0),
    ),
}


def stage(size: str, number: int, compat: str = "paper", in_buckets: bool = False) -> ConfigDict:
    """The experiment of one training stage; `train.init_from` takes the workdir of the stage before.

    compat="seed" has the arithmetic of the seed's checkpoints, of generator and autoencoder: docs/models.md. in_buckets:
    whether clips of all sizes and lengths are taken, in the shapes of the paper, or all in the seed's one (docs/data.md).
    """
    s = dict(schedule="constant") | STAGES[number]
    shapes = {key: s[key] for key in ("frames", "max_fps", "rates") if key in s}
    height, width = s["size"]
    return ConfigDict(
        dict(
            job="train",
            seed=42,
            model=transformer(size, compat, position_lengths=s["positions"]),
            tae=tae(compat=compat),
            text=sections.text(),
            data=dict(
                source="csv",
                csv="",
                video_folder="",
                metadata="",  # a csv of --job=check_data: what files' headers say, so that none is opened for it again
                # --job=encode_text fills them; or the seed's npz files, with empty_text. It feeds ones for MetaCLIP.
                text_folders=dict(ul2="", metaclip="", byt5=""),
                empty_text=dict(ul2="", metaclip="", byt5=""),
                # --job=encode_video fills it from video_folder with the weights of tae_weights. Of the embedded sets, which
                # are encoded when training starts, the default is WORKDIR/latents.
                latent_folder="",
                tae_weights="",
                fps=0.0,  # at which videos are shown, and captions tell it; 0: each file's own. A csv's `fps` goes first
                latent_dtype="float32",  # of the cache; bfloat16 halves it
                validation_csv="",
                num_samples=0,  # of source="synthetic" alone
                height=height,
                width=width,
                num_frames=s["num_frames"],
                buckets=sections.buckets(s["resolution"] if in_buckets else 0, **shapes),
                tokens_per_batch=0,  # of all ranks: gives each bucket the batch that it fills; 0: train.batch_size for all
                image_fraction=s["image_fraction"],  # of the steps
                text_drop_prob=0.2,  # of all encoders together; paper: unknown
                text_drop_each=dict(ul2=0.0, metaclip=0.0, byt5=0.0),  # of each by itself, beyond that
                max_bad_fraction=0.01,  # the seed replaces any number of bad rows in silence
                allow_outside=False,  # of a csv's rows: whether they may name files outside video_folder, also by links
                # Threads that read and make batches, and how many steps ahead of theirs: as many batches wait in host memory.
                # 0 steps: none is made before it is needed. No result depends on either.
                workers=2,
                prefetch=2,
            ),
            optim=dict(
                learning_rate=s["learning_rate"],
                betas=(0.9, 0.999),
                eps=1e-8,  # seed: 1e-15, with which a weight that hardly gets a gradient still moves at full speed
                weight_decay=0.1,
                no_decay="norm|bias",
                warmup_steps=1000,
                # paper: constant too; cosine for its fine-tuning
                schedule=s["schedule"],
                final_learning_rate=1e-6,
                clip_norm=1.0,
                accumulate=1,  # optimizer steps are what train.steps counts
                # Halves the rate when the held-out loss, whose noise and times are always the same, has not fallen by
                # min_delta within 10 validations: 5000 steps, a quarter of the shortest stage that it acts in. The seed's 50,
                # with 0.01, would be 25 000. A cosine falls by itself: factor 0 is no such rule.
                plateau=dict(
                    factor=0.5 if s["schedule"] == "constant" else 0.0,
                    patience=10,
                    min_delta=0.001,
                    min_learning_rate=1e-6,
                ),
            ),
            train=dict(
                steps=s["steps"],
                batch_size=s["batch_size"],
                max_bad_steps=10,  # with a loss or gradients that are not finite: each is skipped, so many in a row end the run
                log_every=1,
                checkpoint_every=500,
                keep_checkpoints=10,
                keep_every=0,  # 0: none; else every so many steps one stays for ever
                keep_best=True,  # and the one with the lowest held-out loss
                validate_every=500,  # the seed validates stage 1 only, so its plateau rule never acts later
                time_logit_mean=0.0,  # of the logit-normal times (paper: 0, with deviation 1)
                init_from="",
                # ZeRO over the mesh's zero x sp: 1 shards the optimizer's state and the average, 2 gradients too, 3
                # parameters too; 0 none. The seed runs 30B with 3.
                zero_stage=3,
                # Moments and average in host memory: 30B in float32 is 120 GB each of weights, gradients, two moments and
                # average, 75 GB a card on 8 cards with all of them on the card, 30 GB so. 5B's stage 3 takes 70 GB without
                # (--job=plan).
                offload_optimizer=size == "30b" or (size == "5b" and number >= 3),
                # The blocks that are computed again whole on the way back: "all", "none", or a number, every so many. Others
                # keep what each of their products gave, which takes memory (docs/parallel.md). The seed recomputes all.
                recompute="all",
                peak_tflops=0.0,  # of one card, in model.compute_dtype: steps tell what share of it they use; 0: not known
                profile_steps=(),  # (first, count): MindSpore's profile of these goes to WORKDIR/profile; (): none
                rank_timeout=300.0,  # seconds without a sign of life of one rank after which the others end
            ),
            # In float32; the seed's bfloat16 average never moves. The decay is (1 + step) / (10 + step) until that exceeds
            # this (the seed's grows to it as 1 - exp(-step / 2000)). 0: no average is kept, and none takes memory.
            ema=dict(decay=0.9999),
            # Videos of these prompts, made as `sample` says from the same noise every so many steps: docs/metrics.md.
            valid=dict(prompts=(), every=2500),
            sample=dict(
                steps=50,
                schedule="linear_quadratic",
                guidance_scale=7.5,  # paper; the seed has no guidance
                num_frames=s["num_frames"],
                height=height,
                width=width,
                fps=16,  # of what is written and what prompts tell
                batch_size=1,
                checkpoint="",
                prompts=("A rabbit wakes up in a meadow and stretches.",),
            ),
            curate=sections.curation(max(720, s["resolution"])),
            # --job=export: a folder of checkpoints or one of them; "ema" or "params"; float32, bfloat16, float16.
            export=dict(checkpoint="", weights="ema", dtype="float32", shard_bytes=5_000_000_000),
            look=dict(count=16),  # --job=look: entries of the latent cache that are decoded and shown
            plan=sections.planning(),
            convert=dict(kind="transformer", source="", target=""),  # --job=convert: the seed's weights; docs/models.md
            runtime=sections.runtime(),
            # --job=average_weights: two or more of what train.init_from takes, and how much each counts; (): all alike.
            average_weights=dict(checkpoints=(), weights=()),
            import_weights=dict(path=""),  # --job=import_weights: a safetensors file, or a folder with an index
        )
    )


def chain(**stages: ConfigDict) -> ConfigDict:
    """One experiment of several, in this order, each with its `job`: docs/training.md.

    It has the settings of the first, and of each of the others what differs; a key that is the same in all can be set for all.
    """
    base = next(iter(stages.values())).copy_and_resolve_references()
    sections = {name: dict(_other(config, base), job=config.job) for name, config in stages.items()}
    base.update(job="train_stages", stages=sections, order=tuple(stages))
    return base


def _other(config: ConfigDict, base: ConfigDict) -> dict:
    found = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            value = _other(value, base[key])
            found |= {key: value} if value else {}
        elif value != base[key]:
            found[key] = value
    return found


def shrink(config: ConfigDict) -> ConfigDict:
    """The same experiment at toy size: three steps on a laptop, on the embedded synthetic clips.

    Sizes and position tables shrink together by 8, so a stage still differs from the next as it does at full size.
    """
    height, width = (max(32, config.data[side] // 8 // 16 * 16) for side in ("height", "width"))
    frames = min(config.data.num_frames, max(8, config.data.num_frames // 8))
    config.tae = tae("tiny", temporal_upsample_padding=config.tae.temporal_upsample_padding)
    if "model" in config:
        config.model = transformer(
            "tiny",
            num_layers=2,
            cross_attention_norm=config.model.cross_attention_norm,
            text_norm=config.model.text_norm,
            position_lengths=tuple(max(4, n // 8) for n in config.model.position_lengths),
        )
        config.sample.update(
            steps=4, num_frames=frames, height=height, width=width, prompts=("a red circle moves left",)
        )
        # Of each kind; in the 15 shapes of videos that stage 3's buckets have, a batch for each.
        config.data.update(tae_weights="package:tiny_tae", num_samples=32 if config.data.buckets.resolution else 16)
    config.data.update(source="synthetic", height=height, width=width, num_frames=frames)
    if "buckets" in config.data:
        shapes = config.data.buckets
        shapes.update(resolution=shapes.resolution // 8, frames=tuple(n // 8 for n in shapes.frames))
    if "lpips" in config.get("loss", {}):
        config.loss.lpips = 0.0  # needs weights that do not ship
        config.loss.outlier_start = config.loss.adversarial.start = 1
        config.loss.adversarial.channels = 4
    config.optim.update(warmup_steps=1, accumulate=1)
    config.train.update(steps=3, batch_size=2, checkpoint_every=2, keep_checkpoints=2, validate_every=3)
    return config
