"""On real clips: the shipped autoencoder and the clips that come with the demo."""

import csv
import json

import numpy as np
import pytest

from moviegen import config
from moviegen.data import clips, video
from moviegen.errors import ConfigError, DataError
from moviegen.evaluation import baselines, metrics, reconstruction
from moviegen.jobs import evaluate
from moviegen.models import lpips
from moviegen.models.tae import weights as tae_weights
from moviegen.runner import Run
from tests.data import broken


def settings(**evaluation):
    found = config.load("experiments/tiny_tae.py").unlock()
    found.evaluate.update(dict(weights="package:tiny_tae", num_frames=16) | evaluation)
    return found


@pytest.fixture(scope="module", autouse=True)
def few_clips():
    """Two of the real files: the linear code is fitted to the clips of one, the other is held out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "_SHOTS", [shot for shot in clips._SHOTS if shot[1][:7] in ("bigbuck", "carphon")])
        yield


@pytest.fixture(scope="module")
def feature_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "mine.py"
    path.write_text(
        "def means(config):\n"
        "    side = config.data.height // 4\n"
        "    return lambda frames: frames[:, ::side, ::side].reshape(len(frames), -1)[:, :6]\n"
        "def wrong(config):\n    return lambda frames: frames\n"
    )
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory, feature_file):
    folder = tmp_path_factory.mktemp("real")
    small = {  # a network with LPIPS's make and few channels
        name: np.abs(np.random.default_rng(0).standard_normal(shape)).astype(np.float32) * 0.2
        for name, shape in lpips.shapes((2, 2, 2, 2, 2)).items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips, "load", lambda *_: small)
        wanted = settings(linear_baseline=True, features=f"{feature_file}:means", lpips_weights="small")
        wanted.data.height = wanted.data.width = 64
        return folder, evaluate.run(Run(wanted, folder)), small


def test_numbers_of_the_real_clip_are_those_of_its_parts(real):
    folder, found, small = real
    summary = json.loads((folder / "evaluation.json").read_text())
    cfg = settings().tae
    params = tae_weights.load(tae_weights.find("package:tiny_tae", ""), cfg)
    clip = clips.heldout_clip(16, 64)
    made = reconstruction.roundtrip(params, cfg, clip)
    row = summary["clips"][0]
    assert row["clip"] == "real" and row["frames"] == 16
    assert row["psnr"] == pytest.approx(metrics.mean_psnr(clip, made)) and row["psnr"] > 22
    assert row["ssim"] == pytest.approx(metrics.ssim(clip, made).mean())
    a, b = (video.to_model(x)[None] for x in (clip, made))
    assert row["lpips"] == pytest.approx(lpips.of_clips(small, a, b).mean(), rel=1e-5)
    linear = baselines.linear(baselines.fit_linear(clips.training_videos(64)), clip)
    assert row["linear_psnr"] == pytest.approx(metrics.mean_psnr(clip, linear))
    for key in ("psnr", "ssim", "lpips", "linear_psnr", "linear_ssim", "linear_lpips"):
        assert found[key] == pytest.approx(np.mean([r[key] for r in summary["clips"]])) == summary["mean"][key]
    assert found["clips"] == 5 and found["bad"] == 0


def test_the_frechet_distance_says_what_it_is_of(real):
    folder, found, _ = real
    summary = json.loads((folder / "evaluation.json").read_text())
    about = summary["frechet"]
    assert about["value"] == found["frechet"] > 0
    assert (about["rows"], about["clips"], about["frames"], about["fps"]) == (80, 5, 16, "8.0 to 29.97")
    for text in ("mine.py:means (6)", "80 rows of 5 clips", "16 frames of 64x64 at 8.0 to 29.97 fps"):
        assert text in about["of"]
    assert about["of"] in (folder / "worst.html").read_text()


def test_the_table_holds_every_clip_and_the_mean(real):
    folder, found, _ = real
    rows = list(csv.DictReader((folder / "evaluation.csv").open()))
    assert [row["clip"] for row in rows] == ["real", *(f"synthetic{i}" for i in range(4)), "mean"]
    assert float(rows[-1]["psnr"]) == pytest.approx(found["psnr"])
    assert float(rows[-1]["frechet"]) == pytest.approx(found["frechet"]) and "mine.py" in rows[-1]["frechet_of"]
    assert rows[0]["frechet"] == ""


def test_videos_show_both_and_the_page_begins_with_the_worst(real):
    folder, _, _ = real
    frames, _ = video.read(folder / "samples" / "recons" / "real.mp4")
    assert frames.shape == (16, 64, 3 * 64, 3)
    original = clips.heldout_clip(16, 64)
    assert metrics.mean_psnr(np.ascontiguousarray(frames[:, :, :64]), original) > 30
    text = (folder / "worst.html").read_text()
    rows = json.loads((folder / "evaluation.json").read_text())["clips"]
    order = [text.index(f"<b>{row['clip']}</b>") for row in sorted(rows, key=lambda row: row["psnr"])]
    assert order == sorted(order) and text.count("<video") == 5


def test_files_with_bad_ones_among_them(tmp_path, monkeypatch):
    # A codec that adds 3 levels: what is read counts here, and every length would be compiled anew.
    monkeypatch.setattr(reconstruction, "roundtrip", lambda params, cfg, clip: np.where(clip < 128, clip + 3, clip - 3))
    table = broken.write(tmp_path / "set")
    video.write_png(tmp_path / "set" / "still.png", broken.pixels(1)[0])
    with table.open("a") as f:
        f.write("still.png\n")
    wanted = settings(csv=str(table), video_folder=str(tmp_path / "set"), num_frames=8)
    wanted.data.update(height=16, width=24, max_bad_fraction=0.6)
    found = evaluate.run(Run(wanted, tmp_path))
    assert found["clips"] == 6 and found["bad"] == 7
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / 3))
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(summary["bad"]) == 7 and any("audio.wav: holds no video stream" in reason for reason in summary["bad"])
    assert (tmp_path / "samples" / "recons" / "still.png").is_file()
    wanted.data.max_bad_fraction = 0.5
    with pytest.raises(DataError, match="7 of 13 files cannot be used so far"):
        evaluate.run(Run(wanted, tmp_path))


@pytest.mark.parametrize(
    "evaluation, message",
    [
        (dict(weights=""), "tae.safetensors does not exist, and evaluate.weights is ''"),
        (dict(features="vgg"), "evaluate.features is 'vgg', whose network is LPIPS's: give evaluate.lpips_weights"),
        (dict(features="inception"), "evaluate.features is 'inception', expected 'vgg' or FILE.py:FUNCTION"),
        (dict(lpips_weights="gone"), "evaluate.lpips_weights is 'gone', no file: .*vgg16-397923af.pth"),
        (dict(video_folder="/nowhere"), "evaluate.video_folder is '/nowhere'"),
    ],
)
def test_wrong_settings_are_named(tmp_path, evaluation, message):
    with pytest.raises(ConfigError, match=message):
        evaluate.run(Run(settings(**evaluation), tmp_path))


def test_features_of_a_wrong_shape_are_named(tmp_path, feature_file):
    wanted = settings(features=f"{feature_file}:wrong", num_frames=8)
    with pytest.raises(ConfigError, match=r"wrong': its function gave an array of shape \(8, 32, 32, 3\)"):
        evaluate.run(Run(wanted, tmp_path))
