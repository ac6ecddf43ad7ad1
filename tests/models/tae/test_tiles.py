"""Tiles of a long video: their weights, and what comes out beside a decode in one piece."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import common
from moviegen.data import clips, video
from moviegen.models.tae import model as tae, tiles as tae_tiles, weights as tae_weights
from moviegen.nn import backend
from moviegen.parallel.mesh import Group

ROOT = Path(__file__).parents[3]


def weights(length):
    """How much each tile counts in each frame, (tiles, frames)."""
    places = tae_tiles.starts(length)
    found = np.zeros((len(places), 8 * length))
    for number, start in enumerate(places):
        own = tae_tiles.row_of(places, number, length, 8, tae_tiles.TILE, tae_tiles.OVERLAP)
        found[number, 8 * start : 8 * start + len(own)] = own
    return found


@pytest.mark.parametrize("length", [1, 3, 4, 5, 6, 7, 8, 13, 32])
def test_every_frame_is_in_a_tile_and_weights_sum_to_one(length):
    starts, table = tae_tiles.starts(length), weights(length)
    assert table.shape == (len(starts), 8 * length)
    np.testing.assert_allclose(table.sum(0), 1, atol=1e-12)
    frames = np.arange(8 * length)
    for start, row in zip(starts, table, strict=True):
        assert 0 <= start <= max(0, length - tae_tiles.TILE)
        assert not row[(frames < 8 * start) | (frames >= 8 * (start + tae_tiles.TILE))].any()


def test_a_later_tile_s_weight_rises_linearly_over_sixteen_frames():
    first, second = weights(6)
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


@pytest.mark.parametrize("length", [1, 4, 5, 7, 8, 9])
def test_the_stream_is_the_video_a_few_frames_at_a_time(small, length):
    latents = np.random.default_rng(3).standard_normal((2, 2, length, 2, 2)).astype(np.float32)
    params, cfg = small
    table, whole = weights(length), np.zeros((2, 3, 8 * length, 16, 16))
    for start, row in zip(tae_tiles.starts(length), table, strict=True):
        made = tae.decode(params, cfg, latents[:, :, start : start + 4]).asnumpy()
        whole[:, :, 8 * start : 8 * start + made.shape[2]] += made * row[8 * start :][: made.shape[2], None, None]
    pieces = list(tae_tiles.stream(params, cfg, latents, 8 * length - 3))
    assert max(piece.shape[2] for piece in pieces) <= 32
    np.testing.assert_allclose(np.concatenate(pieces, 2), whole[:, :, : 8 * length - 3], atol=1e-5)
    np.testing.assert_allclose(tae_tiles.decode(params, cfg, latents), whole, atol=1e-5)


def test_encoding_takes_32_frames_at_a_time_by_themselves(small):
    params, cfg = small
    video = np.tanh(np.random.default_rng(4).standard_normal((1, 3, 41, 16, 16))).astype(np.float32)
    mean, logvar = tae_tiles.encode(params, cfg, video)
    assert mean.shape == logvar.shape == (1, 2, 6, 2, 2)
    for at, stop in ((0, 32), (32, 41)):
        alone = [x.asnumpy() for x in tae.encode(params, cfg, video[:, :, at:stop])]
        np.testing.assert_allclose(mean[:, :, at // 8 : -(-stop // 8)], alone[0], atol=1e-6)
        np.testing.assert_allclose(logvar[:, :, at // 8 : -(-stop // 8)], alone[1], atol=1e-6)


def test_weights_of_spatial_tiles_sum_to_one(monkeypatch, small):
    """With a model that sees one latent at a time, tiles in space give exactly what one piece gives."""

    def decode(params, cfg, latents, num_frames=None):
        return backend.tensor(latents.asnumpy()[:, :1].repeat(8, 2).repeat(8, 3).repeat(8, 4).repeat(3, 1))

    def encode(params, cfg, video):
        small = backend.tensor(np.ascontiguousarray(video[:, :2, ::8, ::8, ::8]))
        return small, small

    monkeypatch.setattr(tae_tiles.tae, "decode", decode)
    monkeypatch.setattr(tae_tiles.tae, "encode", encode)
    cfg = small[1].copy_and_resolve_references()
    cfg.spatial_tile = 4
    latents = np.random.default_rng(5).standard_normal((1, 2, 5, 9, 3)).astype(np.float32)
    whole = decode(None, None, backend.tensor(latents)).asnumpy()
    np.testing.assert_allclose(tae_tiles.decode(None, cfg, latents), whole, atol=1e-6)
    video = np.random.default_rng(6).standard_normal((1, 3, 40, 72, 24)).astype(np.float32)
    np.testing.assert_allclose(tae_tiles.encode(None, cfg, video)[0], video[:, :2, ::8, ::8, ::8], atol=1e-6)


def test_the_seam_of_the_shipped_autoencoder_on_a_real_clip():
    """What tiles change, and what of it is at their borders: printed with `pytest -s`."""
    cfg = common.tae("tiny", latent_shift=0.0, latent_scale=1.0)
    params = tae_weights.load(Path(tae.__file__).parent / "trained" / "tiny_tae.safetensors", cfg)
    clip = video.to_model(clips.heldout_clip(64, 64))[None]
    mean = tae.encode(params, cfg, clip)[0].asnumpy()
    whole = tae.decode(params, cfg, mean, 64).asnumpy()
    base = abs(whole - clip).mean()
    in_time = tae_tiles.decode(params, cfg, mean, 64)
    cfg.spatial_tile = 4
    in_space = tae_tiles.decode(params, cfg, mean[:, :, :4], 32)
    latents = tae_tiles.encode(params, cfg, clip)[0]
    for name, made, of in (("time", in_time, whole), ("time and space", in_space, whole[:, :, :32])):
        off = abs(made - of)
        steps = abs(np.diff(made, axis=2)).mean((0, 1, 3, 4))
        print(f"tiles in {name}: mean {off.mean():.4f}, largest {off.max():.3f}; the reconstruction is {base:.4f} off")
        assert off.mean() < 0.5 * base
        assert steps.max() < 2 * np.median(steps) + abs(np.diff(of, axis=2)).mean((0, 1, 3, 4)).max()
    print(f"latents encoded in tiles: mean {abs(latents - mean).mean():.4f} of std {mean.std():.3f}")


def test_ranks_share_the_tiles_out(monkeypatch, small):
    latents = np.random.default_rng(2).standard_normal((1, 2, 8, 2, 2)).astype(np.float32)
    whole = tae_tiles.decode(*small, latents)
    monkeypatch.setattr(tae_tiles.collectives, "all_reduce", lambda group: lambda x: x)
    parts = [tae_tiles.decode(*small, latents, group=Group("", 4, rank)) for rank in range(4)]  # three tiles
    np.testing.assert_allclose(sum(parts), whole, atol=1e-6)
    assert not parts[3].any()


PEAK = """
import resource, sys
import numpy as np
from experiments import common
from moviegen.models.tae import model as tae
from moviegen.models.tae import tiles as tae_tiles
cfg = common.tae("tiny")
latents = np.random.default_rng(0).standard_normal((1, 16, int(sys.argv[1]) // 8, 16, 16)).astype(np.float32)
frames = sum(piece.shape[2] for piece in tae_tiles.stream(tae.init(cfg, 0), cfg, latents))
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_the_memory_of_a_decode_does_not_depend_on_the_number_of_frames():
    found = {}
    for frames in (64, 512):
        out = subprocess.run(
            [sys.executable, "-c", PEAK, str(frames)], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.split()
        assert int(out[-2]) == frames
        found[frames] = int(out[-1])
    assert found[512] < 1.1 * found[64], found
