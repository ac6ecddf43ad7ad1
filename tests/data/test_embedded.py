import numpy as np

from experiments import common
from moviegen.data import clips, embedded, synthetic


def config(**data):
    config = common.shrink(common.stage("1b", 2))
    config.data.update(dict(height=24, width=32, num_frames=8, num_samples=3) | data)
    return config


def test_rendered_splits_have_their_captions_and_frames_on_demand():
    made = config()
    tables = embedded.tables(made)
    counts = {"image": 3, "video": 3, "heldout_image": 32, "heldout": 32}
    assert {split: len(items) for split, items in tables.items()} == counts
    assert len({item.name for items in tables.values() for item in items}) == sum(counts.values())
    for split, items in tables.items():
        of = "heldout" if "heldout" in split else "train"
        draw = synthetic.sample_image if "image" in split else synthetic.sample_clip
        frames, caption = draw(made.seed, 2, of, *(() if "image" in split else (8,)), (24, 32))
        np.testing.assert_array_equal(items[2].frames(), frames)
        assert items[2].caption == caption and items[2].kind == split


def test_videos_of_a_set_for_images_have_two_frames():
    assert embedded.tables(config(num_frames=1))["video"][0].frames().shape == (2, 24, 32, 3)


def test_clips_are_images_and_videos_of_the_same_shots():
    tables = embedded.tables(config(source="clips", num_frames=4))
    shots = clips.captioned_clips()
    assert tables.keys() == {"image", "video"}
    for split, frames in (("image", 1), ("video", 4)):
        assert [item.caption for item in tables[split]] == [shot.caption for shot in shots]
        np.testing.assert_array_equal(tables[split][1].frames(), clips.read_clip(shots[1], frames, (24, 32)))
