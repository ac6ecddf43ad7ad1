"""How near one video is to another: PSNR and SSIM per frame, and how near one set of features is to another, in numpy."""

import numpy as np

SIGMA, RADIUS = 1.5, 5  # the gaussian window of Wang et al. 2004, 11 x 11


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB per frame, float64 (t,), of uint8 (t h w c); inf where frames are equal."""
    a, b = _pair(a, b)
    error = ((a - b) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


def mean_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of `psnr` over frames, with equal frames counted as 100 dB so that one of them does not hide the others."""
    return float(np.minimum(psnr(a, b), 100.0).mean())


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity per frame, float64 (t,), of uint8 (t h w c), at least 11 pixels high and wide.

    Gaussian window of sigma 1.5 and 11 x 11, population covariance, averaged over the interior (5 pixels cropped) and
    the channels: the numbers of skimage's structural_similarity(gaussian_weights=True, use_sample_covariance=False).
    torchmetrics averages over the borders as well and gives slightly other numbers.
    Source: Wang et al. 2004, K1 = 0.01, K2 = 0.03.
    """
    a, b = _pair(a, b)
    if min(a.shape[1:3]) <= 2 * RADIUS:
        raise ValueError(f"SSIM needs frames of at least 11x11 pixels, got {a.shape[1]}x{a.shape[2]}")
    mean_a, mean_b = _window(a), _window(b)
    var_a, var_b = _window(a * a) - mean_a**2, _window(b * b) - mean_b**2
    covariance = _window(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return score.mean(axis=(1, 2, 3))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the normal distributions with the means and covariances of two sets of features, (n d) and (m d).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), float64, covariances with n - 1. Source: Heusel et al. 2017 (FID).
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected two sets of at least 2 features of one width, got {a.shape} and {b.shape}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # The root of C_a C_b has the eigenvalues of that of the symmetric root(C_a) C_b root(C_a).
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    gap = a.mean(0) - b.mean(0)
    return float(max(0.0, gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * shared))


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape or a.ndim != 4 or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"expected two uint8 (t h w c) of one shape, got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    return a.astype(np.float64), b.astype(np.float64)


def _window(x: np.ndarray) -> np.ndarray:
    """Gaussian mean around every pixel that has a whole window, (t h w c) -> (t h-10 w-10 c)."""
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    weights /= weights.sum()
    height, width = x.shape[1] - 2 * RADIUS, x.shape[2] - 2 * RADIUS
    x = sum(w * x[:, i : i + height] for i, w in enumerate(weights))
    return sum(w * x[:, :, i : i + width] for i, w in enumerate(weights))
