"""What each stage of the demo does: it trains or samples, and measures what came of it. Each has its own process."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import einops
import numpy as np

from moviegen.data import clips, synthetic, video
from moviegen.demo import report as reports
from moviegen.evaluation import baselines, metrics, reconstruction
from moviegen.models.tae import weights as tae_weights
from moviegen.runner import Run
from moviegen.sampling.sampler import Request, Sampler, begin, write
from moviegen.storage import files
from moviegen.training import autoencoder, generator

Codec = Callable[[np.ndarray], np.ndarray]  # uint8 (t h w c) -> the same, encoded and decoded

ATTRIBUTES = ("colour", "shape", "direction")
LINEAR_CLIPS = 160  # synthetic ones that the linear code is fitted to, beside all real training clips
HELDOUT_CLIPS = 32  # every held-out combination twice
SHOWN = ("rabbit-meadow", "traffic")  # training clips that the report shows beside the held-out one
SHOWN_FRAMES = 48


def tae(config: Any, workdir: str) -> dict[str, float]:
    """Trains the autoencoder some more, then measures it beside both baselines on clips that it was not trained on.

    Writes `reconstructions/NAME.mp4`: original, pool, linear, autoencoder side by side.
    """
    config = config.copy_and_resolve_references()
    config.train.init_from = config.train.init_from or str(tae_weights.configured(config))
    autoencoder.train(Run(config, Path(workdir), stage="tae"))
    params = tae_weights.load(Path(workdir) / "tae.safetensors", config.tae)
    frames, size = config.data.num_frames, (config.data.height, config.data.width)
    drawn = [synthetic.sample_clip(config.seed, i, "train", frames, size)[0] for i in range(LINEAR_CLIPS)]
    heldout = [synthetic.sample_clip(config.seed, i, "heldout", frames, size)[0] for i in range(HELDOUT_CLIPS)]
    # PCA is fitted to the autoencoder's own kinds of training data.
    code = baselines.fit_linear([*clips.training_videos(config.data.height), *drawn], config.tae.latent_channels)
    codecs = {
        "pool": baselines.pool,
        "linear": functools.partial(baselines.linear, code),
        "tae": functools.partial(reconstruction.roundtrip, params, config.tae),
    }
    print(
        f"tae: measuring {len(heldout)} held-out synthetic clips and {clips.HELDOUT}, beside both baselines", flush=True
    )
    found = _compare({"synthetic": heldout, "heldout": _pieces(clips.heldout_clip(size=size), config)}, codecs)
    found |= _judged_through(codecs["tae"], heldout, config)
    shots = {clip.name: clip for clip in clips.real_clips()}
    for name in (clips.HELDOUT, *SHOWN):
        pieces = _pieces(clips.read_clip(shots[name], SHOWN_FRAMES, size), config)
        _side_by_side(Path(workdir) / "reconstructions" / f"{name}.mp4", pieces, codecs)
    return found


def t2i(config: Any, workdir: str) -> dict[str, float]:
    """Text to image."""
    return generator.train(Run(config, Path(workdir), stage="t2i"))


def t2v(config: Any, workdir: str) -> dict[str, float]:
    """Text to video, joint with images."""
    return generator.train(Run(config, Path(workdir), stage="t2v"))


def sample(config: Any, workdir: str) -> dict[str, float]:
    """Samples held-out prompts (or the clips' captions), measures each, and writes samples.json beside the videos."""
    wanted = _prompts(config)
    requests = [Request(prompt, index) for index, (prompt, _) in enumerate(wanted)]
    sampler, verdicts = Sampler(Run(config, Path(workdir))), []
    begin(Path(workdir) / "samples", sampler, requests)
    for request, pieces in sampler.sample(requests):
        frames = np.concatenate(list(pieces))
        base = write(Path(workdir) / "samples", request, [frames], len(frames), config.sample.fps)
        verdict = _verdict(config, wanted[request.index][1], frames)
        verdicts.append({"prompt": request.prompt, "file": base.name} | verdict)
    files.write_text(json.dumps(verdicts, indent=1), Path(workdir) / "samples.json")
    if config.data.source == "clips":
        for name, clip in _originals(config).items():
            video.write_mp4(Path(workdir) / "originals" / f"{name}.mp4", clip, config.sample.fps)
        return {"clips.matched": sum(v["matched"] for v in verdicts), "clips.total": len(verdicts)}
    right = {key: np.mean([v["seen"][key] == v["wanted"][key] for v in verdicts]) for key in ATTRIBUTES}
    return {f"prompts.{key}": float(rate) for key, rate in right.items()} | {"prompts.samples": len(verdicts)}


def report(config: Any, workdir: str) -> dict[str, float]:
    """Writes report.html and report.json beside the stages' folders."""
    return reports.build(config, Path(workdir).parent)


def _compare(sets: dict[str, list[np.ndarray]], codecs: dict[str, Codec]) -> dict[str, float]:
    """Mean PSNR and SSIM of each codec on each set: `tae.heldout_psnr`, `tae.baseline_psnr`, `tae.linear_psnr`, ...

    Of the set "heldout" only the autoencoder's numbers carry the set's name.
    """
    found = {}
    for which, before in (("heldout", ""), ("synthetic", "synthetic_")):
        for codec, name in (("tae", which), ("pool", f"{before}baseline"), ("linear", f"{before}linear")):
            measured = [reconstruction.measure(clip, codecs[codec](clip)) for clip in sets[which]]
            found |= {f"tae.{name}_{metric}": float(np.mean([m[metric] for m in measured])) for metric in measured[0]}
    return found


def _judged_through(codec: Codec, heldout: Iterable[np.ndarray], config: Any) -> dict[str, float]:
    """How often the judge is right on real held-out clips after the autoencoder: what no sample can be better than."""
    right = []
    for i, clip in enumerate(heldout):
        wanted = synthetic.sample_combination(config.seed, i, "heldout")
        right.append([a == b for a, b in zip(synthetic.judge(codec(clip)), wanted, strict=True)])
    return {f"tae.judged_{key}": float(rate) for key, rate in zip(ATTRIBUTES, np.mean(right, 0), strict=True)}


def _pieces(clip: np.ndarray, config: Any) -> list[np.ndarray]:
    """A long clip in pieces of the length that is trained on, so that one compiled shape does for all."""
    length = config.data.num_frames
    return [clip[start : start + length] for start in range(0, len(clip) - length + 1, length)]


def _side_by_side(path: Path, pieces: list[np.ndarray], codecs: dict[str, Codec]) -> None:
    clip = np.concatenate(pieces)
    gap = np.full((len(clip), clip.shape[1], 4, 3), 255, np.uint8)
    panels = [clip]
    for codec in codecs.values():
        panels += [gap, np.concatenate([codec(piece) for piece in pieces])]
    # Twice as large: players blur small videos, H.264 blurs their colours.
    wide = einops.repeat(np.concatenate(panels, 2), "t h w c -> t (h 2) (w 2) c")
    video.write_mp4(path, wide, 12)


def _prompts(config: Any) -> list[tuple[str, Any]]:
    """(prompt, what it must show) of every sample: a combination, or a clip's name."""
    if config.data.source == "clips":
        found = [(clip.caption, clip.name) for clip in clips.captioned_clips()]
    else:
        found = [(synthetic.caption(each), each) for each in synthetic.combinations("heldout")]
    return found * config.samples_per_prompt


def _verdict(config: Any, wanted: Any, frames: np.ndarray) -> dict:
    if config.data.source == "clips":
        scores = {name: metrics.mean_psnr(clip, frames) for name, clip in _originals(config).items()}
        nearest = max(scores, key=scores.get)
        return {"wanted": wanted, "nearest": nearest, "psnr": scores[wanted], "matched": nearest == wanted}
    seen = synthetic.judge(frames)
    return {key: dict(zip(ATTRIBUTES, values, strict=True)) for key, values in (("wanted", wanted), ("seen", seen))}


def _originals(config: Any) -> dict[str, np.ndarray]:
    frames, size = config.sample.num_frames, (config.sample.height, config.sample.width)
    return {clip.name: clips.read_clip(clip, frames, size) for clip in clips.captioned_clips()}
