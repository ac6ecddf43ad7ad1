import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from moviegen import config as configs
from moviegen.convert import lpips as convert_lpips, seed
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import convert, import_weights, sample
from moviegen.models import lpips
from moviegen.models.tae import model as tae, weights as tae_weights
from moviegen.models.transformer import model as transformer
from moviegen.nn import backend
from moviegen.runner import Run
from moviegen.storage import checkpoint, safetensors_io
from tests.golden.recipe import golden_array

GOLDEN = Path(__file__).parents[1] / "golden"


def settings(tmp_path, **values):
    found = configs.load("experiments/tae.py:compat=seed").unlock()
    found.tae.base_channels = 32
    found.convert.update(dict(target=str(tmp_path / "out.safetensors")) | values)
    return found


def arrays(name):
    entries = (re.fullmatch(r"(\S+) \((.*)\)", str(e)).groups() for e in np.load(GOLDEN / name)["names"])
    return {key: golden_array(key, [int(n) for n in shape.split(",") if n.strip()]) for key, shape in entries}


@pytest.fixture(scope="module")
def seed_s():
    return arrays("tae.npz")


def test_the_seed_s_checkpoint_becomes_ours_and_goes_back(tmp_path, seed_s, capsys):
    listed = [{"name": f"autoencoder.{name}", "data": ms.Tensor(value)} for name, value in seed_s.items()]
    ms.save_checkpoint(listed, str(tmp_path / "seed.ckpt"))
    config = settings(tmp_path, source=str(tmp_path / "seed.ckpt"))
    assert convert.run(Run(config, tmp_path))["arrays"] == len(tae.shapes(config.tae))
    assert "the seed's autoencoder in" in capsys.readouterr().out
    params = tae_weights.load(tmp_path / "out.safetensors", config.tae)
    np.testing.assert_array_equal(
        params["encoder/conv_in/temporal/w"].asnumpy(), seed_s["encoder.conv_in.conv_temp.weight"][:, :, 0]
    )
    back = settings(
        tmp_path, source=str(tmp_path / "out.safetensors"), target=str(tmp_path / "back.safetensors"), naming="seed"
    )
    convert.run(Run(back, tmp_path))
    found = safetensors_io.read(tmp_path / "back.safetensors")
    assert found.keys() == {name for name in seed_s if ".temb_proj." not in name}
    for name, value in found.items():
        np.testing.assert_array_equal(value, seed_s[name], err_msg=name)


def test_an_image_autoencoder_is_inflated(tmp_path):
    """That it then computes the same on one frame is tests/models/test_tae.py."""
    given = arrays("sd35_vae.npz")
    safetensors_io.write(given, tmp_path / "vae.safetensors")
    config = settings(tmp_path, source=str(tmp_path / "vae.safetensors"))
    convert.run(Run(config, tmp_path))
    params = backend.to_numpy(tae_weights.load(tmp_path / "out.safetensors", config.tae))
    np.testing.assert_array_equal(params["encoder/conv_in/spatial/w"], given["encoder.conv_in.weight"])
    assert not params["encoder/mid/temporal_attention/out/w"].any()
    back = settings(tmp_path, source=str(tmp_path / "out.safetensors"), naming="diffusers")
    convert.run(Run(back, tmp_path))
    found = safetensors_io.read(tmp_path / "out.safetensors")
    assert found.keys() == given.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, given[name], err_msg=name)


def test_lpips_from_its_two_files(tmp_path):
    stored = np.load(GOLDEN / "lpips_vgg.npz")
    shapes = lpips.shapes()
    vgg = {}
    for i, layer in enumerate(convert_lpips.CONVS):
        vgg[f"features.{layer}.weight"] = np.full(shapes[f"conv/{i}/w"], i, np.float32)
        vgg[f"features.{layer}.bias"] = np.full(shapes[f"conv/{i}/b"], -i, np.float32)
    safetensors_io.write(vgg, tmp_path / "vgg.safetensors")
    source = str(tmp_path / "vgg.safetensors")
    # The heads as the lpips package ships them, a file of torch from before 1.6.
    convert.run(
        Run(
            settings(tmp_path, kind="lpips", source=source, heads=str(GOLDEN / "torch_files" / "lpips_heads.pth")),
            tmp_path,
        )
    )
    found = lpips.load(str(tmp_path / "out.safetensors"), "", "")
    np.testing.assert_array_equal(found["head/4"].asnumpy(), stored["lin4__model__1__weight"].ravel())
    assert (found["conv/12/b"].asnumpy() == -12).all()


@pytest.mark.parametrize(
    "values, error, message",
    [
        (dict(source="gone.ckpt"), ConfigError, "convert.source is 'gone.ckpt', which does not exist"),
        (dict(kind="clip"), ConfigError, "convert.kind is 'clip', expected one of tae, lpips"),
        (
            dict(kind="transformer"),
            ConfigError,
            "one of tae, lpips in this .*generator in a stage such as",
        ),
        (dict(target="x.ckpt"), ConfigError, "convert.target is 'x.ckpt', expected .* ends in .safetensors"),
        (dict(source=__file__), DataError, r"test_convert.py: expected a file that ends in .safetensors, .ckpt, .pth"),
        (dict(kind="lpips", source=__file__), ConfigError, "convert.heads is '', which does not exist|expected a file"),
        (
            dict(source=str(GOLDEN / "torch_files" / "param.pth")),
            DataError,
            "param.pth: neither diffusers' names .* but w",
        ),
    ],
)
def test_wrong_settings_are_named(tmp_path, values, error, message):
    with pytest.raises(error, match=message):
        convert.run(Run(settings(tmp_path, **values), tmp_path))


def seed_s_generator(cfg):
    """Arrays under the seed's names, and the same as our parameters."""
    names = {path: name for name, path in seed.GLOBAL.items()}
    layers = {path: name for name, path in seed.LAYER.items()}
    arrays, ours = {}, {}
    for path, shape in transformer.shapes(cfg).items():
        layer = re.fullmatch(r"blocks/(\d+)/(.+)", path)
        name = f"layers.{layer[1]}.{layers[layer[2]]}" if layer else names[path]
        ours[path] = golden_array(name, shape)
        arrays[name] = ours[path][None] if path.startswith("blocks/") and path.endswith("/modulation") else ours[path]
    return arrays, ours


def generator_settings(tmp_path, arguments=",compat=seed"):
    config = configs.load(f"experiments/1b_stage1.py:tiny{arguments}").unlock()
    config.convert.update(source=str(tmp_path / "seed.ckpt"), target=str(tmp_path / "seed.safetensors"))
    config.import_weights.path = config.convert.target
    config.sample.update(checkpoint=str(tmp_path / "imported"), steps=1, height=32, width=32)
    return config


def test_from_the_seed_s_generator_to_a_sample(tmp_path, capsys):
    config = generator_settings(tmp_path)
    arrays, ours = seed_s_generator(config.model)
    listed = [{"name": f"network.model.{name}", "data": ms.Tensor(value)} for name, value in arrays.items()]
    ms.save_checkpoint(listed, str(tmp_path / "seed.ckpt"))
    assert convert.run(Run(config, tmp_path)) == import_weights.run(Run(config, tmp_path)) == {"arrays": len(ours)}
    assert "the seed's generator in" in capsys.readouterr().out
    found = checkpoint.load(tmp_path / "imported")[0]["params"]
    assert found.keys() == ours.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    sample.run(Run(config, tmp_path))
    made = {path.name for path in (tmp_path / "samples").iterdir()}
    assert made == {"00-a-red-circle-moves-left.png", "samples.json"}
    with pytest.raises(ConfigError, match="trained with other settings .model.num_heads: 6 -> 3"):
        config.model.num_heads = 3
        import_weights.run(Run(config, tmp_path))


def test_the_seed_s_generator_is_not_the_paper_s(tmp_path):
    arrays, _ = seed_s_generator(generator_settings(tmp_path).model)
    safetensors_io.write(arrays, tmp_path / "seed.safetensors")
    config = generator_settings(tmp_path, "")
    config.convert.source = config.convert.target
    with pytest.raises(ConfigError, match="missing: blocks/0/cross/norm, .*need a config with compat='seed'"):
        convert.run(Run(config, tmp_path))
