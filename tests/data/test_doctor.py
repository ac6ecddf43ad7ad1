import numpy as np
import pytest

from experiments import common, tae
from moviegen.data import doctor, findings, latent_cache, metadata
from moviegen.data.fit import Metadata
from moviegen.errors import DataError
from tests.text import tiny_encoders


class MadeUp(metadata.Table):
    """Files that are all there, 25 frames a second; the names say how many."""

    def row(self, name, path, piece=None):
        frames = int(path.stem)
        return metadata.Row(frames, 0, Metadata(frames, 25.0, 256, 256, frames / 25)), True


def survey(config, tmp_path, rows):
    (tmp_path / "table.csv").write_text("\n".join(["video,caption", *rows]))
    config.data.update(csv=str(tmp_path / "table.csv"), video_folder=str(tmp_path))
    checks = doctor.open_checks(config, MadeUp())
    return checks, doctor.survey(checks, config.data.csv, lambda *row: None)


def test_frames_that_are_a_stride_apart_take_a_longer_clip(tmp_path):
    config = tae.get_config()
    config.data.stride = 3
    _, found = survey(config, tmp_path, ["46.mp4,", "45.mp4,", "99.mp4,"])
    assert found.sums["16x256x256"].rows == 2 and found.lost == {"too short": 1}


def test_latents_say_the_bucket_where_there_are_some(tmp_path):
    config = common.stage("1b", 2, in_buckets=True)
    config.data.latent_folder = str(tmp_path / "latents")
    writer = latent_cache.ShardWriter(tmp_path / "latents", "float32", 0)
    for frames, latents in ((300, 24), (301, 25), (302, 15)):
        posterior = np.zeros((16, latents, 32, 32), np.float32)
        writer.add(f"{frames}.mp4", posterior, posterior + 1, "video", fps=16.0)
    writer.flush()
    _, found = survey(config, tmp_path, ["300.mp4,x", "301.mp4,x", "302.mp4,x", "303.mp4,x"])
    assert {name: sums.rows for name, sums in found.sums.items()} == {"192x256x256": 2}
    assert found.lost == {"other latents": 1, "no latents": 1}
    assert found.first["other latents"] == ["line 4: 302.mp4: latents of 15x32x32 fit no bucket"]


def test_captions_are_measured_by_the_tokenizers_that_there_are(tmp_path):
    tiny_encoders.make(tmp_path / "encoders")
    config = common.stage("1b", 2)
    config.text.encoders.metaclip = str(tmp_path / "encoders/metaclip")
    config.text.budgets.metaclip = 4
    checks, found = survey(config, tmp_path, ["300.mp4,a dog", "301.mp4,a dog runs and runs and runs"])
    assert {name: length.unit for name, length in checks.lengths.items()} == {
        "ul2": "words",
        "metaclip": "tokens",
        "byt5": "tokens",
    }
    assert list(found.lengths["ul2"]) == [3, 8]  # with the rate that is told
    short, long = found.lengths["metaclip"]
    assert (
        4 < short < long
        and findings.report(config, checks.buckets, checks.lengths, found)["captions"]["metaclip"]["cut"] == 2
    )


def test_a_csv_that_is_none_is_refused_before_anything_is_looked_at(tmp_path):
    with pytest.raises(DataError, match="line 3: cannot be read as csv"):
        survey(common.stage("1b", 2), tmp_path, ["300.mp4,x", '301.mp4,"x'])
