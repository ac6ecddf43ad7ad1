"""The same arithmetic in plain torch: `python torch_peer.py CASE FOLDER`, on the arrays that our case left in FOLDER.

A yardstick, not a second implementation to maintain: float32, torch's fused attention, eager mode, no recomputation.
"""

import json
import math
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def sub(p, prefix):
    return {path[len(prefix) + 1 :]: value for path, value in p.items() if path.startswith(prefix + "/")}


# ---- transformer


def modulate(x, scale, eps, shift, gain):
    return F.rms_norm(x, x.shape[-1:], scale, eps) * (1 + gain) + shift


def attend(p, x, source, heads):
    def split(y):
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = split(F.linear(x, p["q"])), split(F.linear(source, p["k"])), split(F.linear(source, p["v"]))
    return F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), p["o"])


def block(p, x, pos, modulation, context, cfg):
    eps, heads = cfg["norm_eps"], cfg["num_heads"]
    m = modulation.view(-1, 6, x.shape[-1]) + p["modulation"]
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = m.split(1, 1)
    x = x + pos
    y = modulate(x, p["attn/norm"], eps, shift_a, scale_a)
    x = x + gate_a * attend(sub(p, "attn"), y, y, heads)
    y = F.rms_norm(x, x.shape[-1:], p["cross/norm"], eps) if cfg["cross_attention_norm"] else x
    x = x + attend(sub(p, "cross"), y, context, heads)
    y = modulate(x, p["mlp/norm"], eps, shift_m, scale_m)
    return x + gate_m * F.linear(F.silu(F.linear(y, p["mlp/gate"])) * F.linear(y, p["mlp/up"]), p["mlp/down"])


def patchify(x, patch, order):
    b, c, t, h, w = x.shape
    x = x.view(b, c, t // patch[0], patch[0], h // patch[1], patch[1], w // patch[2], patch[2])
    return x.permute(order).reshape(b, -1, c * patch[0] * patch[1] * patch[2])


def transformer_loss(p, cfg, a):
    patch, eps, t = cfg["patch_size"], cfg["norm_eps"], a["t"]
    time_ = t.view(-1, 1, 1, 1, 1)
    noisy = time_ * a["latents"] + (1 - (1 - 1e-5) * time_) * a["noise"]
    target = a["latents"] - (1 - 1e-5) * a["noise"]
    x = F.linear(patchify(noisy, patch, (0, 2, 4, 6, 1, 3, 5, 7)), p["patch"])
    nt, nh, nw = (n // q for n, q in zip(noisy.shape[2:], patch, strict=True))
    tables = p["position/t"][:nt, None, None] + p["position/h"][:nh, None] + p["position/w"][:nw]
    pos = tables.flatten(0, 2)
    angles = 1000 * (1 - t)[:, None] * 10000.0 ** (-torch.arange(128) / 128)
    e = F.linear(F.silu(F.linear(torch.cat((angles.cos(), angles.sin()), 1), p["time/in"])), p["time/out"])
    modulation = F.linear(F.silu(e), p["modulation"])
    context = []
    for name in ("ul2", "metaclip", "byt5"):
        y = F.linear(a[f"text/{name}"], p[f"text/{name}/proj"])
        context.append(F.layer_norm(y, y.shape[-1:], p[f"text/{name}/norm"], p[f"text/{name}/norm_bias"], eps))
    context = torch.cat(context, 1)
    for i in range(cfg["num_layers"]):
        x = block(sub(p, f"blocks/{i}"), x, pos, modulation, context, cfg)
    shift, gain = (e[:, None] + p["final/modulation"]).split(1, 1)
    velocity = F.linear(modulate(x, p["final/norm"], eps, shift, gain), p["final/proj"])
    return F.mse_loss(velocity, patchify(target, patch, (0, 2, 4, 6, 3, 5, 7, 1)))


# ---- text encoder


def t5_encode(p, cfg, ids, mask):
    n, heads, eps, half = ids.shape[1], cfg["num_heads"], cfg["norm_eps"], cfg["distance_buckets"] // 2
    distance = torch.arange(n)[None] - torch.arange(n)[:, None]
    far = half // 2 + torch.log(distance.abs() / (half // 2)) / math.log(cfg["max_distance"] / (half // 2)) * (
        half // 2
    )
    near = distance.abs() < half // 2
    bucket = torch.where(near, distance.abs(), far.clamp(0, half - 1).long()) + half * (distance > 0)
    bias = F.embedding(bucket, p["distance"]).permute(2, 0, 1)[None] + (1 - mask[:, None, None]) * -1e9
    x = F.embedding(ids.long(), p["embedding"])
    for i in range(cfg["num_layers"]):
        b = sub(p, f"blocks/{i}")
        y = F.rms_norm(x, x.shape[-1:], b["attn/norm"], eps)
        q, k, v = (F.linear(y, b[f"attn/{c}"]).unflatten(-1, (heads, -1)).transpose(1, 2) for c in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        x = x + F.linear(y.transpose(1, 2).flatten(2), b["attn/o"])
        y = F.rms_norm(x, x.shape[-1:], b["mlp/norm"], eps)
        y = F.gelu(F.linear(y, b["mlp/gate"]), approximate="tanh") * F.linear(y, b["mlp/up"])
        x = x + F.linear(y, b["mlp/down"])
    return F.rms_norm(x, x.shape[-1:], p["final/norm"], eps)


# ---- temporal autoencoder


def conv(p, x, padding=1):
    return temporal(p, F.conv3d(x, p["spatial/w"][:, :, None], p["spatial/b"], padding=(0, padding, padding)))


def temporal(p, x, stride=1):
    if p["temporal/w"].shape[2] == 3:
        x = torch.cat((x[:, :, :1], x, x[:, :, -1:]), 2)
    return F.conv3d(x, p["temporal/w"][..., None, None], p["temporal/b"], stride=(stride, 1, 1))


def norm_conv(p, x, norm, name, groups):
    x = F.group_norm(x, groups, p[f"{norm}/scale"], p[f"{norm}/bias"], 1e-6)
    return conv(sub(p, name), F.silu(x))


def res_block(p, x, groups):
    h = norm_conv(p, norm_conv(p, x, "norm1", "conv1", groups), "norm2", "conv2", groups)
    return h + (conv(sub(p, "shortcut"), x, 0) if "shortcut/spatial/w" in p else x)


def pixel_attention(p, x, groups, order, back):
    h = F.group_norm(x, groups, p["norm/scale"], p["norm/bias"], 1e-6).permute(order)
    rows = h.flatten(2, 3) if order[1] == 2 else h
    q, k, v = (F.linear(rows, p[f"{n}/w"], p[f"{n}/b"]) for n in "qkv")
    out = F.linear(F.scaled_dot_product_attention(q, k, v), p["out/w"], p["out/b"])
    return x + out.reshape(h.shape).permute(back)


def mid(p, x, groups):
    x = res_block(sub(p, "block/0"), x, groups)
    x = pixel_attention(sub(p, "spatial_attention"), x, groups, (0, 2, 3, 4, 1), (0, 4, 1, 2, 3))
    x = pixel_attention(sub(p, "temporal_attention"), x, groups, (0, 3, 4, 2, 1), (0, 4, 3, 1, 2))
    return res_block(sub(p, "block/1"), x, groups)


def tae_loss(p, cfg, a):
    groups, levels, blocks, c = cfg["norm_groups"], len(cfg["channel_multipliers"]), cfg["num_res_blocks"], 16
    e, d, video = sub(p, "encoder"), sub(p, "decoder"), a["video"]
    x = conv(sub(e, "conv_in"), video)
    for level in range(levels):
        for i in range(blocks):
            x = res_block(sub(e, f"down/{level}/block/{i}"), x, groups)
        if level < levels - 1:
            w = sub(e, f"down/{level}/downsample")
            x = F.conv3d(F.pad(x, (0, 1, 0, 1)), w["spatial/w"][:, :, None], w["spatial/b"], stride=(1, 2, 2))
            x = temporal(w, x, 2)
    x = norm_conv(sub(e, "head"), mid(sub(e, "mid"), x, groups), "norm", "conv", groups)
    mean, logvar = x[:, :c], x[:, c:].clamp(-30, 20)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    x = mid(sub(d, "mid"), conv(sub(d, "conv_in"), mean + (0.5 * logvar).exp() * a["noise"]), groups)
    for level in reversed(range(levels)):
        for i in range(blocks + 1):
            x = res_block(sub(d, f"up/{level}/block/{i}"), x, groups)
        if level:
            w = sub(d, f"up/{level}/upsample")
            x = F.conv3d(
                F.interpolate(x, scale_factor=(1, 2, 2)), w["spatial/w"][:, :, None], w["spatial/b"], padding=(0, 1, 1)
            )
            x = temporal(w, F.interpolate(x, scale_factor=(2, 1, 1)))
    diff = norm_conv(sub(d, "head"), x, "norm", "conv", groups)[:, :, : video.shape[2]] - video
    weights = cfg["weights"]
    return weights["l1"] * diff.abs().mean() + weights["mse"] * diff.square().mean() + weights["kl"] * kl


# ---- measurement


def make_step(name, cfg, arrays):
    if name.startswith("attention"):

        def attention():
            with torch.no_grad():
                return None, [F.scaled_dot_product_attention(arrays["q"], arrays["k"], arrays["v"])]

        return attention
    if name.startswith("byt5"):

        def encode():
            with torch.no_grad():
                return None, [t5_encode(sub(arrays, "params"), cfg, arrays["ids"], arrays["mask"])]

        return encode
    params = {path: value.requires_grad_() for path, value in sub(arrays, "params").items()}
    loss_fn = tae_loss if name.startswith("tae") else transformer_loss
    train = cfg.get("train", False)
    optimizer = torch.optim.AdamW(params.values(), lr=0.0, weight_decay=0.1, fused=True) if train else None
    ema = [value.detach().clone() for value in params.values()] if train else None

    def step():
        loss = loss_fn(params, cfg, arrays)
        grads = torch.autograd.grad(loss, list(params.values()))
        if train:
            kept = [g.clone() for g in grads]
            for value, g in zip(params.values(), grads, strict=True):
                value.grad = g
            torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
            optimizer.step()
            torch._foreach_lerp_(ema, [value.detach() for value in params.values()], 0.001)
            grads = kept
        return loss, grads

    return step


def main(name, folder):
    cfg = json.loads(Path(folder, "settings.json").read_text())
    arrays = {key: torch.from_numpy(value) for key, value in np.load(Path(folder, "arrays.npz")).items()}
    step, seconds = make_step(name, cfg, arrays), []
    for _ in range(1 + cfg["repeats"]):
        start = time.perf_counter()
        loss, grads = step()
        seconds.append(time.perf_counter() - start)
    result = {"first_seconds": seconds[0], "seconds": statistics.median(seconds[1:])}
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if loss is not None:
        result["loss"] = loss.item()
    result["gradient_norm"] = float(torch.stack([g.double().square().sum() for g in grads]).sum().sqrt())
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
