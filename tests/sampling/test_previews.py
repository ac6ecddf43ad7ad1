"""Samples while training goes on, with models whose answer is known."""

import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from moviegen.parallel.comm import LOCAL
from moviegen.runner import Run
from moviegen.sampling import previews
from moviegen.sampling.sampler import Request, Sampler
from tests.sampling import stand_ins


@pytest.fixture
def config():
    made = stand_ins.config()
    made.valid = dict(prompts=("a red circle moves left", "<a blue square>"), every=2)
    return made


class Noted:
    """A writer."""

    def __init__(self):
        self.calls = []

    def write_videos(self, step, videos):
        self.calls += [(step, key, value.shape) for key, value in videos.items()]

    write_images = write_videos


def sampled(config, workdir, step):
    """What a run that starts here shows at a step, and the latents that were decoded for it."""
    writer = Noted()
    statistics = ConfigDict({f"latent_{key}": value for key, value in stand_ins.MEANS.items()})
    previews.show(Run(config, workdir))({}, LOCAL, statistics, step, writer)
    return writer.calls


@pytest.mark.parametrize(("frames", "tag"), [(4, "video"), (1, "img")])
def test_a_row_for_each_prompt_and_a_column_for_each_time(config, tmp_path, monkeypatch, frames, tag):
    decoded = stand_ins.install(monkeypatch, tmp_path)
    config.sample.num_frames = frames
    shape = (frames, 16, 16, 3) if frames > 1 else (16, 16, 3)
    names = ["samples/00-a-red-circle-moves-left", "samples/01-a-blue-square"]
    for step in (2, 40):  # each by a process of its own, as after a kill
        assert sampled(config, tmp_path, step) == [(step, name, shape) for name in names]
    page = (tmp_path / previews.PAGE).read_text()
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in page.split("<tr>")[1:]]
    assert rows[0] == ["prompt", "step 2", "step 40"]
    assert [row[0] for row in rows[1:]] == ["a red circle moves left", "&lt;a blue square&gt;"]
    for row, name in zip(rows[1:], names, strict=True):
        for cell, step in zip(row[1:], ("00000002", "00000040"), strict=True):
            link = re.fullmatch(f'<{tag} src="(.*?)".*', cell).group(1)
            assert (tmp_path / link).is_file() and f"step-{step}/{name.removeprefix('samples/')}." in link
    np.testing.assert_array_equal(decoded[:2], decoded[2:])  # of the same noise
    requests = [Request(prompt, index) for index, prompt in enumerate(config.valid.prompts)]
    for _, pieces in Sampler(Run(config, tmp_path)).sample(requests):
        list(pieces)
    np.testing.assert_array_equal(decoded[:2], decoded[4:])  # that of --job=sample


def test_steps_that_are_still_to_come_are_not_shown(config, tmp_path, monkeypatch):
    """A killed run had sampled them before it went back to its last checkpoint."""
    stand_ins.install(monkeypatch, tmp_path)
    for step in (2, 6, 4):
        sampled(config, tmp_path, step)
    assert re.findall(r"<th>step (\d)", (tmp_path / previews.PAGE).read_text()) == ["2", "4"]


def test_nothing_is_sampled_without_prompts(config, tmp_path):
    config.valid.prompts = ()
    assert previews.show(Run(config, tmp_path)) is None
    assert previews.show(Run(stand_ins.config(), tmp_path)) is None  # an experiment without the section
