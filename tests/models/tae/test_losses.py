import numpy as np
import pytest

from moviegen.models.tae import losses as tae_losses
from moviegen.nn import layerwise
from tests.numeric import assert_close, slopes


def outlier(z, radius):
    """The paper's formula, frame by frame."""
    found = []
    for clip in z:
        for frame in np.moveaxis(clip, 1, 0):
            x = frame.reshape(len(frame), -1).T  # (pixels, channels)
            limit = radius * np.linalg.norm(x.std(0))
            found.append(np.maximum(np.linalg.norm(x - x.mean(0), axis=1) - limit, 0).mean())
    return float(np.mean(found))


def latents(seed=0):
    z = np.random.default_rng(seed).standard_normal((2, 3, 2, 3, 4)).astype(np.float32)
    z[0, :, 1, 2, 3] += 9  # the dot that the loss is for
    return z


@pytest.mark.parametrize("radius", [0.5, 3.0])
def test_the_outlier_penalty_and_its_gradient(radius):
    z = latents()
    fn = tae_losses.make_outlier(radius, 0.25)
    value, pull = layerwise.vjp(fn, {}, z)
    assert float(value) == pytest.approx(0.25 * outlier(z, radius), rel=1e-5)
    assert float(value) > 0
    expected = slopes(lambda z: 2 * 0.25 * outlier(z, radius), {"z": z})["z"]
    for _ in range(2):
        assert_close(pull(np.float32(2))[1][0], expected, tolerance=1e-3)


def test_ordinary_latents_are_not_penalised():
    z = np.random.default_rng(0).standard_normal((1, 16, 2, 16, 16)).astype(np.float32)
    value, pull = layerwise.vjp(tae_losses.make_outlier(3.0, 1.0), {}, z)
    assert float(value) == 0 and not pull(np.float32(1))[1][0].asnumpy().any()


def test_a_frame_of_one_pixel_has_no_outlier_and_no_nan():
    z = np.random.default_rng(0).standard_normal((1, 16, 1, 1, 1)).astype(np.float32)
    value, pull = layerwise.vjp(tae_losses.make_outlier(3.0, 1.0), {}, z)
    assert float(value) == 0 and not pull(np.float32(1))[1][0].asnumpy().any()


def test_losses_do_not_depend_on_the_size_of_the_video():
    rng = np.random.default_rng(0)
    small = rng.standard_normal((1, 3, 2, 8, 8)).astype(np.float32)
    large = np.tile(small, (2, 1, 1, 2, 2))
    fn = tae_losses.make_reconstruction(0.5, 2.0, 1.0)
    one, more = (layerwise.run(fn, {}, x, np.zeros_like(x)) for x in (small, large))
    np.testing.assert_allclose([float(x) for x in one], [float(x) for x in more], rtol=1e-5)
    z = latents()
    fn = tae_losses.make_outlier(0.5, 1.0)
    assert float(layerwise.run(fn, {}, np.tile(z, (2, 1, 3, 2, 2)))) == pytest.approx(
        float(layerwise.run(fn, {}, z)), rel=1e-5
    )
