import contextlib
import os
import subprocess
import sys

import av
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from moviegen.data import crops, demux, files, video
from moviegen.data.pieces import Piece
from moviegen.errors import DataError
from moviegen.evaluation import comparison, metrics
from moviegen.jobs import encode_video
from tests.data import odd


def moving_square(num_frames=20, height=48, width=64):
    frames = np.full((num_frames, height, width, 3), (40, 90, 160), np.uint8)
    for t in range(num_frames):
        frames[t, 16:32, t * 2 : t * 2 + 16] = (220, 200, 60)
    return frames


def write_exact(path, frames, codec="ffv1", fps=25):
    """Without loss, in another container than write_mp4's."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return path


def test_mp4_reads_back(tmp_path):
    frames = moving_square()
    video.write_mp4(tmp_path / "new" / "a.mp4", frames, 29.97)
    got, fps = video.read(tmp_path / "new" / "a.mp4")
    assert got.shape == frames.shape and got.dtype == np.uint8
    assert fps == pytest.approx(29.97, abs=1e-3)
    assert metrics.psnr(got, frames).min() > 28  # 4:2:0 blurs the coloured edges
    assert os.listdir(tmp_path / "new") == ["a.mp4"]
    with av.open(str(tmp_path / "new" / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].pix_fmt == "yuv420p"


def test_read_takes_exactly_the_frames_asked_for(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (13, 16, 24, 3), dtype=np.uint8)
    path = write_exact(tmp_path / "a.mkv", frames)
    np.testing.assert_array_equal(video.read(path)[0], frames)
    got, fps = video.read(path, start=3, num_frames=4, stride=3)
    np.testing.assert_array_equal(got, frames[[3, 6, 9, 12]])
    assert fps == pytest.approx(25 / 3)
    np.testing.assert_array_equal(video.read(path, start=5, stride=4)[0], frames[5::4])


@pytest.mark.parametrize("arguments", [{}, {"fps": 9.0}, {"start": 3}, {"start": 1, "num_frames": 11, "stride": 3}])
def test_a_stream_is_what_read_gives_in_pieces(tmp_path, arguments):
    path = write_exact(tmp_path / "a.mkv", np.random.default_rng(0).integers(0, 256, (35, 16, 24, 3), dtype=np.uint8))
    whole, rate = video.read(path, **arguments)
    pieces = list(video.stream(path, **arguments, most=4))
    assert {len(frames) for frames, _ in pieces[:-1]} == {4} and 1 <= len(pieces[-1][0]) <= 4
    np.testing.assert_array_equal(np.concatenate([frames for frames, _ in pieces]), whole)
    assert {own for _, own in pieces} == {rate}


def test_b_frames_come_in_display_order(tmp_path):
    frames = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 32 * 32 * 3).reshape(24, 32, 32, 3)
    video.write_mp4(tmp_path / "a.mp4", frames, 24)
    got, _ = video.read(tmp_path / "a.mp4", start=7, num_frames=9)
    np.testing.assert_allclose(got.mean(axis=(1, 2, 3)), np.arange(70, 160, 10), atol=3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mpg", "a.avi", "a.webm"])
def test_seeking_finds_the_frames_that_decoding_from_the_start_does(tmp_path, name):
    """Open and closed groups of pictures, B frames, files without times of their own."""
    codec = {"a.mpg": "mpeg2video", "a.avi": "mpeg4", "a.webm": "libvpx-vp9"}.get(name, "libx264")
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "10", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for array in moving_square(24).repeat(2, axis=0) + np.arange(48, dtype=np.uint8)[:, None, None, None] % 30:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    whole, fps = video.read(tmp_path / name)
    for start, count, stride in ((1, 1, 1), (9, 3, 1), (10, 2, 1), (11, 4, 3), (37, 11, 1), (47, 1, 1)):
        got, rate = video.read(tmp_path / name, start, count, stride)
        np.testing.assert_array_equal(got, whole[start : start + (count - 1) * stride + 1 : stride])
        assert rate == fps / stride
    for first, last in ((0, 9), (1, 10), (11, 25), (10, len(whole))):
        piece = Piece(name, max(0, first - 0.5) / fps, (last - 0.5) / fps if last < len(whole) else np.inf)
        np.testing.assert_array_equal(video.read(tmp_path / name, piece=piece)[0], whole[first:last])
        np.testing.assert_array_equal(video.read(tmp_path / name, 1, 3, 2, piece=piece)[0], whole[first + 1 :: 2][:3])
        at_rate, _ = video.read(tmp_path / name, 0, 3, piece=piece, fps=fps / 2)
        np.testing.assert_array_equal(at_rate, whole[first::2][:3])
        assert video.probe(tmp_path / name, piece)["frames"] == last - first
    for piece in (Piece(name, 5, 6), Piece(name, 0.001, 0.002)):
        check_refused(tmp_path / name, f"shows no frame from {piece.start:g} to", piece=piece)
        with pytest.raises(DataError, match="shows no frame from"):
            video.probe(tmp_path / name, piece)
    check_refused(
        tmp_path / name, f"{len(whole)} frames, but frames 40 to {len(whole)}", start=40, num_frames=len(whole) - 39
    )


def test_seeking_does_not_decode_what_comes_before(tmp_path, monkeypatch):
    video.write_mp4(tmp_path / "a.mp4", moving_square(24).repeat(25, axis=0), 25)  # a key frame every 250
    counted, opened = [], demux.opened

    @contextlib.contextmanager
    def counting(path, threads=0):
        with opened(path) as (container, stream):
            yield Counting(container), stream

    class Counting:
        def __init__(self, container):
            self.demux, self.seek, self.container = container.demux, container.seek, container

        def decode(self, stream):
            for frame in self.container.decode(stream):
                counted.append(frame)
                yield frame

    whole, _ = video.read(tmp_path / "a.mp4")
    monkeypatch.setattr(demux, "opened", counting)
    np.testing.assert_array_equal(video.read(tmp_path / "a.mp4", 520, 2)[0], whole[520:522])
    assert len(counted) <= 32


def test_size_covers_and_crops_the_centre(tmp_path):
    wide = np.zeros((1, 32, 96, 3), np.uint8)
    wide[:, :, :32], wide[:, :, 32:64], wide[:, :, 64:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    path = write_exact(tmp_path / "a.mkv", wide)
    square, _ = video.read(path, size=16)
    assert square.shape == (1, 16, 16, 3)
    np.testing.assert_allclose(square[0, :, 2:-2], np.broadcast_to((0, 255, 0), (16, 12, 3)), atol=20)
    flat, _ = video.read(path, size=(8, 48))  # only rows are cropped: all three colours, in thirds
    np.testing.assert_allclose(flat[0, 4, [4, 24, 44]], [(255, 0, 0), (0, 255, 0), (0, 0, 255)], atol=20)
    np.testing.assert_array_equal(video.read(path, size=(32, 96))[0], wide)
    tall = write_exact(tmp_path / "b.mkv", np.rot90(wide, axes=(1, 2)))
    np.testing.assert_allclose(
        video.read(tall, size=16)[0][0, 2:-2], np.broadcast_to((0, 255, 0), (12, 16, 3)), atol=20
    )


def test_rotation_of_the_file_is_honoured(tmp_path):
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :, :16] = 255  # a bright left edge
    video.write_mp4(tmp_path / "a.mp4", frames, 10)
    (tmp_path / "b.mp4").write_bytes(odd.turned((tmp_path / "a.mp4").read_bytes()))
    got, _ = video.read(tmp_path / "b.mp4")
    assert got.shape == (2, 64, 32, 3)
    assert got[:, :12].min() > 230 and got[:, 20:].max() < 25  # clockwise: left becomes top
    assert video.read(tmp_path / "b.mp4", size=(40, 20))[0][:, :8].min() > 220
    assert (video.probe(tmp_path / "b.mp4")["height"], video.probe(tmp_path / "b.mp4")["width"]) == (64, 32)


def test_images_are_one_frame(tmp_path):
    frame = moving_square(1)[0]
    video.write_png(tmp_path / "a.png", frame)
    got, fps = video.read(tmp_path / "a.png", num_frames=1)
    np.testing.assert_array_equal(got, frame[None])
    assert fps == 0
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn 90 degrees clockwise to show"
    Image.fromarray(frame).save(tmp_path / "b.jpg", exif=exif, quality=98, subsampling=0)
    np.testing.assert_allclose(video.read(tmp_path / "b.jpg")[0][0], np.rot90(frame, -1), atol=12)
    assert video.read(tmp_path / "b.jpg", size=32)[0].shape == (1, 32, 32, 3)
    with pytest.raises(DataError, match="one frame"):
        video.read(tmp_path / "a.png", num_frames=2)


def test_probe(tmp_path):
    video.write_mp4(tmp_path / "a.mp4", moving_square(17), 12.5)
    assert video.probe(tmp_path / "a.mp4") == {"frames": 17, "fps": 12.5, "height": 48, "width": 64, "seconds": 1.36}
    video.write_png(tmp_path / "a.png", moving_square(1)[0])
    assert video.probe(tmp_path / "a.png")["frames"] == 1


def check_refused(path, reason, **arguments):
    for function in (video.read, video.probe) if not arguments else (video.read,):
        with pytest.raises(DataError, match=reason) as caught:
            function(path, **arguments)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_refused(tmp_path):
    check_refused(tmp_path / "none.mp4", "no such file")
    check_refused(tmp_path, "is a folder, a pipe or a device")
    for name in ("a.mp4", "a.png"):
        (tmp_path / name).write_bytes(b"")
        check_refused(tmp_path / name, "damaged")
        (tmp_path / name).write_bytes(bytes(range(256)) * 20)
        check_refused(tmp_path / name, "damaged")


def test_truncated_files_are_refused(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    video.write_mp4(tmp_path / "a.mp4", frames, 25)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    check_refused(tmp_path / "cut.mp4", "damaged")
    video.write_png(tmp_path / "a.png", frames[0])
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    check_refused(tmp_path / "cut.png", "damaged")
    # An index in front survives the cut and promises frames that are gone.
    with av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "1", "bf": "0", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    content = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "front.mp4").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match="truncated"):  # by the decoder or by the count, as many threads as there are
        video.read(tmp_path / "front.mp4")
    assert len(video.read(tmp_path / "front.mp4", num_frames=4)[0]) == 4  # what is whole can be used
    with pytest.raises(DataError, match="front.mp4"):
        video.read(tmp_path / "front.mp4", num_frames=12)


def test_too_few_frames_are_refused(tmp_path):
    video.write_mp4(tmp_path / "a.mp4", moving_square(10), 25)
    check_refused(tmp_path / "a.mp4", "10 frames, but frames 2 to 10 were asked for", start=2, num_frames=3, stride=4)
    check_refused(tmp_path / "a.mp4", "10 frames, but frames from 10", start=10)
    with pytest.raises(ValueError, match="stride 0"):
        video.read(tmp_path / "a.mp4", stride=0)


def test_a_size_that_changes_is_read_at_one_size_or_refused(tmp_path):
    for name, size in (("a.h264", (48, 64)), ("b.h264", (64, 80))):
        odd.encode(tmp_path / name, "libx264", "yuv420p", [odd.scene(*size)] * 3)
    (tmp_path / "c.h264").write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    check_refused(tmp_path / "c.h264", r"its size changes, from \(48, 64\) to \(64, 80\)", num_frames=6)
    assert video.read(tmp_path / "c.h264", size=32)[0].shape == (6, 32, 32, 3)


def test_audio_alone_and_no_frame_are_refused(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    check_refused(tmp_path / "a.wav", "no video stream")
    with av.open(str(tmp_path / "empty.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "bgr0"
        container.start_encoding()
    check_refused(tmp_path / "empty.mkv", "no decodable video frame|damaged")


def test_what_cannot_be_written_is_refused_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    video.write_mp4(path, moving_square(3), 10)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="even height and width, got 47x64"):
        video.write_mp4(path, moving_square(3, height=47), 10)
    with pytest.raises(ValueError, match="above 0"):
        video.write_mp4(path, moving_square(3), 0)
    with pytest.raises(ValueError, match="float32"):
        video.write_mp4(path, moving_square(3).astype(np.float32), 10)
    monkeypatch.setattr(video.files.os, "replace", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        video.write_mp4(path, moving_square(5), 10)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.mp4"]


def test_what_is_written_shows_its_colours_where_players_take_bt709(tmp_path):
    """Nothing but luma's weights is taken from the file: as a player that goes by BT.709, or by what the file says."""
    colours = np.array([(220, 30, 40), (30, 200, 60), (20, 40, 210), (128, 128, 128)], np.uint8)
    frame = colours.repeat(144, 0)[None].repeat(1024, 0)  # 576 wide, in four bars
    video.write_mp4(tmp_path / "a.mp4", frame[None].repeat(2, 0), 16)
    with av.open(str(tmp_path / "a.mp4")) as container:
        decoded = next(container.decode(video=0))
    assert (decoded.colorspace, decoded.color_primaries, decoded.color_trc, decoded.color_range) == (1, 1, 1, 1)
    assert b"colrnclx\0\1\0\1\0\1\0" in (tmp_path / "a.mp4").read_bytes()
    planes = [np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] for plane in decoded.planes]
    y, cb, cr = (plane[:: len(plane) // 512, :: plane.shape[1] // 288].astype(float) for plane in planes)
    y, cb, cr = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    r, b = y + 1.5748 * cr, y + 1.8556 * cb
    shown = 255 * np.stack([r, (y - 0.2126 * r - 0.0722 * b) / 0.7152, b], -1)
    np.testing.assert_allclose(shown[256, 36::72], colours, atol=2)
    np.testing.assert_allclose(video.read(tmp_path / "a.mp4")[0][0, 500, 72::144], colours, atol=1)


FULL_DISK = """
import resource, sys
import numpy as np
from moviegen.data import video
from moviegen.errors import DataError

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
noise = np.random.default_rng(0).integers(0, 256, (int(sys.argv[2]), 64, 64, 3), np.uint8)
try:
    video.write_png(sys.argv[1], noise[0]) if len(noise) == 1 else video.write_mp4(sys.argv[1], noise, 8)
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("name, frames", [("a.png", 1), ("a.mp4", 2), ("a.mp4", 120)])
def test_a_full_disk_is_told_in_a_line_and_leaves_the_old_file(tmp_path, name, frames):
    (tmp_path / name).write_text("old")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / name), str(frames)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and f"{tmp_path / name}: cannot be written" in done.stdout
    assert "File too large" in done.stdout
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "old")]


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    return odd.write(tmp_path_factory.mktemp("odd"))


def read_by_jobs(folder, name, frames):
    """What encode_video, training of the autoencoder and evaluation read of one file, in turn."""
    (folder.parent / "one.csv").write_text(f"video\n{name}\n")
    data = ConfigDict(
        dict(csv=str(folder.parent / "one.csv"), video_folder=str(folder), source="csv", max_bad_fraction=0.0, fps=0.0)
        | dict(num_frames=frames, height=odd.HEIGHT, width=odd.WIDTH, image_fraction=float(frames == 1))
    )
    evaluate = ConfigDict(dict(csv=data.csv, video_folder=data.video_folder, num_frames=0, max_clips=0))
    (file,) = files.listed(data.csv, data.video_folder)
    yield lambda: np.concatenate([*encode_video._frames(file, data, None, {})])
    yield lambda: crops.source(data)(np.random.default_rng(0), frames, odd.HEIGHT, odd.WIDTH)
    yield lambda: next(comparison.measured(ConfigDict(dict(evaluate=evaluate, data=data)))[0]).frames


@pytest.mark.parametrize("name", odd.FILES)
def test_every_job_reads_an_odd_file_alike_or_refuses_it(odd_files, name):
    reason = odd.FILES[name]
    frames = 1 if video.is_image(odd_files / name) else odd.FRAMES
    for read in read_by_jobs(odd_files, name, frames):
        if reason:
            with pytest.raises(DataError, match=reason) as caught:
                read()
            assert name in str(caught.value) and "\n" not in str(caught.value)
            continue
        found = read()
        assert found.shape == (frames, odd.HEIGHT, odd.WIDTH, 3)
        np.testing.assert_array_equal(found, video.read(odd_files / name)[0])
        away = [*range(26), *range(38, odd.WIDTH)]  # from the border, which scaling and coding soften
        np.testing.assert_allclose(found[:, :, away], odd.scene()[None, :, away].repeat(frames, 0), atol=3)


def test_sheet_lays_frames_out_in_rows(tmp_path):
    frames = np.stack([np.full((4, 6, 3), 40 * i, np.uint8) for i in range(5)])
    video.write_sheet(tmp_path / "s.png", frames, columns=3)
    sheet = video.read(tmp_path / "s.png")[0][0]
    assert sheet.shape == (4 + 2 + 4, 6 * 3 + 2 * 2, 3)
    assert [sheet[0, 0, 0], sheet[0, 8, 0], sheet[3, 21, 0], sheet[6, 0, 0], sheet[9, 13, 0]] == [0, 40, 80, 120, 160]
    assert sheet[4, 0, 0] == sheet[0, 6, 0] == sheet[9, 21, 0] == 255


def test_model_range_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1).repeat(3, axis=3)
    levels[..., 1] = 255 - levels[..., 1]
    got = video.to_model(levels)
    assert got.dtype == np.float32 and got.shape == (3, 2, 8, 16) and got.min() == -1 and got.max() == 1
    assert got[1, 0, 0, 0] == 1 and got[0, 0, 0, 0] == -1
    np.testing.assert_array_equal(video.to_uint8(got), levels)
    np.testing.assert_array_equal(
        video.to_uint8(np.array([-9.0, 9.0, 0.0]).reshape(3, 1, 1, 1))[0, 0, 0], [0, 255, 128]
    )
