"""The measured cases: each builds its arrays from a fixed seed and says what to call. MindSpore is imported inside."""

import itertools
import json
import math
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import data_pipelines


class Work(NamedTuple):
    """What a case measures: `step()` -> (loss or None, {name: gradient}); torch's peer gets `arrays` and `settings`.

    Where there is a `peer`, it does by other means what the step is measured against, in turns with it.
    """

    step: Callable[[], tuple[Any, dict[str, Any]]]
    arrays: dict[str, np.ndarray]
    settings: dict[str, Any]
    peer: Callable[[], Any] | None = None


class Case(NamedTuple):
    """The step of `build(**sizes)` is called `1 + repeats` times."""

    about: str
    build: Callable[..., Work]
    sizes: dict[str, Any]
    repeats: int


def measure_case(case: Case, exchange: Path) -> dict[str, float]:
    """Seconds of the first call and the median of the others, peak resident memory of this process, loss, norm.

    Leaves the case's arrays and settings in `exchange` for the torch peer.
    """
    work = case.build(**case.sizes)
    result = {"before_mb": peak_mb()}
    seconds, of_peer, loss, grads = [], [], None, {}
    for _ in range(1 + case.repeats):
        if work.peer is not None:
            start = time.perf_counter()
            work.peer()
            of_peer.append(time.perf_counter() - start)
        loss, grads = None, {}  # those of one step are not there in the next one, as in training
        start = time.perf_counter()
        loss, grads = work.step()
        grads = {path: g.asnumpy() for path, g in grads.items()}  # waits for the device; on CPU it copies nothing
        seconds.append(time.perf_counter() - start)
    result |= {"first_seconds": seconds[0], "seconds": statistics.median(seconds[1:]), "peak_mb": peak_mb()}
    if of_peer:
        result["peer_seconds"] = statistics.median(of_peer[1:])
    if loss is not None:
        result["loss"] = float(loss.asnumpy())
    result["gradient_norm"] = float(np.sqrt(sum(np.vdot(g, g) for g in grads.values())))
    np.savez(exchange / "arrays.npz", **work.arrays)
    settings = work.settings | {"repeats": case.repeats}
    (exchange / "settings.json").write_text(json.dumps(settings))
    return result


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def transformer(batch: int, grid: tuple[int, int, int], text_tokens: int, recompute: str = "all", **sizes: Any) -> Work:
    """Loss and gradients on latents of `grid` patches (t, h, w), and `text_tokens` of each encoder."""
    from moviegen.models.transformer import step as model_step

    cfg, params, inputs = _transformer(batch, grid, text_tokens, sizes)
    latents, noise, t, text = _tensors(inputs, cfg)

    def step():
        return model_step.loss_and_grads(params, cfg, latents, noise, t, text, recompute=recompute)

    return Work(step, inputs | {f"params/{path}": v.asnumpy() for path, v in params.items()}, json.loads(cfg.to_json()))


def transformer_training_step(batch: int, grid: tuple[int, int, int], text_tokens: int, **sizes: Any) -> Work:
    """What a run does each step: loss, gradients, clipping, AdamW, EMA of the weights."""
    from ml_collections import ConfigDict

    from moviegen.models.transformer import step as model_step
    from moviegen.training import optim

    cfg, params, inputs = _transformer(batch, grid, text_tokens, sizes)
    latents, noise, t, text = _tensors(inputs, cfg)
    arrays = inputs | {f"params/{path}": v.asnumpy().copy() for path, v in params.items()}
    settings = ConfigDict(dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, no_decay="norm", clip_norm=1.0))
    state, ema = optim.init_state(params), {path: v.copy() for path, v in params.items()}
    count = itertools.count()

    def step():
        loss, grads = model_step.loss_and_grads(params, cfg, latents, noise, t, text)
        norm = math.sqrt(sum(optim.means(optim.square_sums(grads))))
        optim.adamw_update(params, grads, state, next(count), 0.0, settings, norm)  # rate 0: every call is the same
        optim.ema_update(ema, params, 0.999)
        return loss, grads

    return Work(step, arrays, json.loads(cfg.to_json()) | {"train": True})


def sampling(batch: int, grid: tuple[int, int, int], text_tokens: int, steps: int, anew: bool, **sizes: Any) -> Work:
    """Velocities at `steps` times, as sampling asks for them: the text's keys and values once, or `anew` at each time."""
    from moviegen.models.transformer import model

    cfg, params, inputs = _transformer(batch, grid, text_tokens, sizes)
    latents, _, _, text = _tensors(inputs, cfg)

    def step():
        context = None if anew else model.attended(params, cfg, text, batch)
        for at in np.linspace(0, 1, steps, dtype=np.float32):
            t = np.full(batch, at)
            found = (
                model.apply(params, cfg, latents, t, text) if anew else model.velocity(params, cfg, latents, t, context)
            )
        return None, {"velocity": found}

    return Work(step, {}, {})


def attention(batch: int, heads: int, tokens: int, width: int) -> Work:
    """Self-attention, forward only."""
    from moviegen.nn import layers, layerwise

    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((batch, heads, tokens, width), dtype=np.float32) for name in "qkv"}

    def attend(p, q, k, v):
        return layers.attention(q, k, v)

    def step():
        return None, {"output": layerwise.run(attend, {}, *arrays.values())}

    return Work(step, arrays, {})


def tae(size: str, batch: int, frames: int, side: int, recompute: tuple[int, ...] = (), **sizes: Any) -> Work:
    """Loss and gradients of the autoencoder on batch x frames x side x side noise, some levels recomputed."""
    from experiments import common
    from moviegen.models.tae import model, step as tae_step

    cfg = common.tae(size, **sizes)
    params = model.init(cfg, 0)
    rng = np.random.default_rng(0)
    video = np.tanh(rng.standard_normal((batch, 3, frames, side, side), dtype=np.float32))
    noise = rng.standard_normal((batch, cfg.latent_channels, -(-frames // 8), side // 8, side // 8), dtype=np.float32)
    weights = {"l1": 1.0, "mse": 1.0, "kl": 1e-6}

    def step():
        losses, grads = tae_step.loss_and_grads(params, cfg, video, noise, weights, recompute=recompute)
        return losses["loss"], grads

    arrays = {"video": video, "noise": noise} | {f"params/{path}": v.asnumpy() for path, v in params.items()}
    return Work(step, arrays, json.loads(cfg.to_json()) | {"weights": weights})


def tae_decode(size: str, frames: int, side: int, **sizes: Any) -> Work:
    """Decoding of random latents, in tiles of 32 frames, a few frames at a time as a video is written."""
    from experiments import common
    from moviegen.models.tae import model, tiles as tae_tiles
    from moviegen.nn import backend

    cfg = common.tae(size, **sizes)
    params = model.init(cfg, 0)
    shape = (1, cfg.latent_channels, frames // 8, side // 8, side // 8)
    latents = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    def step():
        for piece in tae_tiles.stream(params, cfg, latents, frames):
            last = piece
        return None, {"last frames": backend.tensor(last)}

    return Work(step, {}, {})


def byt5(batch: int, tokens: int, **sizes: int) -> Work:
    """ByT5's encoder, forward only, on texts of half to all of `tokens` bytes; random weights."""
    from moviegen.convert import huggingface
    from moviegen.models.text import t5
    from moviegen.nn import backend

    cfg = huggingface.t5_config(sizes | dict(vocab_size=384, feed_forward_proj="gated-gelu"))
    rng = np.random.default_rng(0)
    params = {}
    for path, shape in t5.shapes(cfg).items():
        # The last norm's scales are random too: else every output would have the same norm, and any would pass.
        value = rng.standard_normal(shape, dtype=np.float32)
        params[path] = backend.tensor(value * np.float32(shape[-1] ** -0.5 if len(shape) == 2 else 1))
    ids = rng.integers(3, 259, (batch, tokens), dtype=np.int32)
    mask = (np.arange(tokens) < rng.integers(tokens // 2, tokens + 1, (batch, 1))).astype(np.float32)

    def step():
        return None, {"output": t5.apply(params, cfg, ids, mask)}

    arrays = {"ids": ids, "mask": mask} | {f"params/{path}": v.asnumpy() for path, v in params.items()}
    return Work(step, arrays, json.loads(cfg.to_json()))


def data_pipeline(source: Callable[..., tuple[Callable, Callable]], **sizes: Any) -> Work:
    """What training reads as it reads it, beside the bare reading of the same."""
    read, bare = source(**sizes)

    def step():
        read()
        return None, {}

    return Work(step, {}, {}, bare)


def _transformer(batch: int, grid: tuple[int, int, int], text_tokens: int, sizes: dict) -> tuple[Any, dict, dict]:
    from experiments import common
    from moviegen.models.transformer import model
    from moviegen.nn import backend

    cfg = common.transformer(**{"size": "1b", "compute_dtype": "float32", "position_lengths": grid} | sizes)
    rng = np.random.default_rng(0)
    params = model.init(cfg, 0)
    for path, value in params.items():
        if not value.asnumpy().any():  # what starts at zero would make most gradients zero, and hide differences
            params[path] = backend.tensor(0.02 * rng.standard_normal(value.shape, dtype=np.float32))
    shape = (batch, cfg.latent_channels, *(n * p for n, p in zip(grid, cfg.patch_size, strict=True)))
    inputs = {name: rng.standard_normal(shape, dtype=np.float32) for name in ("latents", "noise")}
    inputs["t"] = rng.random(batch, dtype=np.float32)
    for name, width in cfg.text_dims.items():
        inputs[f"text/{name}"] = rng.standard_normal((batch, text_tokens, width), dtype=np.float32)
    return cfg, params, inputs


def _tensors(inputs: dict[str, np.ndarray], cfg: Any) -> tuple[Any, Any, Any, dict]:
    from moviegen.nn import backend

    text = {name: (backend.tensor(inputs[f"text/{name}"]), None) for name in cfg.text_dims}
    return *(backend.tensor(inputs[name]) for name in ("latents", "noise", "t")), text


def _compile(layers: int) -> Case:
    sizes = dict(hidden_size=64, num_heads=4, ffn_size=128, num_layers=layers)
    about = f"{layers} layers of width 64: the first call is mostly compilation"
    return Case(about, transformer, dict(batch=1, grid=(2, 4, 4), text_tokens=8, **sizes), 3)


_SAMPLING = dict(batch=2, grid=(2, 16, 16), text_tokens=288, steps=10, num_layers=4)
_SAMPLING |= dict(hidden_size=256, num_heads=4, ffn_size=1024)
_FOUR = dict(batch=2, grid=(2, 16, 16), text_tokens=64, hidden_size=256, num_heads=4, ffn_size=1024, num_layers=4)
_SMALL = dict(size="small", batch=1, frames=16, side=128)
_CLIPS = dict(source=data_pipelines.videos, clips=12, frames=32, height=256, width=448, threads=2)

CASES = {
    "transformer_tiny": Case(
        "whole training step of the demo's transformer, 4 x 32 tokens",
        transformer_training_step,
        dict(size="tiny", batch=4, grid=(2, 4, 4), text_tokens=16),
        10,
    ),
    "transformer_4x256": Case(
        "loss and gradients, 4 layers of width 256, 2 x 512 latent and 192 text tokens",
        transformer,
        _FOUR,
        7,
    ),
    "transformer_4x256_kept": Case(
        "the same with train.recompute=none: no product is computed twice",
        transformer,
        _FOUR | dict(recompute="none"),
        7,
    ),
    "sampling_10": Case(
        "10 velocities, 4 layers of width 256, 2 x 512 latent and 864 text tokens",
        sampling,
        _SAMPLING | dict(anew=False),
        3,
    ),
    "sampling_10_anew": Case("the same, the text's keys anew at each", sampling, _SAMPLING | dict(anew=True), 3),
    "attention_14336": Case(
        "attention forward, 14 336 tokens (256 frames at 256x448), 16 heads of 96",
        attention,
        dict(batch=1, heads=16, tokens=14336, width=96),
        1,
    ),
    "tae_small": Case("the full layout at a quarter of its width, 16 x 128 x 128", tae, _SMALL, 2),
    "tae_small_recomputed": Case(
        "the same, keeping one tensor of each level", tae, _SMALL | dict(recompute=(0, 1, 2, 3)), 2
    ),
    "tae_decode": Case(
        "64 frames of 256x256 decoded; the full autoencoder's layout at a quarter of its width",
        tae_decode,
        dict(size="small", frames=64, side=256),
        2,
    ),
    "byt5_small": Case(
        "ByT5-small's encoder (217 M weights), 16 texts of 48 to 96 bytes",
        byt5,
        dict(batch=16, tokens=96, d_model=1472, d_kv=64, d_ff=3584, num_layers=12, num_heads=6),
        5,
    ),
    "tae_tiny": Case(
        "loss and gradients of the demo's TAE, 4 clips of 8 x 32 x 32",
        tae,
        dict(size="tiny", batch=4, frames=8, side=32),
        7,
    ),
    "tae_full": Case(
        "loss and gradients, 119 M weights, 16 frames of 64x64",
        tae,
        dict(size="full", batch=1, frames=16, side=64, compute_dtype="float32"),
        1,
    ),
    "data_pipeline_video": Case(
        "random clips of 32 x 256 x 448 of a 720p video, 2 threads; peer: the same frames, only decoded",
        data_pipeline,
        _CLIPS | dict(stored=(144, 720, 1280)),
        5,
    ),
    "data_pipeline_video_light": Case(
        "the same of a real one of 1.6 Mbit/s, a quarter of the other's",
        data_pipeline,
        _CLIPS | dict(stored="bigbuckbunny.mp4"),
        5,
    ),
    "data_pipeline_latents": Case(
        "48 cached posteriors of 256 frames at 256 x 448, not in the page cache, 2 threads; peer: the same bytes",
        data_pipeline,
        dict(source=data_pipelines.latents, count=48, shape=(16, 32, 32, 56), threads=2),
        5,
    ),
    "compile_8": _compile(8),
    "compile_24": _compile(24),
    "compile_48": _compile(48),
}
