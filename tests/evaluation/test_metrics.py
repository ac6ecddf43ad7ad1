from pathlib import Path

import numpy as np
import pytest

from moviegen.evaluation import metrics

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "psnr_ssim.npz")


def test_psnr_is_that_of_scikit_image():
    np.testing.assert_allclose(metrics.psnr(GOLDEN["reference"], GOLDEN["distorted"]), GOLDEN["psnr"], atol=1e-4)


def test_ssim_is_that_of_scikit_image():
    got = metrics.ssim(GOLDEN["reference"], GOLDEN["distorted"])
    np.testing.assert_allclose(got, GOLDEN["ssim_gaussian"], atol=1e-4)


def test_known_errors_give_known_decibels():
    a = np.full((2, 12, 12, 3), 100, np.uint8)
    b = a.copy()
    b[0] += 10
    b[1, :6] += 20
    np.testing.assert_allclose(metrics.psnr(a, b), 10 * np.log10(255**2 / np.array([100, 200])))


def test_equal_frames():
    a = np.random.default_rng(0).integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)
    b = a.copy()
    b[1, 0, 0, 0] ^= 128
    assert np.isinf(metrics.psnr(a, b)[[0, 2]]).all()
    assert metrics.mean_psnr(a, b) == pytest.approx((200 + metrics.psnr(a, b)[1]) / 3)
    np.testing.assert_allclose(metrics.ssim(a, a), 1)


def test_ssim_of_constant_frames_is_its_luminance_term():
    a, b = np.full((1, 11, 11, 3), 50, np.uint8), np.full((1, 11, 11, 3), 90, np.uint8)
    c1 = 2.55**2
    assert metrics.ssim(a, b)[0] == pytest.approx((2 * 50 * 90 + c1) / (50**2 + 90**2 + c1))


def test_wrong_inputs_are_refused():
    a = np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(a, a[:, :8])
    with pytest.raises(ValueError, match="uint8"):
        metrics.psnr(a, a.astype(np.float32))
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim(a[:, :10], a[:, :10])


def test_frechet_distance_equals_the_formula_with_a_matrix_root():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    for n, m, d in ((200, 150, 6), (5, 9, 6), (40, 40, 1)):  # the second has singular covariances
        a, b = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)), rng.standard_normal((m, d)) + 0.5
        ca, cb = (np.cov(x, rowvar=False).reshape(d, d) for x in (a, b))
        gap = a.mean(0) - b.mean(0)
        expected = gap @ gap + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
        assert metrics.frechet(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_frechet_distance_of_known_sets():
    a = np.random.default_rng(1).standard_normal((50, 4))
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet(a, a + np.array([3, 0, 0, 4])) == pytest.approx(25)
    assert metrics.frechet(a - a.mean(0), 2 * (a - a.mean(0))) == pytest.approx(np.trace(np.cov(a, rowvar=False)))
    with pytest.raises(ValueError, match="one width"):
        metrics.frechet(a, a[:, :3])
