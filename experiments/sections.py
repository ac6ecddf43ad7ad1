"""Sections of settings that experiments share, each as a function; values are where common.py says."""

from typing import Any

from ml_collections import ConfigDict

from moviegen.config import nearest
from moviegen.errors import ConfigError


def tae_loss(**weights: Any) -> dict:
    """Weights of the autoencoder's losses, each a mean over elements or frames; what is not named is off.

    Raises ConfigError for a loss that there is not.
    """
    values = dict(
        l1=1.0,
        mse=0.0,
        kl=1e-8,
        lpips=0.0,
        lpips_weights="",  # a file of --job=convert: docs/tae.md
        outlier=0.0,  # paper: 1e5, in a last phase of the training
        outlier_radius=3.0,  # paper
        outlier_start=0,
        # Latent diffusion's adversarial loss: hinge, and a weight besides that makes it as strong as the others.
        adversarial=dict(weight=0.0, start=50_000, dims=3, channels=64),
    )
    for key in weights:
        if key not in values:
            raise ConfigError(f"the autoencoder has no loss {key!r}{nearest(key, values)}; it has: {', '.join(values)}")
    return values | weights


def tae_evaluation(**overrides: Any) -> dict:
    """Settings of what --job=evaluate measures, and with what: docs/evaluate.md."""
    return (
        dict(
            weights="",  # default: WORKDIR/tae.safetensors
            csv="",
            video_folder="",  # default: the held-out clips of the demo
            num_frames=32,  # 0: all
            max_clips=0,  # 0: all
            lpips_weights="",
            features="",  # of a Fréchet distance: "vgg" (lpips_weights has it) or FILE.py:FUNCTION
            linear_baseline=False,
        )
        | overrides
    )


def curation(min_side: int = 720) -> dict:
    """What --job=curate measures of clips and which it keeps, in the paper's order: docs/data.md."""
    return dict(
        scores=("border", "cuts", "sharpness", "motion", "duplicates"),  # what is measured; the others' thresholds rest
        rate=4.0,  # pictures a second that are looked at; cuts are looked for in all frames. Ours
        seconds=(4.0, 120.0),  # of a file, at least and at most (paper); the first of a shot too
        min_side=min_side,  # of height and width, in pixels; paper: 720 for 256 px, 768 for 768 px; 0: all
        landscape=False,  # only what is not higher than wide; the paper's strictest set is so
        max_border=0.02,  # share of the picture that is a dark border; paper: none. Ours: an encoder's odd lines pass
        cuts="split",  # or "drop" clips that have any; paper: one clip of each scene
        cut_levels=20.0,  # of 255, by which frames differ at a cut at least. Ours: fast motion makes up to 18, cuts 39 or more
        min_sharpness=20.0,  # variance of the Laplacian, at 512 px. Ours: with a shallow focus it is 36, with all in focus 700
        # Mean difference of luma between the pictures, in levels of 255. Paper: above 2 between successive frames by FFmpeg's
        # score; a fourth of a second apart they differ more. Its upper bound is of motion vectors, which are not looked at.
        min_motion=2.0,
        max_motion=60.0,  # ours: what is above is noise, flicker or a picture that shakes
        max_static=0.5,  # share of pictures that hardly differ from the one before; ours
        duplicate_bits=6,  # of 64 of each of three pictures, in which near duplicates differ at most; ours
        shown=4,  # clips on the page of what was kept, and of what each threshold dropped
    )


def runtime() -> dict:
    """What Ascend's libraries are told; on a CPU nothing of it has an effect. Environment variables go first."""
    return dict(
        jit_level="O0",  # MindSpore's default: a library kernel for each operation. "O1" fuses some; the seed's table has it
        deterministic=True,  # or a resumed run is not the same run: gradients of attention and HCCL's sums vary
        conv_allow_hf32=False,  # MindSpore's default is True: convolutions in float32 would lose 13 of 23 bits in silence
        hccl_buffer_mb=200,  # Huawei's default; each communicator takes two
        # Ranks that compile at different speed meet late; Huawei's default is 120 s.
        hccl_connect_timeout=1800,
    )


def text() -> ConfigDict:
    """Settings of the three text encoders: docs/text.md."""
    return ConfigDict(
        dict(
            encoders=dict(ul2="", metaclip="", byt5=""),  # folders that --job=fetch_text_encoder fills; "": not used
            # Of Hugging Face's hub. Movie Gen's MetaCLIP is not public; this one is 1024 wide (model.text_dims.metaclip).
            repositories=dict(ul2="google/ul2", metaclip="facebook/metaclip-h14-fullcc2.5b", byt5="google/byt5-small"),
            endpoint="",  # of a mirror of the hub
            offline="",  # a folder that holds the repositories' files at OWNER/NAME: nothing is downloaded
            budgets=dict(ul2=512, metaclip=256, byt5=100),  # tokens; longer texts are cut and counted
            dtype="bfloat16",  # of weights in memory and of cached embeddings; products on CPU are float32 always
            batch_size=16,
            prompts="",  # --job=encode_text: a csv or txt; default: data.csv
            tell_fps=True,  # before prompts of videos, as "FPS-16 ": the rate at which they are shown (data.fps, sample.fps)
            camera="",  # camera motion told before prompts of videos; a csv's column `camera` goes first
        )
    )


def buckets(resolution: int = 0, **overrides: Any) -> dict:
    """Shapes that clips of many sizes and lengths are sorted into: docs/data.md. At resolution 0 there is one, data's own."""
    return (
        dict(
            resolution=resolution,  # every picture has about the area of a square with this side, in pixels
            aspect_ratios=(
                "16:9",
                "4:3",
                "1:1",
                "3:4",
                "9:16",
            ),  # width:height; paper: five, of which it names the ends
            # Paper: 256 frames from 10.67 s on, 192 from 8 s, 128 from 4 s; shown at 16 to 32 a second, by the clip's length.
            frames=(256, 192, 128),
            max_fps=(24.0, 24.0, 32.0),  # for each of `frames`
            rates=(),  # at which clips may be shown, each at the slowest that its length allows; (): all whole ones from 16
            max_upscale=1.0,  # files that would be enlarged more are too small; 0: none is
            # "PATTERN=NUMBER" of buckets' names such as 128x192x336; the first that matches counts.
            weights=(),  # how often samples are drawn; 1 where nothing says: 0.5 keeps one of two in an epoch, 0 none
            batch_sizes=(),  # of all ranks; train.batch_size or data.tokens_per_batch where nothing says
        )
        | overrides
    )


def planning() -> dict:
    """Settings of what is predicted of a run: docs/plan.md."""
    return dict(
        card="",  # 910B2, 910B3, 910B4, 910C (a die of it) or CPU; "": 910B2 where there is an Ascend card, else CPU
        check=True,  # whether a run that cannot fit is refused before it starts
        job="",  # of which --job=plan tells; default: the experiment's own
        cards=0,  # for how many --job=plan chooses mesh and settings; 0: it takes --mesh
    )
