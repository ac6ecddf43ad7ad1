"""The three compiled stages of the transformer: prologue, one block for every layer, epilogue.

Every builder is cached on its static settings, so that equal settings give the same function and layerwise.py compiles
it once. Tokens are float32 between stages; matrix products run in `dtype`, norms, softmax, modulation and positions
in float32.
"""

import functools

from mindspore import ops

from moviegen import layers

TIME_WIDTH = 256
MASKED = -1e9  # finite, so that a sample whose text is wholly masked gives numbers


def patchify(latents, patch, channels_first):
    """latents (b c t h w) -> tokens (b n c*p0*p1*p2), features in order (c p0 p1 p2) or, else, (p0 p1 p2 c)."""
    b, c, t, h, w = latents.shape
    p0, p1, p2 = patch
    x = ops.reshape(latents, (b, c, t // p0, p0, h // p1, p1, w // p2, p2))
    order = (0, 2, 4, 6, 1, 3, 5, 7) if channels_first else (0, 2, 4, 6, 3, 5, 7, 1)
    return ops.reshape(ops.transpose(x, order), (b, -1, c * p0 * p1 * p2))


def unpatchify(tokens, patch, grid):
    """tokens (b n p0*p1*p2*c) on a grid (nt, nh, nw) -> latents (b c t h w)."""
    p0, p1, p2 = patch
    nt, nh, nw = grid
    b, c = tokens.shape[0], tokens.shape[2] // (p0 * p1 * p2)
    x = ops.transpose(ops.reshape(tokens, (b, nt, nh, nw, p0, p1, p2, c)), (0, 7, 1, 4, 2, 5, 3, 6))
    return ops.reshape(x, (b, c, nt * p0, nh * p1, nw * p2))


def positions(p, nt, nh, nw):
    """Learned position of every token of a grid, (1 n d): the sum of a temporal, a vertical and a horizontal table."""
    t = ops.expand_dims(ops.expand_dims(p["position/t"][:nt], 1), 1)
    h = ops.expand_dims(p["position/h"][:nh], 1)
    return ops.reshape(t + (h + p["position/w"][:nw]), (1, nt * nh * nw, -1))


def modulate(x, shift, scale):
    """x (b n d) * (1 + scale (b 1 d)) + shift (b 1 d)."""
    n = x.shape[1]
    return x * layers.repeat_rows(1 + scale, n) + layers.repeat_rows(shift, n)


@functools.lru_cache
def make_prologue(patch, encoders, text_norm, eps, masked, dtype):
    """prologue(p, latents, t, *embeddings[, mask (b m 1)]) -> tokens, positions, time, modulation, context.

    latents (b c t h w), t (b,), embeddings (b l width) of each encoder -> tokens (b n d), positions (1 n d), time
    (b d), modulation (b 6d), context (b m d), zero where the mask is: a token nobody may see has no value either.
    """
    projections = tuple(f"text/{name}/proj" for name in encoders)
    scales = tuple(f"text/{name}/norm" for name in encoders)
    biases = tuple(f"text/{name}/norm_bias" for name in encoders)

    def prologue(p, latents, t, *text):
        x = layers.linear(patchify(latents, patch, True), p["patch"], None, dtype)
        pos = positions(p, latents.shape[2] // patch[0], latents.shape[3] // patch[1], latents.shape[4] // patch[2])
        wave = layers.timestep_embedding(1000 * (1 - t), TIME_WIDTH)  # the seed's time runs from 1000, noise, to 0
        time = layers.linear(ops.silu(layers.linear(wave, p["time/in"])), p["time/out"])
        modulation = layers.linear(ops.silu(time), p["modulation"])
        parts = []
        for i in range(len(encoders)):
            y = layers.linear(text[i], p[projections[i]], None, dtype)
            if text_norm == "layer":
                y = layers.layer_norm(y, p[scales[i]], p[biases[i]], eps)
            else:
                y = layers.rms_norm(y, p[scales[i]], eps)
            parts.append(y)
        context = ops.concat(parts, 1)
        if masked:
            context = context * ops.tile(text[len(encoders)], (1, 1, context.shape[2]))
        return ops.cast(x, context.dtype), pos, time, modulation, context

    return prologue


@functools.lru_cache
def make_block(num_heads, eps, cross_attention_norm, masked, dtype):
    """block(p, x (b n d), positions (1 n d), modulation (b 6d), context (b m d)[, mask (b m 1)]) -> x (b n d)."""

    def heads(x):
        b, n, d = x.shape
        return ops.transpose(ops.reshape(x, (b, n, num_heads, d // num_heads)), (0, 2, 1, 3))

    def attend(x, source, q, k, v, o, bias):
        y = layers.attention(
            heads(layers.linear(x, q, None, dtype)),
            heads(layers.linear(source, k, None, dtype)),
            heads(layers.linear(source, v, None, dtype)),
            bias,
        )
        return layers.linear(ops.reshape(ops.transpose(y, (0, 2, 1, 3)), x.shape), o, None, dtype)

    def block(p, x, pos, modulation, context, *mask):
        b, n, d = x.shape
        m = ops.reshape(modulation, (b, 6, d)) + p["modulation"]
        bias = None
        if masked:
            bias = (1 - ops.reshape(mask[0], (b, 1, 1, -1))) * MASKED
        x = x + ops.tile(pos, (b, 1, 1))
        y = modulate(layers.rms_norm(x, p["attn/norm"], eps), m[:, 0:1], m[:, 1:2])
        x = x + layers.repeat_rows(m[:, 2:3], n) * attend(
            y, y, p["attn/q"], p["attn/k"], p["attn/v"], p["attn/o"], None
        )
        y = x
        if cross_attention_norm:
            y = layers.rms_norm(x, p["cross/norm"], eps)
        x = x + attend(y, context, p["cross/q"], p["cross/k"], p["cross/v"], p["cross/o"], bias)
        y = modulate(layers.rms_norm(x, p["mlp/norm"], eps), m[:, 3:4], m[:, 4:5])
        y = layers.swiglu(y, p["mlp/gate"], p["mlp/up"], p["mlp/down"], dtype)
        return x + layers.repeat_rows(m[:, 5:6], n) * y

    return block


def project_out(p, x, time, eps, dtype):
    """tokens (b n d), time (b d) -> velocity of every patch in float32, (b n p0*p1*p2*c)."""
    b, _, d = x.shape
    m = ops.reshape(time, (b, 1, d)) + p["modulation"]
    y = modulate(layers.rms_norm(x, p["norm"], eps), m[:, 0:1], m[:, 1:2])
    return ops.cast(layers.linear(y, p["proj"], None, dtype), x.dtype)


@functools.lru_cache
def make_epilogue(patch, grid, eps, dtype):
    """epilogue(p, x (b n d), time (b d)) -> velocity (b c t h w)."""

    def epilogue(p, x, time):
        return unpatchify(project_out(p, x, time, eps, dtype), patch, grid)

    return epilogue


@functools.lru_cache
def make_loss(patch, eps, dtype):
    """loss(p, x (b n d), time (b d), target (b c t h w)) -> mean squared error, a scalar."""

    def loss(p, x, time, target):
        return ops.mean(ops.square(project_out(p, x, time, eps, dtype) - patchify(target, patch, False)))

    return loss
