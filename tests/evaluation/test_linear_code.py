import numpy as np
import pytest

from moviegen.evaluation import linear_code


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
    return linear_code.fit(clips, channels=4)


def test_linear_code_loses_the_discarded_eigenvalues(clips, code):
    np.testing.assert_allclose(code.basis @ code.basis.T, np.eye(4), atol=1e-8)
    error = np.mean([((clip.astype(float) - linear_code.roundtrip(code, clip)) ** 2).mean() for clip in clips])
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
    np.testing.assert_array_equal(linear_code.roundtrip(code, video), linear_code.roundtrip(code, padded)[:13, :20, :9])


def test_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match="needs at least 1536"):
        linear_code.fit([np.zeros((16, 64, 64, 3), np.uint8), np.zeros((4, 64, 64, 3), np.uint8)])
