import random
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moviegen.errors import DataError
from moviegen.storage import checkpoint, step_folders

SAVER = Path(__file__).with_name("checkpoint_saver.py")
saver = runpy.run_path(str(SAVER))
save, trees_of, assert_same, steps_in = (saver[name] for name in ("save", "trees_of", "assert_same", "steps_in"))


def test_same_step_again_replaces_it(tmp_path):
    save(tmp_path, 5)
    checkpoint.save(tmp_path, 5, trees_of(6), {})
    assert_same(checkpoint.load(tmp_path)[0], trees_of(6))
    assert steps_in(tmp_path) == ["step-00000005"]


def test_going_back_drops_the_steps_beyond(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    save(tmp_path, 15, keep=1)
    assert steps_in(tmp_path) == ["step-00000015"]


def test_leftovers_are_never_taken_and_removed_by_the_next_save(tmp_path):
    path = save(tmp_path, 1)
    for name in ("step-00000002.tmp-123", "step-00000001.old.tmp-9", "step-00000003.tmp-1"):
        shutil.copytree(path, tmp_path / name)
    assert checkpoint.latest(tmp_path) == 1
    (tmp_path / "step-00000004.tmp-1").symlink_to(tmp_path / "notes.tmp-1")  # a link that prune renamed: of an archive
    (tmp_path / "notes.tmp-1").mkdir()
    save(tmp_path, 2)
    assert steps_in(tmp_path) == ["notes.tmp-1", "step-00000001", "step-00000002"]


def start(folder):
    return subprocess.Popen([sys.executable, SAVER, folder], stdout=subprocess.PIPE)


def assert_whole(folder):
    step = checkpoint.latest(folder)
    trees, meta = checkpoint.load(folder)
    assert_same(trees, trees_of(step))
    assert meta == {"samples_seen": 8 * step, "step": step}
    return step


def kill_at_random(folder, times):
    """Kill a saving child again and again; return how often a save was under way."""
    rng, folder, caught, last = random.Random(0), folder / "run", 0, 0
    save(folder, 0)
    for _ in range(times):
        child = start(folder)
        assert child.stdout.readline(), "the child died by itself"
        try:
            child.wait(timeout=rng.uniform(0, 0.1))
            raise AssertionError("the child died by itself")
        except subprocess.TimeoutExpired:
            child.kill()
        child.communicate()
        caught += any(".tmp-" in name or ".old" in name for name in steps_in(folder))
        step = assert_whole(folder)
        assert step > last, "no progress since the kill before"
        last = step
    return caught


def test_kill_at_random_instants(tmp_path):
    assert kill_at_random(tmp_path, 10) > 0


@pytest.mark.slow
def test_kill_at_many_random_instants(tmp_path):
    assert kill_at_random(tmp_path, 50) > 10


def test_kill_before_every_call_of_a_save_with_retention(tmp_path):
    ended = subprocess.run([sys.executable, SAVER, tmp_path, "everywhere"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    latest, left = set(), 0
    for place in sorted(tmp_path.iterdir()):
        steps = set(step_folders.committed(place))
        for step in steps:
            trees, meta = checkpoint.load(place, step)
            assert_same(trees, {"params": saver["one_array"](step)})
            assert meta == {"score": saver["SCORES"][step], "step": step}
        # What a kill in the middle of retention leaves is never less than what should stay.
        assert steps >= ({3, 5} if 5 in steps else {2, 3, 4}), place
        assert checkpoint.best(place) == (5 if 5 in steps else 2)
        latest.add(checkpoint.latest(place))
        left += any(".tmp-" in name or ".old" in name for name in steps_in(place))
        saver["save_scored"](place, 6)
        assert steps_in(place) == [f"step-0000000{n}" for n in ((3, 5, 6) if 5 in steps else (2, 3, 6))], place
    assert latest == {4, 5} and left > 10


def test_one_checkpoint_may_be_named_itself(tmp_path):
    first = save(tmp_path, 3)
    save(tmp_path, 4)
    assert checkpoint.latest(first) == 3 and checkpoint.latest(tmp_path) == 4
    assert_same(checkpoint.load(first)[0], trees_of(3))
    missing = tmp_path / "step-00000009"
    assert checkpoint.latest(missing) is None
    with pytest.raises(DataError, match="no checkpoint of step 9, expected one of"):
        checkpoint.load(missing)


def test_a_manifest_goes_through_json_and_back(tmp_path):
    meta = {"betas": (0.9, 0.95), 1: np.float32(0.5)}
    step_folders.write_manifest(tmp_path, {"step": np.int64(3), "meta": meta, "trees": {}})
    found = step_folders.read_manifest(tmp_path)
    assert found == {"format": step_folders.FORMAT, "step": 3, "meta": {"betas": [0.9, 0.95], "1": 0.5}, "trees": {}}


def test_what_json_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match="meta holds .*object"):
        step_folders.write_manifest(tmp_path, {"x": object()})


@pytest.mark.parametrize("damage", [lambda t: t.replace("3", "4", 1), lambda t: t[:-5], lambda t: "", lambda t: "[]"])
def test_a_damaged_manifest_is_found(tmp_path, damage):
    step_folders.write_manifest(tmp_path, {"step": 3})
    file = tmp_path / "manifest.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        step_folders.read_manifest(tmp_path)


ARRAY = {"shape": [5, 3], "dtype": "float32", "chunk": [4, 3], "files": {"c.0.0": [52, "0"], "c.1.0": [52, "1"]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"shape": [6, 3]}, None),  # two files, too
        ({"shape": [9, 3]}, r"array ema/a/b: its files are not those of an array of shape \[9, 3\]"),
        ({"shape": [1 << 22, 1 << 20], "chunk": [1 << 21, 1 << 20]}, "its files are not"),  # 16 TB
        ({"shape": [0, 1 << 60]}, "array ema/a/b/shape is"),
        ({"shape": [5] + [1] * 32}, "array ema/a/b/shape is"),
        ({"shape": None}, "array ema/a/b/shape is None"),
        ({"chunk": [0, 3]}, "its files are not"),
        ({"chunk": [4]}, "its files are not"),
        ({"dtype": "O"}, "array ema/a/b/dtype is 'O', expected the name of a dtype"),
        ({"dtype": "float64"}, "its files are not"),
        ({"files": {"c.0.0": [52, "0"]}}, "its files are not"),
        ({"files": {"c.0.0": 52, "c.1.0": 52}}, "files/c.0.0 is 52, expected the size and the checksum of a file"),
    ],
)
def test_what_a_manifest_says_of_an_array_fits_together(tmp_path, change, message):
    content = {"step": 3, "meta": {}, "trees": {"ema": {"a/b": ARRAY | change}}}
    step_folders.write_manifest(tmp_path, content)
    if message is None:
        assert step_folders.read_manifest(tmp_path)["trees"] == content["trees"]
    else:
        with pytest.raises(ValueError, match=f"manifest.json is damaged .*{message}"):
            step_folders.read_manifest(tmp_path)


@pytest.mark.parametrize("key", ["step", "meta", "trees"])
def test_a_manifest_without_a_part_is_damaged(tmp_path, key):
    content = {"step": 3, "meta": {}, "trees": {}}
    del content[key]
    step_folders.write_manifest(tmp_path, content)
    with pytest.raises(ValueError, match=f"manifest.json is damaged .it has no {key}"):
        step_folders.read_manifest(tmp_path)


def test_brackets_without_end_are_damage(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        step_folders.read_manifest(tmp_path)


def test_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(step_folders, "FORMAT", 9)
        step_folders.write_manifest(tmp_path, {})
    with pytest.raises(ValueError, match="format 9, this version reads 1"):
        step_folders.read_manifest(tmp_path)
