import pytest

from experiments import common
from moviegen import config as configs
from moviegen.models.costs import autoencoder

ONE = {"data": 1, "zero": 1, "sp": 1}


def test_one_convolution_by_hand():
    """The small layout's ends and middle: an encoder of one level has a known number of products."""
    cfg = common.tae("tiny", base_channels=8, channel_multipliers=(1, 1, 1, 1), norm_groups=1, temporal_attention=False)
    width, latents, frames, side = 8, cfg.latent_channels, 8, 16
    pixels = [frames // 2**level * (side // 2**level) ** 2 for level in range(4)]

    def conv(inputs, outputs, at, before=None):
        return 2 * (9 * inputs * outputs * (before or at) + 3 * outputs * outputs * at)

    expected = conv(3, width, pixels[0]) + conv(width, 2 * latents, pixels[3])
    expected += sum(2 * conv(width, width, n) for n in pixels) + 4 * conv(width, width, pixels[3])
    expected += sum(conv(width, width, pixels[i + 1], 2 * pixels[i + 1]) for i in range(3))
    assert autoencoder.side(cfg, "encoder", frames, side, side).convolutions == expected


def test_operations_of_the_encoder():
    """6.39 TFLOP, counted over the graphs that MindSpore compiles of 32 frames of 256 x 256."""
    assert autoencoder.side(common.tae(), "encoder", 32, 256, 256).flop / 1e12 == pytest.approx(6.39, rel=0.001)


def test_lpips_is_vgg():
    """15.3 G multiplications and additions of a picture of 224 x 224, as everywhere told of VGG16's convolutions."""
    assert autoencoder.lpips(1, 224, 224).convolutions == pytest.approx(2 * 15.35e9, rel=0.01)


def test_a_step_is_nearly_four_forwards_and_the_losses():
    config = configs.load("experiments/tae.py")
    clip = config.data.num_frames, 256, 256
    both = sum(autoencoder.side(config.tae, side, *clip).flop for side in ("encoder", "decoder"))
    without = configs.apply_overrides(config, {"loss.lpips": 0.0})
    found = autoencoder.training(without, ONE)
    assert found["a video"].flop == pytest.approx(3.75 * both)
    assert autoencoder.training(config, ONE)["a video"].flop > 3.75 * both
    of_eight = sum(autoencoder.side(config.tae, *each, 256, 256).flop for each in (("encoder", 1), ("decoder", 8)))
    assert found["an image"].flop == pytest.approx(3.75 * of_eight)  # an image is decoded to eight frames
    assert autoencoder.weights(config).values == pytest.approx(
        119.13e6 - 4.66e6, rel=1e-4
    )  # the seed's, without its dead ones


def test_decoding_in_tiles():
    cfg = common.tae()
    assert autoencoder.decoding(cfg, 32, 64, 64)[0] == 1 and autoencoder.decoding(cfg, 256, 64, 64)[0] == 15
