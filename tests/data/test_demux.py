import av
import numpy as np
import pytest

from moviegen.data import demux, video
from moviegen.errors import DataError
from tests.data import odd


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return odd.write(tmp_path_factory.mktemp("odd"))


def packets(path):
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize(
    "name, more", [("cut.mp4", 3), ("open.mkv", 2), ("skipped.avi", 1), ("late.avi", 0), ("gif", 0)]
)
def test_a_file_has_as_many_frames_as_are_shown(folder, name, more):
    """Of an edit list, of an open group of pictures, of skipped and of late ones: for probe, for read, and by seeking."""
    path = folder / name
    if name == "gif":
        odd.encode(path.with_suffix(".gif"), "gif", "rgb8", [odd.scene() // (i + 1) for i in range(8)])
        path = path.with_suffix(".gif")
    assert len(packets(path)) == odd.FRAMES + more
    assert video.probe(path)["frames"] == odd.FRAMES and demux.index(path).lost == 0
    whole, _ = video.read(path)
    assert len(whole) == odd.FRAMES
    np.testing.assert_array_equal(video.read(path, 0, odd.FRAMES)[0], whole)
    for start in range(1, odd.FRAMES):
        np.testing.assert_array_equal(video.read(path, start, 1)[0][0], whole[start])
        assert len(video.read(path, start)[0]) == odd.FRAMES - start


def test_an_edit_list_of_a_moving_scene_starts_where_it_says(tmp_path):
    shots = [np.full((48, 64, 3), 10 * i, np.uint8) for i in range(24)]
    odd.encode(tmp_path / "a.mp4", "libx264", "yuv420p", shots, options={"g": "8", "bf": "2", "sc_threshold": "0"})
    odd.cut(tmp_path / "a.mp4", tmp_path / "b.mp4", 11)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].frames == 16
    for frames in (video.read(tmp_path / "b.mp4")[0], video.read(tmp_path / "b.mp4", 0, 13)[0]):
        np.testing.assert_allclose(frames.mean((1, 2, 3)), np.arange(110, 240, 10), atol=3)
    np.testing.assert_allclose(video.read(tmp_path / "b.mp4", 4, 2)[0].mean((1, 2, 3)), [150, 160], atol=3)


def test_playlists_open_nothing(folder, monkeypatch):
    """What they name is there, and would decode."""
    assert video.probe(folder / "bt709.mp4")["frames"] == odd.FRAMES
    for name in ("hls.m3u8", "concat.mp4"):
        with pytest.raises(DataError, match=name):
            video.read(folder / name)
    monkeypatch.chdir(folder)
    (folder / "concat:bt709.mp4").write_text("no video")
    with pytest.raises(DataError, match="concat:bt709.mp4: damaged"):
        video.read("concat:bt709.mp4")


def test_a_header_tells_how_many_frames_are_there_and_how_long(folder, tmp_path, monkeypatch):
    """Where it leaves doubts the whole file is looked through: a truncated one, and one that is written in fragments."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in (".mp4", ".mov", ".avi"))
    shots = [odd.scene() // (i + 1) for i in range(80)]
    for name, flags in (("start.mp4", "faststart"), ("parts.mp4", "frag_keyframe+empty_moov")):
        with av.open(str(tmp_path / name), "w", options={"movflags": flags}) as new:
            stream = new.add_stream("libx264", rate=8, options={"g": "8"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for shot in shots:
                new.mux(stream.encode(av.VideoFrame.from_ndarray(shot)))
            new.mux(stream.encode(None))
    content = (tmp_path / "start.mp4").read_bytes()
    (tmp_path / "short.mp4").write_bytes(content[: len(content) * 9 // 10])
    with av.open(str(tmp_path / "uneven.mp4"), "w") as new:
        stream = new.add_stream("libx264", rate=8, options={"g": "200", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i, shot in enumerate([*shots, *shots]):
            frame = av.VideoFrame.from_ndarray(shot)
            frame.pts = i + 3 * (i // 40)
            new.mux(stream.encode(frame))
        new.mux(stream.encode(None))
    found = {}
    for path in [*paths, *tmp_path.iterdir()]:
        try:
            found[path.name] = demux.index(path)
        except DataError:
            continue
        frames, times = found[path.name].frames, found[path.name].times
        with demux.opened(path) as (_, stream):
            unit = stream.time_base
        span = None if times is None else int(times[-1] - times[0]) * unit
        assert demux.extent(path) == (frames, span), path.name
    assert found["start.mp4"].frames == found["parts.mp4"].frames == 80 > found["short.mp4"].frames and len(found) > 12
    monkeypatch.setattr(demux, "index", None)
    assert demux.extent(folder / "bt709.mp4") == (odd.FRAMES, (odd.FRAMES - 1) / 8)
    assert demux.extent(tmp_path / "start.mp4") == (80, 79 / 8)
    assert demux.extent(tmp_path / "uneven.mp4") == (160, (159 + 9) / 8)
