"""How near one video is to another: PSNR and SSIM per frame, in numpy."""

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
