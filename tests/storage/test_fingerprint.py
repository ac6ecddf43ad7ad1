import hashlib
import json

import pytest

from moviegen.errors import ConfigError
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
