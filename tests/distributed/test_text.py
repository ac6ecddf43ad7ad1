"""Two ranks embed what one does, with whole weights and with shards."""

import numpy as np

from moviegen.text import store
from tests.distributed import ranks
from tests.text import tiny_encoders

PROMPTS = [*tiny_encoders.WORDS, "a dog", 'a "sign"', "seven, which two ranks do not divide"]


def test_ranks_embed_what_one_does(tmp_path):
    tiny_encoders.make(tmp_path / "encoders")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    meshes = ("zero=2/3", "data=2/0")
    ranks.run("check_text.py", 2, tmp_path, str(tmp_path), *meshes)
    for name in tiny_encoders.WIDTHS:
        alone = store.open_store(tmp_path / "alone" / name)
        texts = ["", "sign"] if name == "byt5" else ["", *(f"FPS-16 {prompt}" for prompt in PROMPTS)]
        assert len(alone.keys) == len(texts) and len(alone.files) == 1
        for mesh in meshes:
            found = store.open_store(tmp_path / mesh.replace("/", "-") / name)
            np.testing.assert_array_equal(found.keys, alone.keys)
            assert len(found.files) == (1 if name == "byt5" else 2)  # a shard of each rank that had a batch
            for text in texts:
                for ours, expected in zip(store.read(found, text), store.read(alone, text), strict=True):
                    np.testing.assert_allclose(ours, expected, atol=2e-2 if ours.dtype == np.float32 else 0)
