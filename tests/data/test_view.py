import gc

import av
import numpy as np
import pytest

from moviegen.data import video, view
from tests.data import odd


def circle(height, width):
    """As stored where it is round on a picture of 48x64 pixels."""
    y, x = ((np.arange(n) + 0.5) / n * full for n, full in ((height, 48), (width, 64)))
    inside = (y[:, None] - 24) ** 2 + (x[None] - 32) ** 2 < 18**2
    return np.where(inside[..., None], 0, 255).astype(np.uint8).repeat(3, -1)


def round_as(frame):
    dark = frame.mean(-1) < 128
    return dark.any(1).sum(), dark.any(0).sum()


@pytest.mark.parametrize(
    "stored, pixel", [((48, 64), (1, 1)), ((48, 54), (32, 27)), ((48, 32), (2, 1)), ((24, 64), (1, 2))]
)
def test_a_circle_stays_round(tmp_path, stored, pixel):
    odd.encode(tmp_path / "a.mp4", "libx264", "yuv420p", [circle(*stored)] * 2, pixel=pixel)
    found = video.probe(tmp_path / "a.mp4")
    assert (found["height"], found["width"]) == (48, 64)
    for size, diameter in ((None, 36), ((48, 48), 36), ((24, 32), 18), (64, 48)):
        frame = video.read(tmp_path / "a.mp4", size=size)[0][0]
        np.testing.assert_allclose(round_as(frame), diameter, atol=1)
    (tmp_path / "b.mp4").write_bytes(odd.turned((tmp_path / "a.mp4").read_bytes()))
    assert video.read(tmp_path / "b.mp4")[0].shape == (2, 64, 48, 3)
    np.testing.assert_allclose(round_as(video.read(tmp_path / "b.mp4", size=(32, 40))[0][0]), 30, atol=1)


ONES = [(x, y) for x in (1, -1) for y in (1, -1)]


@pytest.mark.parametrize("turn", [(x, 0, 0, y) for x, y in ONES] + [(0, x, y, 0) for x, y in ONES])
def test_a_frame_is_turned_and_mirrored_as_the_file_says(tmp_path, turn):
    corner = np.full((48, 64, 3), 255, np.uint8)
    corner[:12, :32] = 0  # dark on the top left, longer than high
    odd.encode(tmp_path / "a.mp4", "libx264", "yuv420p", [corner] * 2)
    (tmp_path / "a.mp4").write_bytes(odd.turned((tmp_path / "a.mp4").read_bytes(), *turn))
    a, b, c, d = turn
    want = corner.swapaxes(0, 1) if b else corner
    want = want[:: b or d, :: c or a]
    np.testing.assert_allclose(video.read(tmp_path / "a.mp4")[0][1].astype(int), want, atol=12)


def rgb(planes, red, blue, full):
    """The definition, in numbers of luma's weights (H.273): Y, Cb, Cr of 8 bits as R, G, B."""
    y, cb, cr = np.asarray(planes, np.float64)
    y, cb, cr = (
        (y / 255, (cb - 128) / 255, (cr - 128) / 255) if full else ((y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224)
    )
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return np.clip([r, (y - red * r - blue * b) / (1 - red - blue), b], 0, 1) * 255


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "matrix, size, weights",
    [
        (1, (16, 16), (0.2126, 0.0722)),
        (5, (16, 1280), (0.299, 0.114)),
        (6, (16, 16), (0.299, 0.114)),
        (7, (16, 16), (0.212, 0.087)),
        (9, (16, 16), (0.2627, 0.0593)),
        (2, (576, 720), (0.299, 0.114)),  # untold: as players take it
        (2, (592, 16), (0.2126, 0.0722)),
        (2, (16, 1280), (0.2126, 0.0722)),
    ],
)
def test_colours_are_by_the_files_own_matrix_and_range(tmp_path, matrix, size, weights, full):
    planes = (100, 90, 180)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p"
        stream.colorspace, stream.color_range = matrix, 2 if full else 1
        frame = av.VideoFrame(size[1], size[0], "yuv444p")
        for plane, level in zip(frame.planes, planes, strict=True):
            plane.update(np.full(plane.buffer_size, level, np.uint8))
        frame.colorspace, frame.color_range, frame.pts = matrix, 2 if full else 1, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for where in (None, 16):
        got = video.read(tmp_path / "a.mkv", size=where)[0][0, 8, 8]
        np.testing.assert_allclose(got, rgb(planes, *weights, full), atol=1.01)


def test_transparency_is_over_white():
    rgba = np.array([[[220, 30, 40, 255], [220, 30, 40, 0], [220, 30, 40, 128], [0, 0, 0, 127]]], np.uint8)
    want = [[[220, 30, 40], [255, 255, 255], [237, 142, 147], [128, 128, 128]]]
    np.testing.assert_array_equal(view.over_white(rgba), want)


def test_hidden_colours_do_not_bleed_when_scaled(tmp_path):
    odd.encode(tmp_path / "a.mov", "png", "rgba", [odd.transparent()] * 2)
    small = video.read(tmp_path / "a.mov", size=(12, 16))[0][0].astype(int)
    assert (small[..., 0] > 210).all()  # blue between red and white would be darker in red than both


def test_a_frame_that_was_seen_is_let_go_at_once(tmp_path):
    """One that waits for the garbage collector keeps its memory, and decoders take more."""
    video.write_mp4(tmp_path / "a.mp4", np.zeros((2, 32, 48, 3), np.uint8), 8)
    gc.collect()
    gc.disable()
    try:
        assert len(video.read(tmp_path / "a.mp4")[0]) == 2
        assert not [each for each in gc.get_objects() if type(each) is av.VideoFrame]
    finally:
        gc.enable()


@pytest.mark.parametrize("form", ["yuv420p", "yuv444p", "yuv420p10le", "nv12", "gray", "rgb24", "rgb565le"])
def test_pixels_are_those_of_packed_rgb(form):
    """However they are converted, and by one scaler for frames of several sizes and matrices."""
    rng, scaler = np.random.default_rng(0), av.video.reformatter.VideoReformatter()
    for height, width in ((40, 64), (64, 40)):
        frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (height, width, 3), np.uint8), format="rgb24")
        frame = frame.reformat(format=form)
        for cover in ((20, 28), (40, 64), (50, 90)):
            for colours in ({}, {"src_colorspace": "ITU709"}):
                found = view.fitted(frame, scaler, view.Box(cover, cover, (1.0, 0.5)), **colours)
                scale = max(cover[0] / height, cover[1] / width)
                size = {"height": max(cover[0], round(height * scale)), "width": max(cover[1], round(width * scale))}
                whole = frame.to_ndarray(format="rgb24", interpolation=view._SCALER, **size, **colours)
                top, left = whole.shape[0] - cover[0], (whole.shape[1] - cover[1]) // 2
                np.testing.assert_array_equal(found, whole[top:, left : left + cover[1]])
