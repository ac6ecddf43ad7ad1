import functools
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest

from moviegen.models import flow
from moviegen.models.transformer import model as transformer, stages
from moviegen.models.transformer.shapes import SequenceShard, parameter_dtypes
from moviegen.models.transformer.step import loss_and_grads
from moviegen.nn import backend, tree
from moviegen.parallel import comm
from moviegen.parallel.mesh import ALONE, ONE
from tests.models.transformer.tiny_transformer import (
    LENGTHS,
    config,
    inputs,
    numpy_velocity,
    random_params,
    seed_config,
)


def test_true_tokens_are_packed_and_nothing_else_changes():
    """Of 12 places 6 hold tokens in one sample and 4 in the other: a context of 6, in velocity and gradients the same."""
    cfg = config()
    params = random_params(cfg)
    latents, t, text = inputs()
    for name, mask in zip(
        LENGTHS, ([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], [[1, 1, 0, 0]] * 2, [[1, 0, 0]] * 2), strict=True
    ):
        text[name] = text[name][0], np.array(mask)
    noise = np.random.default_rng(2).standard_normal(latents.shape).astype(np.float32)
    trimmed = {
        name: (values[:, :n], text[name][1][:, :n])
        for n, (name, (values, _)) in zip((3, 2, 1), text.items(), strict=True)
    }
    assert [tuple(x.shape) for x in transformer._check_text(cfg, trimmed, 2)[1]] == [(2, 6, 1)]
    apart = loss_and_grads(params, cfg, latents, noise, t, trimmed)
    velocity = transformer.apply(params, cfg, latents, t, trimmed).asnumpy()
    assert [tuple(x.shape) for x in transformer._check_text(cfg, text, 2)[1]] == [(2, 6, 1), (2, 6)]
    packed = loss_and_grads(params, cfg, latents, noise, t, text)
    np.testing.assert_allclose(transformer.apply(params, cfg, latents, t, text).asnumpy(), velocity, atol=1e-5)
    np.testing.assert_allclose(velocity, numpy_velocity(params, cfg, latents, t, masks_as_bool(text)), atol=2e-4)
    assert float(packed[0]) == pytest.approx(float(apart[0]), rel=1e-6)
    for path, expected in apart[1].items():
        expected = expected.asnumpy()
        assert abs(expected).max() > 0, path
        np.testing.assert_allclose(packed[1][path].asnumpy(), expected, atol=1e-5 * abs(expected).max(), err_msg=path)
    again = loss_and_grads(params, cfg, latents, noise, t, text)[1]  # a compiled gradient may be right once
    for path, value in packed[1].items():
        np.testing.assert_array_equal(again[path].asnumpy(), value.asnumpy())


def masks_as_bool(text):
    return {name: (values, np.asarray(mask, bool)) for name, (values, mask) in text.items()}


def whole_loss(cfg, grid, masked):
    """The loss as one function of positional tensors for MindSpore's own autodiff, with no help of layerwise.py."""
    paths = tuple(transformer.shapes(cfg))
    encoders, patch = ("ul2", "metaclip", "byt5"), tuple(cfg.patch_size)
    part = SequenceShard(grid)
    start = stages.make_start(patch, part, "float32")
    context_of = stages.make_context(encoders, cfg.text_norm, cfg.norm_eps, masked, "float32")
    block = stages.make_block(
        cfg.num_heads, part.patches, ALONE, cfg.norm_eps, cfg.cross_attention_norm, masked, "float32"
    )
    loss = stages.make_loss(patch, part, 1, cfg.norm_eps, "float32")

    def run(noisy, t, target, text, mask, *values):
        p = dict(zip(paths, values, strict=True))
        x, pos, time, modulation = start(p, noisy, t)
        context = context_of(p, *text, *mask)
        for i in range(cfg.num_layers):
            x = block(tree.sub(p, f"blocks/{i}"), x, pos, modulation, context, *mask)
        return loss(tree.sub(p, "final"), x, time, target)[0]

    return paths, run


@pytest.mark.parametrize("cfg", [config(), seed_config()], ids=["paper", "seed"])
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_equal_plain_autodiff_and_none_is_missing(cfg, masked):
    params = random_params(cfg)
    latents, t, text = inputs(masked)
    noise = np.random.default_rng(2).standard_normal(latents.shape).astype(np.float32)
    loss, grads = loss_and_grads(params, cfg, latents, noise, t, text)

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
        loss, grads = loss_and_grads(params, cfg, latents, noise, t, text)
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
    loss, grads = loss_and_grads(params, cfg, latents, noise, t, hidden)
    assert np.isfinite(float(loss)) and all(np.isfinite(g.asnumpy()).all() for g in grads.values())


@pytest.mark.parametrize(("dtype", "given"), [("bfloat16_simulated", "float32"), ("float16", "cast")])
def test_lower_precision_is_close_and_not_the_same(dtype, given):
    """Products cast what they take, or find it cast already, as a training gives it."""
    cfg = config(compute_dtype=dtype)
    params, (latents, t, text) = backend.to_tensors(random_params(cfg)), inputs()
    exchange = comm.make(ONE, 3, transformer.shapes(cfg), parameter_dtypes(cfg)) if given == "cast" else comm.LOCAL
    exact = transformer.apply(params, config(), latents, t, text).asnumpy()
    rounded = transformer.apply(params, cfg, latents, t, text, exchange).asnumpy()
    assert rounded.dtype == np.float32
    assert 1e-5 < abs(rounded - exact).mean() / abs(exact).mean() < 3e-2
    noise = np.zeros_like(latents)
    loss, grads = loss_and_grads(params, cfg, latents, noise, t, text, exchange)
    exact_loss, expected = loss_and_grads(params, config(), latents, noise, t, text)
    assert loss.dtype == ms.float32 and float(loss) == pytest.approx(float(exact_loss), rel=1e-2)
    assert grads.keys() == expected.keys()
    for path, value in expected.items():
        assert given != "cast" or grads[path].dtype == ms.float32, path
        ours, value = grads[path].asnumpy().ravel().astype(np.float32), value.asnumpy().ravel()
        assert abs(value).max() > 0, path
        assert ours @ value > 0.98 * np.linalg.norm(ours) * np.linalg.norm(value), path


@pytest.mark.parametrize(
    ("cfg", "dtype", "masked"), [(config, "float32", True), (config, "float16", True), (seed_config, "float32", False)]
)
def test_whatever_is_recomputed_the_gradients_are_the_same(cfg, dtype, masked):
    """Each policy twice, since a compiled gradient may be right once."""
    cfg = cfg()
    cfg.update(compute_dtype=dtype, num_layers=3)
    params = backend.to_tensors(random_params(cfg))
    exchange = comm.make(ONE, 3, transformer.shapes(cfg), parameter_dtypes(cfg))
    latents, t, text = inputs(masked)
    noise = np.random.default_rng(2).standard_normal(latents.shape).astype(np.float32)
    loss, expected = loss_and_grads(params, cfg, latents, noise, t, text, exchange)
    for policy in ("none", "2", "none", "2", "all"):
        found, grads = loss_and_grads(params, cfg, latents, noise, t, text, exchange, policy)
        assert float(found) == pytest.approx(float(loss), rel=1e-6) and grads.keys() == expected.keys()
        for path, value in expected.items():
            value, own = value.asnumpy(), grads[path]
            assert own.dtype == ms.float32 and abs(value).max() > 0, path
            limit = (1e-6 if dtype == "float32" else 2e-3) * abs(value).max()
            np.testing.assert_allclose(own.asnumpy(), value, rtol=0, atol=limit, err_msg=f"{policy} {path}")


CASTS = """
import os, pathlib, re, sys
import numpy as np
from moviegen.models.transformer import shapes, stages
from moviegen.nn import layerwise, tree
from moviegen.parallel.comm import LOCAL
from tests.models.transformer.tiny_transformer import config, random_params
cfg = config(compute_dtype="float16")
params = tree.sub(random_params(cfg), "blocks/0")
if sys.argv[1] == "cast":
    kinds = tree.sub(shapes.parameter_dtypes(cfg), "blocks/0")
    params = {path: value.astype(kinds[path]) for path, value in params.items()}
x, pos, modulation, context = (np.ones(shape, "f") for shape in ((2, 12, 16), (1, 12, 16), (2, 96), (2, 8, 16)))
block = stages.build(cfg, (2, 3, 2, 4, 6), False, LOCAL).block
layerwise.pull(block, params, (x, pos, modulation, context), (x,))
graph = max((file.read_text() for file in pathlib.Path().rglob("*_validate_*.ir")), key=len)
casts = re.findall(r"PrimFunc_Cast\\([^\\n]*\\n +: \\(<Tensor\\[\\w+\\], \\(([\\d, ]+)\\)", graph)
print(sum(f"({shape})" in {str(value.shape) for value in params.values()} for shape in casts))
"""


def test_weights_that_are_cast_already_are_cast_by_no_graph(tmp_path):
    """Nor are their gradients: a block has 11 matrices, and its way back computes it again."""
    found = []
    for given in ("float32", "cast"):
        (tmp_path / given).mkdir()
        own = dict(MS_DEV_SAVE_GRAPHS="1", MS_DEV_SAVE_GRAPHS_PATH=".", MS_DEV_DUMP_IR_PASSES="validate")
        paths = os.pathsep.join(map(os.path.abspath, [".", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
        command, env = [sys.executable, "-c", CASTS, given], os.environ | own | {"PYTHONPATH": paths}
        ended = subprocess.run(command, cwd=tmp_path / given, env=env, capture_output=True, text=True, check=True)
        found.append(int(ended.stdout.split()[-1]))
    assert found == [22, 0]


def test_types_that_do_not_fit_break_in_float16():
    """As they would on a card in bfloat16: a time embedding that is gathered so and multiplied in float32."""
    cfg = config(compute_dtype="float16")
    kinds = parameter_dtypes(cfg) | {"time/in": "float16"}
    exchange = comm.make(ONE, 3, transformer.shapes(cfg), kinds)
    with pytest.raises(TypeError, match="type of 'x2' should be same as 'x1'"):
        loss_and_grads(random_params(cfg), cfg, *inputs()[:1], np.zeros((2, 3, 2, 4, 6)), *inputs()[1:], exchange)
