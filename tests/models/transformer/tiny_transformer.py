"""A very small transformer for the tests: configs, parameters, inputs, and the same model written in numpy."""

import numpy as np
from ml_collections import ConfigDict

from moviegen.models.transformer.shapes import shapes

DIMS = {"ul2": 24, "metaclip": 20, "byt5": 12}
LENGTHS = {"ul2": 5, "metaclip": 4, "byt5": 3}


def config(**overrides):
    settings = dict(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        ffn_size=24,
        latent_channels=3,
        patch_size=(1, 2, 2),
        position_lengths=(3, 4, 5),
        text_dims=DIMS,
        norm_eps=1e-5,
        cross_attention_norm=True,
        text_norm="layer",
        weight_std=0.05,
        position_std=0.3,
    )
    return ConfigDict(settings | overrides)


def seed_config():
    return config(cross_attention_norm=False, text_norm="rms")


def random_params(cfg, seed=0):
    """Every parameter random and of effect: at init the output projection and the shared modulation are zero."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in shapes(cfg).items():
        value = rng.standard_normal(shape)
        if path.endswith("/norm"):
            value = 1 + 0.3 * value
        elif len(shape) == 2 and not path.startswith("position/"):
            value = value * shape[1] ** -0.5
        params[path] = value.astype(np.float32)
    return params


def inputs(masked=True, batch=2, frames=2, seed=1):
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((batch, 3, frames, 4, 6)).astype(np.float32)
    t = rng.uniform(0.1, 0.9, batch).astype(np.float32)
    text = {}
    for name, length in LENGTHS.items():
        mask = np.arange(length) < rng.integers(1, length, (batch, 1)) if masked else None
        text[name] = rng.standard_normal((batch, length, DIMS[name])).astype(np.float32), mask
    return latents, t, text


def numpy_velocity(p, cfg, latents, t, text):
    """The paper's section 3 written out again, in numpy and float64, one sample and one head at a time."""
    p = {path: np.asarray(value, np.float64) for path, value in p.items()}
    d, heads = cfg.hidden_size, cfg.num_heads

    def rms(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * scale

    def silu(x):
        return x / (1 + np.exp(-x))

    def attend(x, source, path, allowed):
        q, k, v = x @ p[path + "/q"].T, source @ p[path + "/k"].T, source @ p[path + "/v"].T
        out = []
        for columns in np.split(np.arange(d), heads):
            scores = np.exp(q[:, columns] @ k[allowed][:, columns].T / np.sqrt(d // heads))
            out.append(scores / scores.sum(1, keepdims=True) @ v[allowed][:, columns])
        return np.concatenate(out, 1) @ p[path + "/o"].T

    velocities = np.zeros_like(latents, dtype=np.float64)
    for n in range(len(latents)):
        _, frames, height, width = latents[n].shape
        cells = [(f, h, w) for f in range(frames) for h in range(height // 2) for w in range(width // 2)]
        patches = [latents[n][:, f, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].reshape(-1) for f, h, w in cells]
        x = np.array(patches) @ p["patch"].T
        pos = np.array([p["position/t"][f] + p["position/h"][h] + p["position/w"][w] for f, h, w in cells])
        angles = 1000 * (1 - np.float64(t[n])) * 10000 ** (-np.arange(128) / 128)
        time = p["time/out"] @ silu(p["time/in"] @ np.concatenate([np.cos(angles), np.sin(angles)]))
        context, allowed = [], []
        for name in ("ul2", "metaclip", "byt5"):
            y = text[name][0][n] @ p[f"text/{name}/proj"].T
            if cfg.text_norm == "layer":
                y = y - y.mean(-1, keepdims=True)
            y = rms(y, p[f"text/{name}/norm"])
            context.append(y + p.get(f"text/{name}/norm_bias", 0))
            allowed.append(np.ones(len(y), bool) if text[name][1] is None else text[name][1][n])
        context, allowed = np.concatenate(context), np.concatenate(allowed)
        for i in range(cfg.num_layers):
            block = f"blocks/{i}/"
            m = p[block + "modulation"] + (p["modulation"] @ silu(time)).reshape(6, d)
            x = x + pos
            y = rms(x, p[block + "attn/norm"]) * (1 + m[1]) + m[0]
            x = x + m[2] * attend(y, y, block + "attn", np.ones(len(y), bool))
            y = rms(x, p[block + "cross/norm"]) if cfg.cross_attention_norm else x
            x = x + attend(y, context, block + "cross", allowed)
            y = rms(x, p[block + "mlp/norm"]) * (1 + m[4]) + m[3]
            hidden = silu(y @ p[block + "mlp/gate"].T) * (y @ p[block + "mlp/up"].T)
            x = x + m[5] * (hidden @ p[block + "mlp/down"].T)
        shift, scale = p["final/modulation"] + time
        out = (rms(x, p["final/norm"]) * (1 + scale) + shift) @ p["final/proj"].T
        for (f, h, w), patch in zip(cells, out, strict=True):
            velocities[n][:, f, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2] = patch.reshape(2, 2, -1).transpose(2, 0, 1)
    return velocities
