"""Tiles of a long video: their weights, and what comes out beside a decode in one piece."""

import numpy as np
import pytest

from experiments import common
from moviegen import backend
from moviegen.mesh import Group
from moviegen.models import tae, tae_tiles


@pytest.mark.parametrize("length", [1, 3, 4, 5, 6, 7, 8, 13, 32])
def test_every_frame_is_in_a_tile_and_weights_sum_to_one(length):
    starts, table = tae_tiles.starts(length), tae_tiles.weights(length, 8)
    assert table.shape == (len(starts), 8 * length)
    np.testing.assert_allclose(table.sum(0), 1, atol=1e-12)
    frames = np.arange(8 * length)
    for start, row in zip(starts, table, strict=True):
        assert 0 <= start <= max(0, length - tae_tiles.TILE)
        assert not row[(frames < 8 * start) | (frames >= 8 * (start + tae_tiles.TILE))].any()


def test_a_later_tile_s_weight_rises_linearly_over_sixteen_frames():
    first, second = tae_tiles.weights(6, 8)
    assert not second[:16].any() and (second[32:] == 1).all()
    np.testing.assert_allclose(np.diff(second[16:32]), 1 / 16)
    np.testing.assert_allclose(first[16:32], second[16:32][::-1])


@pytest.fixture(scope="module")
def small():
    cfg = common.tae("tiny", base_channels=4, channel_multipliers=(1, 1, 1, 1), norm_groups=2, latent_channels=2)
    return tae.init(cfg, 0), cfg


@pytest.mark.parametrize("length", [3, 4])
def test_a_short_video_is_decoded_in_one_piece(small, length):
    latents = np.random.default_rng(0).standard_normal((1, 2, length, 2, 2)).astype(np.float32)
    frames = 8 * length - 3
    np.testing.assert_allclose(
        tae_tiles.decode(*small, latents, frames), tae.decode(*small, latents, frames).asnumpy(), atol=1e-6
    )


def test_tiles_of_a_still_video_leave_no_seam(monkeypatch, small):
    """A decoder without memory in time: what the tiles give is then exactly what one piece gives."""

    def decode(params, cfg, latents, num_frames=None):
        return backend.tensor(np.asarray(latents.asnumpy()[:, :1].repeat(8, 2).repeat(8, 3).repeat(8, 4).repeat(3, 1)))

    monkeypatch.setattr(tae_tiles.tae, "decode", decode)
    latents = np.random.default_rng(1).standard_normal((2, 2, 9, 1, 2)).astype(np.float32)
    made = tae_tiles.decode(*small, latents, 70)
    assert made.shape == (2, 3, 70, 8, 16)
    np.testing.assert_allclose(made, decode(None, None, backend.tensor(latents)).asnumpy()[:, :, :70], atol=1e-6)


def test_ranks_share_the_tiles_out(monkeypatch, small):
    latents = np.random.default_rng(2).standard_normal((1, 2, 8, 2, 2)).astype(np.float32)
    whole = tae_tiles.decode(*small, latents)
    monkeypatch.setattr(tae_tiles.collectives, "all_reduce", lambda group: lambda x: x)
    parts = [tae_tiles.decode(*small, latents, group=Group("", 4, rank)) for rank in range(4)]  # three tiles
    np.testing.assert_allclose(sum(parts), whole, atol=1e-6)
    assert not parts[3].any()
