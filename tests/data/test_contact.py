import io

import numpy as np
from PIL import Image

from moviegen.data import contact, files, video
from moviegen.data.findings import Sample
from moviegen.data.fit import Metadata, fit
from moviegen.parallel.buckets import Bucket


def picture(path, bucket):
    meta = Metadata(**video.probe(path))
    sample = Sample(0, files.File(path.name, path.parent), "", meta, fit([bucket], meta, 0.0), bucket)
    return np.asarray(Image.open(io.BytesIO(contact.strip(sample)))).astype(int)


def test_a_strip_shows_the_frames_that_are_taken_and_darkens_what_is_cut_off(tmp_path):
    frames = np.repeat(np.arange(60, dtype=np.uint8) * 4, 50 * 100 * 3).reshape(60, 50, 100, 3)
    video.write_mp4(tmp_path / "a.mp4", frames, 10)
    seen = picture(tmp_path / "a.mp4", Bucket(17, 64, 64, (5.0,)))
    assert seen.shape == (88, 3 * 176 + 4, 3)
    # 17 frames at 5 a second of 30: from the 6th on, which are the stored 12th, 28th and 44th.
    centres = seen[44, [88, 266, 444]].mean(-1)
    np.testing.assert_allclose(centres, [4 * 12, 4 * 28, 4 * 44], atol=6)
    np.testing.assert_allclose(seen[44, [360, 400]].mean(-1), [contact._DARK * 4 * 44, 4 * 44], atol=6)
    video.write_png(tmp_path / "a.png", frames[50, :, :40])
    assert picture(tmp_path / "a.png", Bucket(1, 64, 64)).shape == (100, 80, 3)
