"""What is shown of a latent cache, with a stand-in for the autoencoder; test_rehearsal.py has a real one."""

import numpy as np
import pytest

from experiments import common
from moviegen.data import latent_cache, sources, video
from moviegen.errors import ConfigError, DataError
from moviegen.jobs import look
from moviegen.runner import Run


def decoded(params, cfg, latents, num_frames):
    """Eight pixels for a latent along each axis, of its first channel, two latent frames at a time."""
    frames = np.repeat(latents[:, :1].repeat(8, 2).repeat(8, 3).repeat(8, 4), 3, 1)[:, :, :num_frames]
    yield from np.split(frames, range(16, frames.shape[2], 16), 2)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(look.tae_tiles, "stream", decoded)
    monkeypatch.setattr(look.tae_weights, "load_to_compute", lambda path, cfg: {})
    config = common.shrink(common.stage("1b", 2, in_buckets=True))
    (tmp_path / "train.csv").write_text('video,caption\nlong.mp4,a <b> cat\nc.png,"a sign, ""OPEN"""\n')
    config.data.update(source="csv", csv=str(tmp_path / "train.csv"), latent_folder=str(tmp_path / "latents"))
    return config


def posterior(frames, value):
    mean = np.full((16, frames, 2, 4), value, np.float32)
    mean[1:] = np.linspace(-1, 1, mean[1:].size).reshape(mean[1:].shape)
    return mean, np.full_like(mean, 1e-3)


def fill(folder):
    store = latent_cache.ShardWriter(folder, "float32", 0)
    store.add("long.mp4", *posterior(3, 0.5), "video", fps=12.0, shape=(20, 16, 32))
    store.add("c.png", *posterior(1, -0.5), "image", shape=(1, 16, 32))
    store.add("old.mp4", *posterior(2, 0.0), "video")
    store.flush()


def test_the_page_shows_what_the_model_sees_and_is_told(config, tmp_path):
    fill(tmp_path / "latents")
    assert look.run(Run(config, tmp_path)) == {"entries": 3}
    html = (tmp_path / "look.html").read_text()
    for words in (
        "<b>long.mp4</b><br>bucket 20x16x32, 12 frames a second<br>latents 3 x 16 x 2 x 4: mean ",
        "ul2, metaclip: FPS-12 a &lt;b&gt; cat",
        "<b>c.png</b><br>bucket 1x16x32<br>",
        "byt5: OPEN",
        "<b>old.mp4</b><br>bucket not noted, rate not noted, played at 16<br>",
        "no caption",
        "<td>20x16x32</td><td>1</td>",
    ):
        assert words in html, words
    shown = {path.name: video.read(path) for path in (tmp_path / "look").iterdir()}
    assert all(f'src="look/{name}"' in html for name in shown)
    assert sorted((len(frames), rate) for frames, rate in shown.values()) == [(1, 0), (16, 16), (20, 12)]
    (picture,) = (frames for frames, rate in shown.values() if not rate)
    assert abs(picture.mean() - 127.5 * 0.5) < 2 and picture.shape == (1, 16, 32, 3)


def test_the_seed_says_which_entries(config, tmp_path):
    fill(tmp_path / "latents")
    config.look.count = 1
    pages = []
    for seed in (1, 1, 2, 3, 4):
        config.seed = seed
        look.run(Run(config, tmp_path))
        pages.append((tmp_path / "look.html").read_text())
    assert pages[0] == pages[1] and len(set(pages)) > 1


def test_npz_files_of_the_seed_are_shown_and_a_csv_without_captions_is_said(config, tmp_path, capsys):
    (tmp_path / "latents" / "deep").mkdir(parents=True)
    mean, std = (x.swapaxes(0, 1) for x in posterior(2, 0.5))
    np.savez(tmp_path / "latents" / "deep" / "a.npz", latent_mean=mean, latent_std=std)
    (tmp_path / "train.csv").write_text("video\ndeep/a.mp4\n")
    assert look.run(Run(config, tmp_path)) == {"entries": 1}
    assert "<b>deep/a.npz</b><br>bucket not noted" in (tmp_path / "look.html").read_text()
    assert "look: captions are not shown: " in capsys.readouterr().out


def test_an_embedded_set_has_its_captions(config, tmp_path):
    config.data.update(source="synthetic", latent_folder="", csv="")
    config.data.buckets.resolution = 0
    item = next(iter(sources.embedded(config).values()))[0]
    store = latent_cache.ShardWriter(tmp_path / "latents", "float32", 0)
    store.add(item.name, *posterior(2, 0.5), "video", shape=(16, 16, 32))
    store.flush()
    look.run(Run(config, tmp_path))
    assert f"ul2, metaclip, byt5: {item.caption}" in (tmp_path / "look.html").read_text()


def test_what_cannot_be_shown_is_named(config, tmp_path):
    with pytest.raises(ConfigError, match="latents', which holds no latents: --job=encode_video fills it"):
        look.run(Run(config, tmp_path))
    fill(tmp_path / "latents")
    latent_cache.check_or_write(tmp_path / "latents", {"weights": "others"})
    with pytest.raises(ConfigError, match="data.tae_weights is .*which did not make the latents in"):
        look.run(Run(config, tmp_path))
    (tmp_path / "latents" / "manifest.json").unlink()
    config.tae.latent_channels = 8
    with pytest.raises(DataError, match="16 channels, tae.latent_channels is 8"):
        look.run(Run(config, tmp_path))
