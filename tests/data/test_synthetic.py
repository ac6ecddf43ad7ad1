import itertools

import numpy as np
import pytest

from moviegen.data import synthetic
from moviegen.evaluation import baselines, metrics

EVERY = synthetic.combinations("train") + synthetic.combinations("heldout")


def blur(x, sigma, axis):
    offsets = np.arange(-int(3 * sigma + 1), int(3 * sigma + 1) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    length = x.shape[axis]
    places = np.clip(np.arange(length)[None] + offsets[:, None], 0, length - 1)
    return sum(w * np.take(x, place, axis) for w, place in zip(weights / weights.sum(), places, strict=True))


def to_uint8(x):
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def rendered():
    return [synthetic.render(c, np.random.default_rng(i), 16, 64) for i, c in enumerate(EVERY)]


def test_the_splits_part_all_combinations():
    train, heldout = synthetic.combinations("train"), synthetic.combinations("heldout")
    assert (len(train), len(heldout)) == (80, 16)
    assert set(EVERY) == set(itertools.product(synthetic.COLOURS, synthetic.SHAPES, synthetic.DIRECTIONS))
    for first, second in ((0, 1), (0, 2), (1, 2)):  # every pair of attributes is seen in training
        assert {(c[first], c[second]) for c in train} == {(c[first], c[second]) for c in EVERY}
    for part in range(3):
        assert {c[part] for c in heldout} == {c[part] for c in EVERY}
    with pytest.raises(ValueError, match="test"):
        synthetic.combinations("test")


def test_captions():
    assert synthetic.caption(("red", "circle", "left")) == "a red circle moves left"
    assert synthetic.caption(("cyan", "cross", None)) == "a cyan cross"


def test_the_judge_reads_what_was_rendered(rendered):
    assert [synthetic.judge(frames) for frames in rendered] == EVERY


@pytest.mark.parametrize("num_frames, size", [(8, 32), (16, (48, 80)), (4, (96, 64)), (2, 64)])
def test_the_judge_at_other_sizes(num_frames, size):
    some = EVERY[::5]
    clips = [synthetic.render(c, np.random.default_rng(i), num_frames, size) for i, c in enumerate(some)]
    assert [synthetic.judge(clip) for clip in clips] == some


def test_the_judge_sees_through_blur_and_smear(rendered):
    for frames, combination in zip(rendered, EVERY, strict=True):
        smeared = blur(blur(blur(frames.astype(float), 1.5, 1), 1.5, 2), 2, 0)
        assert synthetic.judge(to_uint8(smeared)) == combination


def test_the_judge_sees_through_noise_of_25_decibels(rendered):
    rng = np.random.default_rng(0)
    for frames, combination in zip(rendered, EVERY, strict=True):
        noisy = to_uint8(frames + rng.normal(0, 14.4, frames.shape))
        assert metrics.mean_psnr(noisy, frames) < 25.7
        assert synthetic.judge(noisy) == combination


def test_the_judge_sees_through_a_lossy_code(rendered):
    code = baselines.fit_linear(rendered)
    decoded = [baselines.linear(code, frames) for frames in rendered]
    assert np.mean([metrics.mean_psnr(a, b) for a, b in zip(rendered, decoded, strict=True)]) < 28
    assert [synthetic.judge(frames) for frames in decoded] == EVERY


def test_the_judge_notices_each_swapped_attribute(rendered):
    frames, (colour, shape, direction) = rendered[EVERY.index(("red", "square", "left"))], ("red", "square", "left")
    assert synthetic.judge(frames) == (colour, shape, direction)
    assert synthetic.judge(frames[..., ::-1]) == ("blue", shape, direction)
    assert synthetic.judge(frames[::-1]) == (colour, shape, "right")
    assert synthetic.judge(frames.transpose(0, 2, 1, 3)) == (colour, shape, "up")
    other = synthetic.render(("red", "triangle", "left"), np.random.default_rng(3), 16, 64)
    assert synthetic.judge(other[:, ::-1]) == ("red", None, "left")  # a triangle on its tip is none of the shapes


def test_the_judge_admits_what_it_cannot_tell(rendered):
    nothing = (None, None, None)
    rng = np.random.default_rng(0)
    assert synthetic.judge(np.full((16, 64, 64, 3), 128, np.uint8)) == nothing
    assert synthetic.judge(np.full((16, 64, 64, 3), (200, 30, 30), np.uint8)) == nothing
    assert synthetic.judge(to_uint8(rng.normal(128, 14, (16, 64, 64, 3)))) == nothing
    assert synthetic.judge(rng.integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)) == nothing
    still = np.repeat(rendered[0][:1], 16, axis=0)
    assert synthetic.judge(still) == (*EVERY[0][:2], None)
    assert synthetic.judge(rendered[0][:1]) == (*EVERY[0][:2], None)
    back = np.concatenate([rendered[0][::2], rendered[0][::-2]])
    assert synthetic.judge(back)[2] is None
    bar = np.full((16, 64, 64, 3), 90, np.uint8)
    for t in range(16):
        bar[t, 25:39, 5 + t : 33 + t] = (45, 205, 45)
    assert synthetic.judge(bar) == ("green", None, "right")


def test_objects_stay_inside_and_move_far_enough():
    for i, combination in enumerate(EVERY):
        frames = synthetic.render(combination, np.random.default_rng([i, 1]), 16, 64).astype(int)
        coloured = (frames.max(axis=3) - frames.min(axis=3)) > 60
        border = np.concatenate([coloured[:, [0, -1]].ravel(), coloured[:, :, [0, -1]].ravel()])
        assert not border.any()
        rows, columns = coloured[0].any(axis=1).sum(), coloured[0].any(axis=0).sum()
        assert 20 <= rows <= 33 and 20 <= columns <= 35
        where = [np.argwhere(frame).mean(axis=0) for frame in coloured[[0, -1]]]
        travel = (where[1] - where[0]) / 64
        np.testing.assert_allclose(travel / np.linalg.norm(travel), synthetic.DIRECTIONS[combination[2]], atol=0.05)
        assert 0.25 < np.linalg.norm(travel) < 0.42


@pytest.mark.parametrize("shape, area", [("circle", np.pi), ("square", 1.84**2), ("triangle", 2.3), ("cross", 2.592)])
def test_coverage_has_the_area_of_the_shape(shape, area):
    # cross: two bars of 2.16 x 0.72 less the 0.72 x 0.72 that they share
    cover = synthetic.coverage(shape, np.array([31.3, 32.6]), 13.7, 64, 64)
    assert cover.sum() == pytest.approx(area * 13.7**2, rel=0.01)
    assert cover.min() == 0 and cover.max() == 1 and ((cover > 0) & (cover < 1)).any()


def test_samples_are_a_pure_function_of_seed_and_index():
    one, text = synthetic.sample_clip(3, 17, "train", 8, 32)
    synthetic.sample_clip(3, 18, "train", 8, 32)
    again, text_again = synthetic.sample_clip(3, 17, "train", 8, 32)
    np.testing.assert_array_equal(one, again)
    assert text == text_again and one.shape == (8, 32, 32, 3)
    for other in ((4, 17, "train"), (3, 97, "train"), (3, 17, "heldout")):
        assert (one[0, 0] != synthetic.sample_clip(*other, 8, 32)[0][0, 0]).any()  # another background
    assert (synthetic.sample_image(3, 17, "train", 32)[0][0, 0] != one[0, 0]).any()


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_combination_comes_once_an_epoch(split):
    wanted = synthetic.combinations(split)
    epochs = [[synthetic.sample_combination(0, e * len(wanted) + i, split) for i in range(len(wanted))] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(wanted)
    assert epochs[0] != epochs[1]


def test_clips_and_images_show_their_captions():
    for index in range(12):
        frames, text = synthetic.sample_clip(1, index, "heldout", 8, 64)
        assert synthetic.caption(synthetic.judge(frames)) == text
        image, text = synthetic.sample_image(1, index, "train", 64)
        assert image.shape == (1, 64, 64, 3)
        assert synthetic.caption(synthetic.judge(image)) == text
