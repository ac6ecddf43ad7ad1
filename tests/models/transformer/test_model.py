import functools

import mindspore as ms
import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen import flow
from moviegen.errors import ConfigError
from moviegen.models.transformer import model as transformer
from moviegen.models.transformer import stages
from moviegen.nn import tree
from moviegen.nn.positions import resize_table

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
    for path, shape in transformer.shapes(cfg).items():
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


def test_init_follows_the_recipe():
    cfg = config(hidden_size=64, num_heads=4, ffn_size=96)
    params = {path: value.asnumpy() for path, value in transformer.init(cfg, 0).items()}
    assert {path: value.shape for path, value in params.items()} == transformer.shapes(cfg)
    for path, value in params.items():
        assert value.dtype == np.float32
        if path.endswith("/norm"):
            assert (value == 1).all()
        elif path.endswith("norm_bias") or path in ("modulation", "final/proj"):
            assert not value.any()
        else:
            std = 1 / 8 if path.endswith("/modulation") else 0.3 if path.startswith("position/") else 0.05
            assert value.std() == pytest.approx(std, rel=5 / value.size**0.5), path
    assert not np.array_equal(params["blocks/0/attn/q"], params["blocks/1/attn/q"])


def test_init_of_a_parameter_depends_on_seed_and_path_alone():
    one, deeper, other = (
        transformer.init(cfg, seed) for cfg, seed in ((seed_config(), 0), (config(num_layers=3), 0), (seed_config(), 1))
    )
    for path in one:
        np.testing.assert_array_equal(one[path].asnumpy(), deeper[path].asnumpy())
    assert not np.array_equal(one["patch"].asnumpy(), other["patch"].asnumpy())


def test_velocity_is_zero_at_init():
    cfg = config()
    assert not transformer.apply(transformer.init(cfg, 0), cfg, *inputs()).asnumpy().any()


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


@pytest.mark.parametrize("cfg", [config(), seed_config()], ids=["paper", "seed"])
@pytest.mark.parametrize("masked", [True, False])
def test_velocity_equals_a_numpy_model(cfg, masked):
    params = random_params(cfg)
    latents, t, text = inputs(masked)
    velocity = transformer.apply(params, cfg, latents, t, text).asnumpy()
    assert velocity.shape == latents.shape
    np.testing.assert_allclose(velocity, numpy_velocity(params, cfg, latents, t, text), atol=2e-4)


def test_true_tokens_are_packed_and_nothing_else_changes(monkeypatch):
    """Of 12 places 6 hold tokens in one sample and 4 in the other: a context of 6, in velocity and gradients the same."""
    cfg = config()
    params = random_params(cfg)
    latents, t, text = inputs()
    for name, mask in zip(
        LENGTHS, ([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], [[1, 1, 0, 0]] * 2, [[1, 0, 0]] * 2), strict=True
    ):
        text[name] = text[name][0], np.array(mask)
    noise = np.random.default_rng(2).standard_normal(latents.shape).astype(np.float32)
    apart = transformer.loss_and_grads(params, cfg, latents, noise, t, text)
    velocity = transformer.apply(params, cfg, latents, t, text).asnumpy()
    monkeypatch.setattr(transformer, "CONTEXT_STEP", 2)
    assert [tuple(x.shape) for x in transformer._check_text(cfg, text, 2)[1]] == [(2, 6, 1), (2, 6)]
    packed = transformer.loss_and_grads(params, cfg, latents, noise, t, text)
    np.testing.assert_allclose(transformer.apply(params, cfg, latents, t, text).asnumpy(), velocity, atol=1e-5)
    np.testing.assert_allclose(velocity, numpy_velocity(params, cfg, latents, t, masks_as_bool(text)), atol=2e-4)
    assert float(packed[0]) == pytest.approx(float(apart[0]), rel=1e-6)
    for path, expected in apart[1].items():
        expected = expected.asnumpy()
        assert abs(expected).max() > 0, path
        np.testing.assert_allclose(packed[1][path].asnumpy(), expected, atol=1e-5 * abs(expected).max(), err_msg=path)
    again = transformer.loss_and_grads(params, cfg, latents, noise, t, text)[1]  # a compiled gradient may be right once
    for path, value in packed[1].items():
        np.testing.assert_array_equal(again[path].asnumpy(), value.asnumpy())


def masks_as_bool(text):
    return {name: (values, np.asarray(mask, bool)) for name, (values, mask) in text.items()}


def whole_loss(cfg, grid, masked):
    """The loss as one function of positional tensors for MindSpore's own autodiff, with no help of layerwise.py."""
    paths = tuple(transformer.shapes(cfg))
    encoders, patch = ("ul2", "metaclip", "byt5"), tuple(cfg.patch_size)
    part, lengths = stages.Part(grid), tuple(cfg.position_lengths)
    prologue = stages.make_prologue(patch, part, lengths, encoders, cfg.text_norm, cfg.norm_eps, masked, "float32")
    block = stages.make_block(cfg.num_heads, part, cfg.norm_eps, cfg.cross_attention_norm, masked, "float32")
    loss = stages.make_loss(patch, part, 1, cfg.norm_eps, "float32")

    def run(noisy, t, target, text, mask, *values):
        p = dict(zip(paths, values, strict=True))
        x, pos, time, modulation, context = prologue(p, noisy, t, *text, *mask)
        for i in range(cfg.num_layers):
            x = block(tree.sub(p, f"blocks/{i}"), x, pos, modulation, context, *mask)
        return loss(tree.sub(p, "final"), x, time, target)

    return paths, run


@pytest.mark.parametrize("cfg", [config(), seed_config()], ids=["paper", "seed"])
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_equal_plain_autodiff_and_none_is_missing(cfg, masked):
    params = random_params(cfg)
    latents, t, text = inputs(masked)
    noise = np.random.default_rng(2).standard_normal(latents.shape).astype(np.float32)
    loss, grads = transformer.loss_and_grads(params, cfg, latents, noise, t, text)

    paths, run = whole_loss(cfg, (2, 2, 3), masked)
    noisy, target = flow.interpolate(latents, noise, t), flow.target(latents, noise)
    embeddings = tuple(ms.Tensor(text[name][0]) for name in LENGTHS)
    mask = ()
    if masked:
        mask = (ms.Tensor(np.concatenate([text[name][1] for name in LENGTHS], 1)[..., None].astype(np.float32)),)
    function = functools.partial(
        run, ms.Tensor(noisy.astype(np.float32)), ms.Tensor(t), ms.Tensor(target.astype(np.float32)), embeddings, mask
    )
    values = [ms.Tensor(params[path]) for path in paths]
    expected = ms.grad(lambda *v: function(*v), tuple(range(len(paths))))(*values)
    assert float(loss) == pytest.approx(float(function(*values)), rel=1e-5)
    assert set(grads) == set(paths)
    for path, value in zip(paths, expected, strict=True):
        assert grads[path].shape == params[path].shape and grads[path].dtype == ms.float32
        assert abs(value.asnumpy()).max() > 1e-6, path
        np.testing.assert_allclose(
            grads[path].asnumpy(), value.asnumpy(), rtol=1e-4, atol=1e-4 * abs(value.asnumpy()).max(), err_msg=path
        )


def test_gradients_equal_finite_differences_of_the_numpy_model():
    cfg = config(num_layers=1)
    params = random_params(cfg)
    latents, t, text = inputs()
    noise = np.random.default_rng(2).standard_normal(latents.shape).astype(np.float32)
    noisy = flow.interpolate(latents.astype(np.float64), noise, t.astype(np.float64))
    target = flow.target(latents.astype(np.float64), noise)

    def loss_at(p):
        return ((numpy_velocity(p, cfg, noisy, t, text) - target) ** 2).mean()

    for _ in range(2):  # MindSpore has compiled gradients that are right once and garbage from the second call on
        loss, grads = transformer.loss_and_grads(params, cfg, latents, noise, t, text)
    assert float(loss) == pytest.approx(loss_at(params), rel=1e-5)
    rng = np.random.default_rng(3)
    for path, value in params.items():
        gradient = grads[path].asnumpy()
        largest = np.unravel_index(abs(gradient).argmax(), gradient.shape)
        for where in [largest, tuple(rng.integers(n) for n in value.shape)]:
            step = np.zeros(value.shape)
            step[where] = 1e-4
            slope = (loss_at(params | {path: value + step}) - loss_at(params | {path: value - step})) / 2e-4
            assert gradient[where] == pytest.approx(slope, rel=2e-3, abs=2e-3 * abs(gradient).max()), (path, where)


def test_padded_text_with_a_mask_equals_trimmed_text():
    cfg = config()
    params, (latents, t, text) = random_params(cfg), inputs(masked=False)
    keep = {"ul2": 3, "metaclip": 2, "byt5": 1}
    trimmed = {name: (values[:, : keep[name]], None) for name, (values, _) in text.items()}
    masked = {
        name: (values, np.tile(np.arange(LENGTHS[name]) < keep[name], (2, 1))) for name, (values, _) in text.items()
    }
    expected, same, unmasked = (
        transformer.apply(params, cfg, latents, t, x).asnumpy() for x in (trimmed, masked, text)
    )
    np.testing.assert_allclose(same, expected, atol=1e-5)
    assert abs(unmasked - expected).max() > 1e-2


def test_wholly_masked_text_gives_numbers_and_is_not_seen():
    cfg = config()
    params, (latents, t, text) = random_params(cfg), inputs()
    noise = np.zeros_like(latents)
    hidden = {name: (values, mask & [[False], [True]]) for name, (values, mask) in text.items()}
    changed = {
        name: (values + np.array([[[5.0]], [[0.0]]], np.float32), mask) for name, (values, mask) in hidden.items()
    }
    velocity, same = (transformer.apply(params, cfg, latents, t, x).asnumpy() for x in (hidden, changed))
    assert np.isfinite(velocity).all()
    np.testing.assert_array_equal(velocity, same)
    loss, grads = transformer.loss_and_grads(params, cfg, latents, noise, t, hidden)
    assert np.isfinite(float(loss)) and all(np.isfinite(g.asnumpy()).all() for g in grads.values())


def test_samples_do_not_see_each_other():
    cfg = config()
    params, (latents, t, text) = random_params(cfg), inputs()
    before = transformer.apply(params, cfg, latents, t, text).asnumpy()
    latents[1], t[1] = -latents[1], 1 - t[1]
    for values, mask in text.values():
        values[1], mask[1] = -values[1], True
    after = transformer.apply(params, cfg, latents, t, text).asnumpy()
    np.testing.assert_array_equal(after[0], before[0])
    assert abs(after[1] - before[1]).max() > 1e-2


def test_an_image_is_one_frame():
    cfg = config()
    params, (latents, t, text) = random_params(cfg), inputs(frames=1)
    velocity = transformer.apply(params, cfg, latents, t, text).asnumpy()
    np.testing.assert_allclose(velocity, numpy_velocity(params, cfg, latents, t, text), atol=2e-4)


def test_numpy_and_tensors_are_taken_alike():
    cfg = config()
    params, (latents, t, text) = random_params(cfg), inputs()
    expected = transformer.apply(params, cfg, latents, t, text)
    assert isinstance(expected, ms.Tensor) and expected.dtype == ms.float32
    tensors = {name: (ms.Tensor(values), ms.Tensor(mask)) for name, (values, mask) in text.items()}
    params = {path: ms.Tensor(value) for path, value in params.items()}
    velocity = transformer.apply(params, cfg, ms.Tensor(latents), ms.Tensor(t), tensors)
    np.testing.assert_array_equal(velocity.asnumpy(), expected.asnumpy())


def test_simulated_bfloat16_is_close_and_not_the_same():
    cfg = config(compute_dtype="bfloat16_simulated")
    params, (latents, t, text) = random_params(cfg), inputs()
    exact = transformer.apply(params, config(), latents, t, text).asnumpy()
    rounded = transformer.apply(params, cfg, latents, t, text).asnumpy()
    assert 1e-4 < abs(rounded - exact).mean() / abs(exact).mean() < 3e-2
    noise = np.zeros_like(latents)
    _, grads = transformer.loss_and_grads(params, cfg, latents, noise, t, text)
    _, expected = transformer.loss_and_grads(params, config(), latents, noise, t, text)
    for path, value in expected.items():
        ours, value = grads[path].asnumpy().ravel(), value.asnumpy().ravel()
        assert ours @ value > 0.98 * np.linalg.norm(ours) * np.linalg.norm(value), path


def test_bfloat16_on_cpu_is_refused_with_the_way_out():
    cfg = config(compute_dtype="bfloat16")
    with pytest.raises(ConfigError, match="bfloat16_simulated"):
        transformer.apply(random_params(cfg), cfg, *inputs())


def test_position_tables_grow_linearly_and_keep_their_ends():
    cfg = config()
    params = random_params(cfg)
    larger = config(position_lengths=(3, 7, 9))
    grown = transformer.interpolate_positions(params, larger)
    assert {path: tuple(value.shape) for path, value in grown.items()} == transformer.shapes(larger)
    for axis, old, new in (("h", 4, 7), ("w", 5, 9)):
        table, value = params[f"position/{axis}"], grown[f"position/{axis}"].asnumpy()
        np.testing.assert_allclose(value[:: (new - 1) // (old - 1)], table, atol=1e-6)
        np.testing.assert_allclose(value[1::2], (table[:-1] + table[1:]) / 2, atol=1e-6)
    for path in params:
        if path not in ("position/h", "position/w"):
            np.testing.assert_array_equal(grown[path].asnumpy(), params[path])
    assert np.isfinite(transformer.apply(grown, larger, *inputs()).asnumpy()).all()


def test_a_table_of_one_row_is_repeated():
    table = np.arange(4.0).reshape(1, 4)
    np.testing.assert_array_equal(resize_table(table, 3), np.repeat(table, 3, 0))


def wrong_inputs():
    latents, t, text = inputs()
    zeros = functools.partial(np.zeros, dtype=np.float32)
    yield zeros((2, 3, 2, 4, 7)), t, text, r"7 along w.*patch_size\[2\] = 2"
    yield zeros((2, 3, 2, 10, 6)), t, text, r"5 patches along h, position_lengths\[1\] is 4"
    yield zeros((2, 3, 4, 4, 6)), t, text, r"4 patches along t, position_lengths\[0\] is 3"
    yield zeros((2, 4, 2, 4, 6)), t, text, r"\(2, 4, 2, 4, 6\), expected \(b 3 t h w\)"
    yield latents, t[:1], text, r"times have shape \(1,\)"
    yield latents, t, {"ul2": text["ul2"]}, "expected the encoders of text_dims"
    yield latents, t, text | {"ul2": (zeros((2, 5, 7)), None)}, r"'ul2' has shape \(2, 5, 7\), expected \(2 l 24\)"
    yield latents, t, text | {"byt5": (text["byt5"][0], zeros((2, 4)))}, r"'byt5' has a mask of shape \(2, 4\)"


@pytest.mark.parametrize("latents, t, text, message", list(wrong_inputs()))
def test_wrong_inputs_are_named(latents, t, text, message):
    cfg = config()
    with pytest.raises(ConfigError, match=message):
        transformer.apply(random_params(cfg), cfg, latents, t, text)


def test_parameters_of_another_config_are_named():
    params = random_params(config())
    with pytest.raises(ConfigError, match="position/h has 4 rows.*interpolate_positions"):
        transformer.apply(params, config(position_lengths=(3, 8, 5)), *inputs())
    with pytest.raises(ConfigError, match=r"unknown \['blocks/0/cross/norm'"):
        transformer.apply(params, seed_config(), *inputs())


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"num_heads": 3}, "num_heads is 3"),
        ({"text_norm": "batch"}, "text_norm is 'batch'"),
        ({"patch_size": (2, 2)}, "patch_size is"),
        ({"text_dims": {"t5": 4}}, "text_dims names t5"),
    ],
)
def test_impossible_configs_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        transformer.init(config(**overrides), 0)
