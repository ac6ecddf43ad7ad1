import numpy as np

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
