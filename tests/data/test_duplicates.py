import time

import numpy as np
import pytest

from moviegen.data import duplicates

RNG = np.random.default_rng(0)


def picture(height, width):
    """Smooth, as real ones are."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return sum(amplitude * np.sin(a * x + b * y + c) for amplitude, a, b, c in WAVES) * 20 + 128


WAVES = RNG.uniform(-6, 6, (8, 4))


def distance(one, other):
    return bin(one ^ other).count("1")


def test_a_picture_is_known_again_at_another_size_brightness_and_coding():
    whole = picture(270, 480)
    noisy = picture(135, 240) + RNG.normal(0, 4, (135, 240))
    assert distance(duplicates.phash(whole), duplicates.phash(noisy * 0.9 + 10)) <= 4
    assert distance(duplicates.phash(whole), duplicates.phash(whole[::-1])) > 12
    assert 24 <= bin(duplicates.phash(whole)).count("1") <= 32  # half of them: hashes are spread out


def flipped(hashes, bits):
    found = hashes.copy()
    for row in found:
        for i in range(len(row)):
            for bit in RNG.choice(64, bits, replace=False):
                row[i] ^= np.uint64(1) << np.uint64(bit)
    return found


@pytest.mark.parametrize("bits", [0, 1, 6, 10])
def test_all_within_the_distance_are_found_and_none_beyond(bits):
    hashes = RNG.integers(0, 1 << 63, (300, 3), np.uint64)
    near, far = flipped(hashes[:100], bits), flipped(hashes[100:200], bits + 1)
    assert duplicates.near_better([*hashes, *near, *far], bits) == list(range(300, 400))
    one_picture_differs = hashes[:50].copy()
    one_picture_differs[:, 2] = RNG.integers(0, 1 << 63, 50, np.uint64)
    assert duplicates.near_better([*hashes, *one_picture_differs], bits) == []


def test_the_first_of_many_is_the_one_that_stays():
    assert duplicates.near_better([[7, 7, 7]] * 5 + [[1 << 40] * 3], 1) == [1, 2, 3, 4]
    assert duplicates.near_better([[1]], 6) == [] and duplicates.near_better([], 6) == []


def test_a_large_table_takes_seconds():
    """All pairs of them would be 8 x 10^8."""
    hashes = RNG.integers(0, 1 << 63, (40_000, 3), np.uint64)
    start = time.process_time()
    assert duplicates.near_better(np.concatenate([hashes, hashes[:100]]), 6) == list(range(40_000, 40_100))
    assert time.process_time() - start < 10
