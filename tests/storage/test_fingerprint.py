import hashlib
import json
import os
import shutil

import pytest

from moviegen.errors import ConfigError, DataError
from moviegen.storage import fingerprint


def test_a_fingerprint_is_noted_once_and_compared_ever_after(tmp_path):
    path = tmp_path / "made" / "manifest.json"
    fingerprint.check(path, {"size": (8, 8), "weights": "a"}, "other latents", "data.latent_folder")
    assert json.loads(path.read_text()) == {"size": [8, 8], "weights": "a"}
    before = path.stat()
    fingerprint.check(path, {"size": (8, 8), "weights": "a"}, "other latents", "data.latent_folder")
    assert path.stat() == before
    with pytest.raises(
        ConfigError, match=r'made holds other latents \(weights: "a" -> "b"\): delete it or change data\.l'
    ):
        fingerprint.check(path, {"size": (8, 8), "weights": "b"}, "other latents", "data.latent_folder")


def test_digest_is_of_the_content_in_order(tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    for file, content in zip(files, (b"one" * 9_000_000, b"two"), strict=True):
        file.write_bytes(content)
    assert fingerprint.digest(files) == hashlib.sha256(b"one" * 9_000_000 + b"two").hexdigest()[:16]
    assert fingerprint.hexdigest(files[1:], hashlib.sha1(b"head")) == hashlib.sha1(b"headtwo").hexdigest()
    assert fingerprint.digest(files[::-1]) != fingerprint.digest(files)


def test_what_is_beside_a_fingerprint_is_not_compared(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text('{"size": 8, "statistics": 1}')
    fingerprint.check(path, {"size": 8}, "other latents", "key", beside=("statistics",))
    with pytest.raises(ConfigError, match="statistics: 1 -> null"):
        fingerprint.check(path, {"size": 8}, "other latents", "key")


@pytest.mark.parametrize("content", ["{", "[1]", '"text"', "[" * 200_000])
def test_a_damaged_file_is_named_with_the_mend(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(DataError, match="manifest.json: damaged: delete it, and encode again"):
        fingerprint.check(path, {"size": 8}, "other latents", "key")


def test_a_file_is_the_same_until_another_replaces_it(tmp_path):
    path, copy = tmp_path / "a.mp4", tmp_path / "b.mp4"
    path.write_bytes(bytes(3 << 20))
    noted = json.loads(json.dumps(fingerprint.of_file(path)))
    shutil.copyfile(path, copy)
    os.utime(copy, (1, 1))
    assert fingerprint.is_same(path, noted) and fingerprint.is_same(copy, noted)
    for change in (b"x" + bytes((3 << 20) - 1), bytes((3 << 20) - 1) + b"x", bytes(5)):
        path.write_bytes(change)
        os.utime(path, (2, 2))
        assert not fingerprint.is_same(path, noted)
    with pytest.raises(DataError, match="a.mp4: cannot be read"):
        path.unlink()
        fingerprint.of_file(path)
