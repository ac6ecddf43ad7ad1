import weakref

import numpy as np

from moviegen.data import video
from moviegen.sampling.sampler import Request
from moviegen.sampling.write import write


def test_a_video_is_written_as_its_pieces_come(tmp_path):
    frames = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3) * 20
    given = []

    def pieces():
        for piece in np.split(frames, [5, 6, 7, 9, 10]):
            assert sum(before() is not None for before in given) <= 3
            piece = piece.copy()
            given.append(weakref.ref(piece))
            yield piece

    base = write(tmp_path, Request("A dog!", 3), pieces(), 12, 8.0)
    assert base == tmp_path / "03-a-dog" and len(given) == 6
    np.testing.assert_allclose(video.read(base.with_suffix(".mp4"))[0].mean((1, 2, 3)), frames.mean((1, 2, 3)), atol=3)
    sheet = video.read(base.with_suffix(".png"))[0][0]
    assert [int(sheet[0, 18 * i, 0]) // 20 for i in range(8)] == [0, 2, 3, 5, 6, 8, 9, 11]
