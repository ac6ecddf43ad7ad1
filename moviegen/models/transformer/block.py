"""One block of the transformer, composed of parts that are compiled together, or each by itself.

The parts are cut at the matrix products: what a part gives is kept, and its way back computes it no second time, as the
gradient of a product needs its factors alone. Only attention, whose result goes into a product of the same part, norms and
what is elementwise are computed again.
"""

import functools

from mindspore import ops

from moviegen.nn import kernels, layers
from moviegen.nn.layerwise import Fn, Part
from moviegen.parallel import collectives


def modulate(x, shift, scale):
    """x (b n d) * (1 + scale (b 1 d)) + shift (b 1 d)."""
    n = x.shape[1]
    return x * kernels.repeated_rows(1 + scale, n) + kernels.repeated_rows(shift, n)


def make_heads(num_heads):
    """heads(x (b n d)) -> (b h n d/h)."""

    def heads(x):
        b, n, d = x.shape
        return ops.transpose(ops.reshape(x, (b, n, num_heads, d // num_heads)), (0, 2, 1, 3))

    return heads


@functools.lru_cache
def make_keys(num_heads, name, dtype):
    """keys(p, x (b n d)) -> keys and values (b h n d/h) of a block's attention "attn", or "cross", of the text."""
    heads = make_heads(num_heads)

    def keys(p, x):
        k, v = layers.linear(x, p[name + "/k"], None, dtype), layers.linear(x, p[name + "/v"], None, dtype)
        return heads(k), heads(v)

    return keys


def place(p, x, pos, modulation):
    """x (b n d), positions (1 n d), modulation (b 6d) -> x with positions, and six (b 1 d): shift, scale, gate, twice."""
    b, _, d = x.shape
    m = layers.pieces(ops.reshape(modulation, (b, 6, d)) + p["modulation"], 6, 1)
    return x + kernels.repeated(pos, (b, 1, 1)), *m


def add_gated(p, x, y, gate):
    """x (b n d) + gate (b 1 d) * y (b n d)."""
    return x + kernels.repeated_rows(gate, x.shape[1]) * y


@functools.lru_cache
def block_parts(num_heads, patches, group, eps, cross_attention_norm, masked, dtype) -> tuple[Part, ...]:
    """The parts of `make_block`, in the order of `compose`'s arguments.

    x is this rank's shard of a sequence of `patches`; how these lie in a picture no block knows, so pictures of as many
    patches share their graphs. For self-attention the ranks of the `group` exchange: all tokens of some heads for some tokens
    of all heads, and back (Ulysses). The text is on every rank, and not exchanged.
    """
    to_heads = collectives.all_to_all(group, 1, 2)
    to_tokens = collectives.all_to_all(group, 2, 1)
    heads, own_keys = make_heads(num_heads), make_keys(num_heads, "attn", dtype)

    def joined(y, w):
        b, h, n, d = y.shape
        return layers.linear(ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (b, n, h * d)), w, None, dtype)

    def queries(p, x, shift, scale):
        y = modulate(layers.rms_norm(x, p["attn/norm"], eps), shift, scale)
        k, v = own_keys(p, y)
        q, k, v = to_heads(heads(layers.linear(y, p["attn/q"], None, dtype))), to_heads(k), to_heads(v)
        return q, layers.cut(k, 0, patches, 2), layers.cut(v, 0, patches, 2)  # nobody attends to padding

    def attend(p, q, k, v):
        return joined(to_tokens(layers.attention(q, k, v)), p["attn/o"])

    def text_queries(p, x):
        y = layers.rms_norm(x, p["cross/norm"], eps) if cross_attention_norm else x
        return heads(layers.linear(y, p["cross/q"], None, dtype))

    def attend_text(p, x, q, k, v, *mask):
        seen = ops.reshape(mask[0], (x.shape[0], 1, 1, -1)) if masked else None
        return x + joined(layers.attention(q, k, v, seen), p["cross/o"])

    def widen(p, x, shift, scale):
        y = modulate(layers.rms_norm(x, p["mlp/norm"], eps), shift, scale)
        return layers.linear(y, p["mlp/gate"], None, dtype), layers.linear(y, p["mlp/up"], None, dtype)

    def narrow(p, gate, up):
        return layers.linear(kernels.silu(gate) * up, p["mlp/down"], None, dtype)

    return (
        Part(make_keys(num_heads, "cross", dtype), ("cross/k", "cross/v")),
        Part(place, ("modulation",), adds=True),
        Part(queries, ("attn/norm", "attn/q", "attn/k", "attn/v")),
        Part(attend, ("attn/o",)),
        Part(add_gated, (), adds=True),
        Part(text_queries, ("cross/norm", "cross/q") if cross_attention_norm else ("cross/q",)),
        Part(attend_text, ("cross/o",), adds=True, wrt=4),
        Part(widen, ("mlp/norm", "mlp/gate", "mlp/up")),
        Part(narrow, ("mlp/down",)),
    )


def compose(keys, *parts) -> Fn:
    """block(p, x (b n d), positions (1 n d), modulation (b 6d), context (b m d)[, mask (b m 1)]) -> x (b n d)."""
    keyed = compose_keyed(*parts)

    def block(p, x, pos, modulation, context, *mask):
        k, v = keys(p, context)
        return keyed(p, x, pos, modulation, k, v, *mask)

    return block


def compose_keyed(place, queries, attend, add_gated, text_queries, attend_text, widen, narrow) -> Fn:
    """keyed(p, x (b n d), positions (1 n d), modulation (b 6d), k, v (b h m d/h)[, mask (b m 1)]) -> x (b n d).

    k and v are the text's.
    """

    def keyed(p, x, pos, modulation, k, v, *mask):
        x, shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = place(p, x, pos, modulation)
        q, own_k, own_v = queries(p, x, shift, scale)
        x = add_gated(p, x, attend(p, q, own_k, own_v), gate)
        x = attend_text(p, x, text_queries(p, x), k, v, *mask)
        wide, up = widen(p, x, mlp_shift, mlp_scale)
        return add_gated(p, x, narrow(p, wide, up), mlp_gate)

    return keyed


@functools.lru_cache
def make_block(*settings) -> Fn:
    """A whole block as one function, of `block_parts`' settings."""
    return compose(*(part.fn for part in block_parts(*settings)))


@functools.lru_cache
def make_keyed_block(*settings) -> Fn:
    """The same without what sees the text alone."""
    return compose_keyed(*(part.fn for part in block_parts(*settings)[1:]))
