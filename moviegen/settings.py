"""What each setting must be and which of them a job needs, as tables; told from `{dotted key: value}` alone."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a value must be.

    Args:
        words: what is expected, as an error and `--show` say it.
        holds: value -> whether it is that.
        example: a value that holds, of the type that text is read as.
    """

    words: str
    holds: Callable[[Any], bool]
    example: Any = ""


def whole(low: int, high: float = math.inf, step: int = 1) -> Rule:
    """A whole number in a range, ends included, that `step` divides."""
    bounds = f" of at least {low}" if high == math.inf else f" from {low} to {high}"
    words = f"a whole number{bounds}" + (f", a multiple of {step}" if step > 1 else "")
    return Rule(words, lambda v: _is(v, int) and low <= v <= high and v % step == 0, low)


def number(low: float = -math.inf, high: float = math.inf, above: float = -math.inf, below: float = math.inf) -> Rule:
    """A finite number within all of the bounds: low and high are included, above and below are not."""
    told = ((low, "of at least"), (above, "above"), (high, "at most"), (below, "below"))
    bounds = " and ".join(f"{words} {bound:g}" for bound, words in told if math.isfinite(bound))

    def holds(v: Any) -> bool:
        return _is(v, int | float) and math.isfinite(v) and low <= v <= high and above < v < below

    return Rule(f"a number {bounds}".rstrip(), holds, 1.0)


def one_of(*choices: str | int) -> Rule:
    """One of a few values."""
    words = f"one of {', '.join(map(repr, choices))}"
    return Rule(words, lambda v: v in choices and not _is(v, bool), choices[0])


def several(each: Rule, count: int | None = None, least: int = 0) -> Rule:
    """A tuple of so many items, or at least so many."""
    amount = count or (f"{least} or more" if least else "any number")

    def holds(values: Any) -> bool:
        sized = isinstance(values, tuple | list) and (len(values) == count if count else len(values) >= least)
        return sized and all(map(each.holds, values))

    return Rule(f"a tuple of {amount}, each {each.words}", holds, (each.example,))


def matching(regex: str, words: str) -> Rule:
    """Text of a form."""
    return Rule(words, lambda v: isinstance(v, str) and re.fullmatch(regex, v) is not None)


def either(one: Rule, other: Rule) -> Rule:
    """What one of two rules allows."""
    return Rule(f"{one.words}, or {other.words}", lambda v: one.holds(v) or other.holds(v), one.example)


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _is_range(value: Any) -> bool:
    return several(number(0), 2).holds(value) and value[0] <= value[1]


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError):
        return False
    return True


flag = Rule("true or false", lambda v: _is(v, bool), True)
text = Rule("text", lambda v: isinstance(v, str))
filled = Rule("text that is not empty", lambda v: isinstance(v, str) and v != "")
pattern = Rule("a regular expression", _is_pattern)
share = number(0, 1)
size = whole(8, step=8)  # in pixels, of what the autoencoder halves three times
dtype = one_of("float32", "bfloat16")
# The last two are for a CPU, to see bfloat16's rounding and to rehearse its types; there is no loss scaling.
compute_dtype = one_of("float32", "bfloat16", "bfloat16_simulated", "float16")
recompute = Rule(
    "'all', 'none', or a whole number n of at least 1: every n-th block",
    lambda v: re.fullmatch("all|none|[1-9][0-9]*", str(v)) is not None,
    "all",
)
every = whole(1)._replace(words="a whole number of at least 1 (above train.steps: at the end alone)")

# A "*" stands for the last piece of any name. A key without a rule is one of an experiment of the user's own.
RULES: dict[str, Rule] = {
    "name": text,
    "job": filled,
    "order": several(filled, least=1),
    "seed": whole(0),
    "model.hidden_size": whole(1),
    "model.num_layers": whole(1),
    "model.num_heads": whole(1),
    "model.ffn_size": whole(1),
    "model.latent_channels": whole(1),
    "model.patch_size": several(whole(1), 3),
    "model.position_lengths": several(whole(1), 3),
    "model.text_dims.*": whole(0),
    "model.norm_eps": number(above=0),
    "model.cross_attention_norm": flag,
    "model.text_norm": one_of("layer", "rms"),
    "model.weight_std": number(0),
    "model.position_std": number(0),
    "model.compute_dtype": compute_dtype,
    "tae.compute_dtype": compute_dtype,
    "tae.base_channels": whole(1),
    "tae.channel_multipliers": several(whole(1), 4),
    "tae.num_res_blocks": whole(1),
    "tae.norm_groups": whole(1),
    "tae.latent_channels": whole(1),
    "tae.temporal_attention": flag,
    "tae.temporal_upsample_padding": one_of("replicate", "zeros"),
    "tae.spatial_tile": whole(0),
    "tae.latent_shift": either(number(), several(number(), least=1)),
    "tae.latent_scale": either(number(above=0), several(number(above=0), least=1)),
    "text.encoders.*": text,
    "text.repositories.*": filled,
    "text.endpoint": text,
    "text.offline": text,
    "text.budgets.*": whole(2),  # a start or a word, and the end
    "text.dtype": one_of("float32", "bfloat16", "float16"),  # the last rehearses bfloat16's types on a CPU
    "text.batch_size": whole(1),
    "text.prompts": text,
    "text.tell_fps": flag,
    "text.camera": text,
    "data.source": one_of("csv", "clips", "synthetic"),
    "data.csv": text,
    "data.video_folder": text,
    "data.metadata": text,
    "data.validation_csv": text,
    "data.text_folders.*": text,
    "data.empty_text.*": text,
    "data.latent_folder": text,
    "data.tae_weights": text,
    "data.latent_dtype": dtype,
    "data.fps": number(0, 1000),
    "data.num_samples": whole(0),
    "data.height": size,
    "data.width": size,
    "data.num_frames": whole(0),
    "data.buckets.resolution": whole(0),
    "data.buckets.aspect_ratios": several(matching(r"[1-9]\d*:[1-9]\d*", "width:height such as '16:9'"), least=1),
    "data.buckets.frames": several(whole(2), least=1),
    "data.buckets.max_fps": several(number(above=0), least=1),
    "data.buckets.rates": several(number(above=0)),
    "data.buckets.max_upscale": number(0),
    "data.buckets.weights": several(matching(r".+=\d*\.?\d+", "'PATTERN=NUMBER' of buckets' names")),
    "data.buckets.batch_sizes": several(matching(r".+=[1-9]\d*", "'PATTERN=NUMBER' of buckets' names")),
    "data.tokens_per_batch": whole(0),
    "data.image_fraction": share,
    "data.image_batch_size": whole(1),
    "data.synthetic_fraction": share,
    "data.text_drop_prob": share,
    "data.text_drop_each.*": share,
    "data.max_bad_fraction": share,
    "data.allow_outside": flag,
    "data.workers": whole(1),
    "data.prefetch": whole(0),
    "data.resize": whole(0),
    "data.stride": whole(1),
    "data.flip": flag,
    "loss.l1": number(0),
    "loss.mse": number(0),
    "loss.kl": number(0),
    "loss.lpips": number(0),
    "loss.lpips_weights": text,
    "loss.outlier": number(0),
    "loss.outlier_radius": number(0),
    "loss.outlier_start": whole(0),
    "loss.adversarial.weight": number(0),
    "loss.adversarial.start": whole(0),
    "loss.adversarial.dims": one_of(2, 3),
    "loss.adversarial.channels": whole(1),
    "optim.learning_rate": number(above=0),
    "optim.betas": several(number(0, below=1), 2),
    "optim.eps": number(above=0),
    "optim.weight_decay": number(0),
    "optim.no_decay": pattern,
    "optim.warmup_steps": whole(0),
    "optim.schedule": one_of("constant", "cosine"),
    "optim.final_learning_rate": number(0),
    "optim.clip_norm": number(0),
    "optim.accumulate": whole(1),
    "optim.plateau.factor": share,
    "optim.plateau.patience": whole(1),
    "optim.plateau.min_delta": number(0),
    "optim.plateau.min_learning_rate": number(0),
    "train.steps": whole(1),
    "train.batch_size": whole(1),
    "train.max_bad_steps": whole(1),
    "train.log_every": every,
    "train.checkpoint_every": every,
    "train.validate_every": every,
    "train.keep_checkpoints": whole(1),
    "train.keep_every": whole(0),
    "train.keep_best": flag,
    "train.time_logit_mean": number(),
    "train.init_from": text,
    "train.zero_stage": whole(0, 3),
    "train.offload_optimizer": flag,
    "train.rank_timeout": number(above=0),
    "train.recompute": recompute,
    "train.peak_tflops": number(0),
    "train.profile_steps": either(
        several(whole(1), 2), Rule("() for none", lambda v: isinstance(v, tuple | list) and not v)
    ),
    "train.recompute_levels": several(whole(0)),
    "train.linear_start": whole(0),
    "ema.decay": number(0, below=1),
    "valid.prompts": several(filled),
    "valid.every": every,
    "sample.steps": whole(1),
    "sample.schedule": one_of("linear", "linear_quadratic"),
    "sample.guidance_scale": number(0),
    "sample.num_frames": whole(1),
    "sample.height": size,
    "sample.width": size,
    "sample.fps": number(above=0),
    "sample.batch_size": whole(1),
    "sample.checkpoint": text,
    "sample.prompts": several(text),
    "samples_per_prompt": whole(1),  # of the demo's stage `sample`
    "curate.scores": several(one_of("border", "cuts", "sharpness", "motion", "duplicates")),
    "curate.rate": number(above=0, high=60),
    "curate.seconds": Rule("a tuple of 2 numbers of at least 0, the first at most the second", _is_range, (1.0,)),
    "curate.min_side": whole(0),
    "curate.landscape": flag,
    "curate.max_border": share,
    "curate.cuts": one_of("split", "drop"),
    "curate.cut_levels": number(above=0, high=255),
    "curate.min_sharpness": number(0),
    "curate.min_motion": number(0),
    "curate.max_motion": number(0),
    "curate.max_static": share,
    "curate.duplicate_bits": whole(0, 10),  # more and pictures of different things are alike, and the search gets slow
    "curate.shown": whole(1),
    "evaluate.weights": text,
    "evaluate.csv": text,
    "evaluate.video_folder": text,
    "evaluate.num_frames": whole(0),
    "evaluate.max_clips": whole(0),
    "evaluate.lpips_weights": text,
    "evaluate.features": text,
    "evaluate.linear_baseline": flag,
    "look.count": whole(1),
    "export.checkpoint": text,
    "export.weights": one_of("ema", "params"),
    "export.dtype": one_of("float32", "bfloat16", "float16"),
    "export.shard_bytes": whole(1),
    "convert.kind": one_of("transformer", "tae", "lpips"),
    "convert.source": text,
    "convert.heads": text,
    "convert.target": text,
    "convert.naming": one_of("moviegen", "seed", "diffusers"),
    "import_weights.path": text,
    "average_weights.checkpoints": several(filled),
    "average_weights.weights": several(number(above=0)),
    "runtime.jit_level": one_of("O0", "O1"),
    "runtime.deterministic": flag,
    "runtime.conv_allow_hf32": flag,
    "runtime.hccl_buffer_mb": whole(1),
    "runtime.hccl_connect_timeout": whole(120, 7200),  # HCCL's own range, in seconds
    "plan.card": one_of("", "910B2", "910B3", "910B4", "910C", "CPU"),
    "plan.check": flag,
    "plan.job": one_of("", "train", "train_tae", "sample"),
    "plan.cards": whole(0),
}

# What a job needs beyond that of a key.
OWN_PROMPTS = Rule(
    "nothing: the demo's samples have prompts of their own; --job=sample takes others (docs/demo.md)", lambda v: not v
)
JOB_RULES: dict[str, dict[str, Rule]] = {
    "train": {"data.num_frames": whole(1)},
    "train_tae": {"data.num_frames": whole(1)},
    "sample": {"sample.prompts": several(text, least=1)},
    "encode_video": {"data.latent_folder": filled},
    "check_data": {"data.num_frames": whole(1)},
    "demo": {"sample.prompts": OWN_PROMPTS},
}

_TRAINING = """seed optim.learning_rate optim.betas optim.eps optim.weight_decay optim.no_decay optim.warmup_steps
    optim.schedule optim.final_learning_rate optim.clip_norm train.steps train.batch_size train.max_bad_steps train.log_every
    train.checkpoint_every train.validate_every train.keep_checkpoints train.keep_every train.keep_best train.zero_stage
    train.init_from ema.decay data.source data.height data.width data.num_frames data.image_fraction"""
_VIDEOS = "data.csv data.video_folder"
_EMBEDDINGS = "data.text_folders data.empty_text"
# Sections and keys that an experiment must have for a job; "JOB/SOURCE": for a data.source too.
NEEDS = {
    "train": f"""{_TRAINING} model tae data.text_drop_prob data.latent_folder data.tae_weights data.max_bad_fraction
        optim.accumulate train.time_logit_mean train.offload_optimizer train.recompute""",
    "train/csv": f"data.csv data.validation_csv {_EMBEDDINGS}",
    "train/synthetic": "data.num_samples",
    "train_tae": f"{_TRAINING} tae loss data.image_batch_size",
    "train_tae/csv": _VIDEOS,
    "train_tae/clips": "data.synthetic_fraction",
    "sample": "seed model tae sample data.source data.tae_weights train.zero_stage",
    "sample/csv": _EMBEDDINGS,
    "encode_text": """text model data.text_folders data.csv data.max_bad_fraction data.latent_folder data.video_folder data.fps
        data.num_frames sample.fps sample.num_frames train.zero_stage""",
    "encode_video": f"""tae data.latent_folder data.tae_weights data.height data.width data.num_frames data.fps
        data.max_bad_fraction {_VIDEOS}""",
    "check_data": f"data.height data.width data.num_frames data.image_fraction train.batch_size {_VIDEOS}",
    "look": "look seed tae data.source data.latent_folder data.tae_weights",
    "fetch_text_encoder": "text",
    "curate": f"curate {_VIDEOS}",
    "evaluate": "evaluate tae data.height data.width",
    "export": "export model",
    "import_weights": "import_weights model tae data.source data.num_frames",
    "train_stages": "stages order train.zero_stage train.rank_timeout",
    "average_weights": "average_weights model tae data.source data.num_frames",
    "convert": "convert",
    "hello_card": "",
    "plan": "",
    "demo": "stages sample model tae data optim train ema",
    "audit_ascend": "tae data optim train",  # and what the experiment's own job needs
}
TAKE = dict.fromkeys(NEEDS, "experiments/1b_stage1.py") | {
    "train_tae": "experiments/tae.py",
    "evaluate": "experiments/tae.py",
    "convert": "experiments/tae.py or experiments/1b_stage1.py",
    "demo": "experiments/tiny.py",
    "train_stages": "experiments/tiny_stages.py",
}
# The demo's stages that train, and the job whose settings each of them has.
STAGES = {"tae": "train_tae", "t2i": "train", "t2v": "train"}
LINEAR_QUADRATIC_STEPS = 250  # which that schedule stands for (flow.schedule)


def rule(key: str) -> Rule | None:
    """Returns the rule of a dotted key, where it has one; a stage's key has that of the key that it stands over."""
    key = re.sub(r"^stages\.[^.]+\.", "", key)
    return RULES.get(key) or RULES.get(f"{key.rpartition('.')[0]}.*")


def missing(values: Mapping[str, Any], job: str, ranks: int = 1) -> list[str]:
    """Returns the sections and keys that a job on so many ranks needs and `values` does not have."""
    source = values.get("data.source")
    needed = f"{NEEDS.get(job, '')} {NEEDS.get(f'{job}/{source}', '')}".split()
    if job == "train" and values.get("valid.prompts"):
        needed += ["valid.every", "sample"]
    if ranks > 1:
        needed.append("train.rank_timeout")
    return [key for key in needed if key not in values and not any(have.startswith(f"{key}.") for have in values)]


def broken(values: Mapping[str, Any], job: str) -> dict[str, str]:
    """Returns {key: what is wrong with it} of all values that break a rule of their key or of the job."""
    found = {}
    for key, value in values.items():
        for each in (rule(key), JOB_RULES.get(job, {}).get(key)):
            if each and not each.holds(value) and key not in found:
                found[key] = f"is {value!r}, expected {each.words}"
    most = LINEAR_QUADRATIC_STEPS if values.get("sample.schedule") == "linear_quadratic" else math.inf
    if "sample.steps" not in found and values.get("sample.steps", 0) > most:
        found["sample.steps"] = (
            f"is {values['sample.steps']}, expected at most {most}: sample.schedule is 'linear_quadratic'"
        )
    previews = job == "train" and values.get("valid.prompts")
    return found | _unfit(values, job, found) | (_unfit(values, "sample", found) if previews else {})


def _unfit(values: Mapping[str, Any], job: str, broken: Mapping[str, str]) -> dict[str, str]:
    """Sizes of a video that the generator cannot take, where the settings of it hold by themselves."""
    section = {"train": "data", "encode_video": "data", "sample": "sample"}.get(job)
    patch, lengths = values.get("model.patch_size"), values.get("model.position_lengths")
    in_buckets = section == "data" and values.get("data.buckets.resolution")  # parallel/buckets.py tells of theirs
    if not section or not patch or in_buckets or {"model.patch_size", "model.position_lengths"} & broken.keys():
        return {}
    found, frames = {}, 1 if values.get(f"{section}.image_fraction") == 1 else values.get(f"{section}.num_frames")
    for axis, side in enumerate(("num_frames", "height", "width")):
        key = f"{section}.{side}"
        value = values.get(key) if axis else frames
        if key in broken or not value:
            continue
        latents = -(-value // 8)
        if latents % patch[axis]:
            found[key] = f"is {value}, expected a multiple of {8 * patch[axis]}: 8 x model.patch_size"
        elif job != "encode_video" and latents // patch[axis] > lengths[axis]:
            most = 8 * patch[axis] * lengths[axis]
            found[key] = f"is {value}, expected at most {most}: model.position_lengths is {tuple(lengths)}"
    return found
