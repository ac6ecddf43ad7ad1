import numpy as np
import pytest

from moviegen.evaluation import baselines


def random_video(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_pool_keeps_a_constant_of_any_size():
    video = np.full((9, 20, 31, 3), (7, 130, 255), np.uint8)
    np.testing.assert_array_equal(baselines.pool(video), video)


def test_pool_is_trilinear_between_block_centres():
    video = random_video((16, 24, 16))
    means = video.reshape(2, 8, 3, 8, 2, 8, 3).mean(axis=(1, 3, 5))

    def at(t, h, w):  # interpolates the block means at one pixel, with block centres at 3.5, 11.5, ...
        total = 0
        for corner in np.ndindex(2, 2, 2):
            weight, index = 1.0, []
            for place, upper, length in zip((t, h, w), corner, (2, 3, 2), strict=True):
                place = min(max((place - 3.5) / 8, 0), length - 1)
                low = min(int(place), length - 2)
                weight *= (place - low) if upper else 1 - (place - low)
                index.append(low + upper)
            total = total + weight * means[tuple(index)]
        return total

    got = baselines.pool(video).astype(float)
    for place in [(0, 0, 0), (3, 4, 5), (7, 8, 9), (15, 23, 15), (10, 13, 2)]:
        np.testing.assert_allclose(got[place], at(*place), atol=0.5001)


def test_pool_replicates_what_fills_no_block():
    video = random_video((3, 8, 8))
    padded = np.concatenate([video, np.repeat(video[-1:], 5, axis=0)])
    np.testing.assert_array_equal(baselines.pool(video), baselines.pool(padded)[:3])


@pytest.fixture(scope="module")
def clips():
    """Clips whose 8x8x8 blocks lie near a space of few dimensions, well inside 0..255."""
    rng = np.random.default_rng(1)
    waves = rng.normal(size=(6, 8, 8, 8, 3)) * np.array([20, 16, 12, 9, 6, 3]).reshape(6, 1, 1, 1, 1) / 3
    weights = rng.normal(size=(2, 8, 10, 10, 6))
    blocks = 128 + np.einsum("nabck,kthwd->natbhcwd", weights, waves)
    return list(np.clip(np.rint(blocks.reshape(2, 64, 80, 80, 3)), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def code(clips):
    return baselines.fit_linear(clips, channels=4)


def test_linear_code_loses_the_discarded_eigenvalues(clips, code):
    np.testing.assert_allclose(code.basis @ code.basis.T, np.eye(4), atol=1e-8)
    error = np.mean([((clip.astype(float) - baselines.linear(code, clip)) ** 2).mean() for clip in clips])
    rounding = 1 / 12  # variance of rounding the result to whole levels
    assert error == pytest.approx(code.eigenvalues[4:].sum() / 1536 + rounding, rel=0.02)
    assert code.eigenvalues[4] > 20 * code.eigenvalues[6]  # six waves, so the fifth still counts


def test_linear_code_is_the_pca_of_numpy(clips, code):
    rows = np.concatenate(
        [c.reshape(8, 8, 10, 8, 10, 8, 3).transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, 1536) for c in clips]
    )
    np.testing.assert_allclose(code.mean, rows.mean(axis=0), atol=1e-4)
    _, singular, vectors = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(code.eigenvalues[:6], singular[:6] ** 2 / len(rows), rtol=1e-4)
    np.testing.assert_allclose(abs(np.sum(code.basis * vectors[:4], axis=1)), 1, atol=1e-4)


def test_linear_roundtrip_pads_and_crops(clips, code):
    video = clips[0][:13, :20, :9]
    padded = np.pad(video, [(0, 3), (0, 4), (0, 7), (0, 0)], mode="edge")
    np.testing.assert_array_equal(baselines.linear(code, video), baselines.linear(code, padded)[:13, :20, :9])


def test_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match="needs at least 1536"):
        baselines.fit_linear([np.zeros((16, 64, 64, 3), np.uint8), np.zeros((4, 64, 64, 3), np.uint8)])
