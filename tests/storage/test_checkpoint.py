import functools
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from moviegen.errors import DataError
from moviegen.nn.dtypes import numpy_dtype
from moviegen.parallel import sharding
from moviegen.parallel.mesh import Group
from moviegen.storage import arraystore, checkpoint, step_folders
from tests import fuzz

ROOT = Path(__file__).parents[2]
SAVER = Path(__file__).with_name("checkpoint_saver.py")
saver = runpy.run_path(str(SAVER))
save, trees_of, assert_same, steps_in = (saver[name] for name in ("save", "trees_of", "assert_same", "steps_in"))


def test_round_trip(tmp_path):
    meta = {"samples_seen": 42, "config": {"seed": 0, "betas": (0.9, 0.95)}, "best": np.float32(0.5), "note": None}
    path = checkpoint.save(tmp_path / "new" / "folder", 7, trees_of(7), meta)
    assert path == tmp_path / "new" / "folder" / "step-00000007"
    trees, back = checkpoint.load(tmp_path / "new" / "folder")
    assert_same(trees, trees_of(7))
    config = {"seed": 0, "betas": [0.9, 0.95]}
    assert back == {"samples_seen": 42, "config": config, "best": 0.5, "note": None, "step": 7}


def test_one_array_per_parameter_named_by_its_path(tmp_path):
    path = save(tmp_path, 3)
    description = json.loads((path / "params" / "blocks" / "0" / "attn" / "q" / "zarr.json").read_text())
    assert description["shape"] == [16, 24] and description["data_type"] == "float32"


def test_mindspore_tensors(tmp_path):
    import mindspore as ms

    value = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    half = ms.Tensor(value).astype(ms.bfloat16)
    trees = {"params": {"w": ms.Tensor(value), "half": half, "n": ms.Tensor(5, ms.int32)}}
    checkpoint.save(tmp_path, 1, trees, {})
    back, _ = checkpoint.load(tmp_path)
    expected = {"w": value, "half": value.astype(ml_dtypes.bfloat16), "n": np.int32(5)}
    assert_same(back, {"params": expected})


def test_odd_names(tmp_path):
    names = [
        "a/../b",
        "a//b",
        "/etc/x",
        "ä b",
        "quote\"'`$",
        "100%",
        "a?b*c:d|e",
        "new\nline",
        ".",
        "a.b-c_d",
        "",
        "a",
        "a/b",
    ]
    tree = {name: np.full(2, i, np.float32) for i, name in enumerate(names)}
    checkpoint.save(tmp_path / "c", 1, {"params": tree}, {})
    assert_same(checkpoint.load(tmp_path / "c")[0], {"params": tree})
    assert steps_in(tmp_path) == ["c"] and steps_in(tmp_path / "c") == ["step-00000001"]


def test_select_reads_nothing_else(tmp_path):
    path = save(tmp_path, 1)
    shutil.rmtree(path / "params")
    trees, meta = checkpoint.load(tmp_path, select=r"^ema/blocks/\d+/attn")
    expected = {name: value for name, value in trees_of(1)["ema"].items() if name.startswith("blocks")}
    assert_same(trees, {"ema": expected})
    assert meta == {"samples_seen": 8, "step": 1}
    with pytest.raises(DataError, match="no array matches select='nonsense'"):
        checkpoint.load(tmp_path, select="nonsense")


def test_dtype_casts_floats_alone(tmp_path):
    save(tmp_path, 1)
    expected = trees_of(1)
    trees, _ = checkpoint.load(tmp_path, dtype="float32")
    expected["ema"] = {name: value.astype(np.float32) for name, value in expected["ema"].items()}
    assert_same(trees, expected)


def test_latest_and_retention(tmp_path):
    assert checkpoint.latest(tmp_path / "nothing") is None
    for step in (1, 2, 10, 100):
        save(tmp_path, step, keep=2)
        assert checkpoint.latest(tmp_path) == step
    assert steps_in(tmp_path) == ["step-00000010", "step-00000100"]
    assert_same(checkpoint.load(tmp_path, step=10)[0], trees_of(10))
    with pytest.raises(DataError, match=r"no checkpoint of step 2, expected one of \[10, 100\]"):
        checkpoint.load(tmp_path, step=2)
    with pytest.raises(DataError, match="no checkpoint here"):
        checkpoint.load(tmp_path / "nothing")


def test_every_so_many_steps_one_stays_and_so_does_the_best(tmp_path):
    scores = {10: 5.0, 20: 3.0, 30: None, 40: 4.0, 50: float("nan"), 60: 3.0, 70: 2.0, 80: 9.0}
    kept = {}
    for step, score in scores.items():
        checkpoint.save(tmp_path, step, trees_of(step), {"score": score})
        checkpoint.prune(tmp_path, keep=1, keep_every=40, keep_best=True)
        kept[step] = [int(name.removeprefix("step-")) for name in steps_in(tmp_path)]
        assert checkpoint.best(tmp_path) == min(
            (n for n in scores if n <= step and scores[n] in (2.0, 3.0, 5.0)), key=scores.get
        )
    assert kept == {
        10: [10],
        20: [20],
        30: [20, 30],
        40: [20, 40],
        50: [20, 40, 50],
        60: [20, 40, 60],  # of equals the earlier
        70: [40, 70],
        80: [40, 70, 80],
    }
    assert_same(checkpoint.load(tmp_path, step=70)[0], trees_of(70))


def test_the_best_is_known_from_the_disk_alone_and_can_be_read(tmp_path):
    assert checkpoint.best(tmp_path / "nothing") is None
    for step, score in ((1, 2.0), (2, 1.0), (3, 3.0)):
        checkpoint.save(tmp_path, step, trees_of(step), {"score": score})
    assert checkpoint.best(tmp_path) == 2
    (tmp_path / "step-00000002" / "manifest.json").write_text("{}")
    assert checkpoint.best(tmp_path) == 1
    save(tmp_path / "without", 1)
    assert checkpoint.best(tmp_path / "without") is None


def test_lazy_arrays_are_read_and_checked_when_they_are_wanted(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    trees, meta = checkpoint.lazy(tmp_path, select="^ema/")
    assert meta == {"samples_seen": 16, "step": 2}
    expected = trees_of(2)["ema"]
    for name, value in expected.items():
        assert trees["ema"][name].shape == value.shape and trees["ema"][name].dtype == value.dtype
    assert_same({"ema": {name: np.asarray(array) for name, array in trees["ema"].items()}}, {"ema": expected})
    damage_byte(path)
    np.asarray(trees["ema"]["blocks/1/attn/q"])
    with pytest.raises(
        DataError, match=r"step-00000002: array ema/blocks/2/attn/q is damaged .*Step 1 has all its files"
    ):
        np.asarray(trees["ema"]["blocks/2/attn/q"])


def test_lazy_arrays_can_be_saved(tmp_path):
    save(tmp_path / "one", 1)
    trees = checkpoint.lazy(tmp_path / "one", select="^(params|ema)/")[0]
    parts = {tree: {name: arraystore.whole(array) for name, array in values.items()} for tree, values in trees.items()}
    checkpoint.save(tmp_path / "two", 1, parts, {})
    assert_same(checkpoint.load(tmp_path / "two")[0], {tree: trees_of(1)[tree] for tree in parts})


def damage_byte(path):
    file = path / "ema" / "blocks" / "2" / "attn" / "q" / "c.0.0"
    data = bytearray(file.read_bytes())
    data[17] ^= 4
    file.write_bytes(data)


def damage_length(path):
    os.truncate(path / "ema" / "blocks" / "2" / "attn" / "q" / "c.0.0", 100)


def damage_missing(path):
    (path / "ema" / "blocks" / "2" / "attn" / "q" / "c.0.0").unlink()


def damage_description(path):
    (path / "ema" / "blocks" / "2" / "attn" / "q" / "zarr.json").write_text("{}")


def damage_folder(path):
    shutil.rmtree(path / "ema" / "blocks" / "2" / "attn" / "q")


@pytest.mark.parametrize("damage", [damage_byte, damage_length, damage_missing, damage_description, damage_folder])
def test_damage_names_the_array_and_the_way_back(tmp_path, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(save(tmp_path, 3))
    way_back = "Step 2 has all its files, and they have their sizes: load it, or remove step-00000003"
    with pytest.raises(DataError, match=rf"step-00000003: array ema/blocks/2/attn/q is damaged .*\. {way_back}"):
        checkpoint.load(tmp_path)
    assert_same(checkpoint.load(tmp_path, step=2)[0], trees_of(2))
    damage(tmp_path / "step-00000002")
    with pytest.raises(DataError, match="Step 2 has all" if damage is damage_byte else "Step 1 has all its files"):
        checkpoint.load(tmp_path)
    shutil.rmtree(tmp_path / "step-00000001")
    shutil.rmtree(tmp_path / "step-00000002")
    with pytest.raises(DataError, match="No earlier checkpoint here has all its files"):
        checkpoint.load(tmp_path)


def test_the_way_back_is_named_without_reading_arrays(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step)
    damage_missing(save(tmp_path, 3))
    monkeypatch.setattr(arraystore, "_content", None)
    with pytest.raises(DataError, match=r"array ema/blocks/2/attn/q is damaged .*Step 2 has all its files"):
        checkpoint.load(tmp_path, select="ema/blocks/2")


def test_a_renamed_step_is_refused(tmp_path):
    save(tmp_path, 20)
    save(tmp_path, 28).rename(tmp_path / "step-00000030")
    assert checkpoint.best(tmp_path) is None
    for read in (checkpoint.load, checkpoint.lazy):
        with pytest.raises(
            DataError, match=r"step-00000030: .*is of step 28; call the folder step-00000028 .*Step 20 has"
        ):
            read(tmp_path)


@pytest.mark.parametrize("what", ["array", "file", "description"])
def test_links_do_not_lead_out_of_a_checkpoint(tmp_path, what):
    path = save(tmp_path / "c", 1) / "ema" / "blocks" / "2" / "attn" / "q"
    path = {"array": path, "file": path / "c.0.0", "description": path / "zarr.json"}[what]
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="array ema/blocks/2/attn/q is damaged .*(out of the folder|not the file)"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("file", ["manifest.json", "ema/blocks/2/attn/q/c.0.0", "ema/blocks/2/attn/q/zarr.json"])
def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path, file):
    path = save(tmp_path, 1) / file
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="step-00000001: (array ema/blocks/2/attn/q|manifest.json) is damaged"):
        checkpoint.load(tmp_path)


def test_whatever_a_manifest_says_the_error_is_of_one_kind(tmp_path):
    rng, found = random.Random(0), 0
    trees = {"ema": {"a": np.ones((2, 3), np.float32), "b": np.float32(1)}, "opt/m": {"a": np.zeros((0, 2), np.int64)}}
    path = checkpoint.save(tmp_path, 3, trees, {"score": 1.0, "latent_shift": [0.5]})
    content = step_folders.read_manifest(path)
    with fuzz.little_memory():
        for _ in range(300):
            key = rng.choice(["trees", "trees", "trees", "meta", "step"])
            step_folders.write_manifest(path, content | {key: fuzz.replaced(content[key], rng)})
            checkpoint.best(tmp_path)
            try:
                checkpoint.load(tmp_path)
            except DataError as error:
                assert str(error).startswith(f"{path}: ")
                found += 1
    assert found > 150


def test_bits_of_any_file_are_noticed_with_one_error(tmp_path):
    rng, found = random.Random(0), 0
    path = checkpoint.save(tmp_path, 3, {"ema": {"a": np.ones((2, 3), np.float32)}}, {"score": 1.0})
    for file in [file for file in path.rglob("*") if file.is_file()] * 100:
        whole = file.read_bytes()
        file.write_bytes(fuzz.flipped(whole, rng))
        try:
            assert_same(checkpoint.load(tmp_path)[0], {"ema": {"a": np.ones((2, 3), np.float32)}})
        except DataError:
            found += 1
        file.write_bytes(whole)
    assert found > 290


def test_damaged_manifest(tmp_path):
    save(tmp_path, 1)
    manifest = save(tmp_path, 2) / "manifest.json"
    text = manifest.read_text()
    for damaged in (text.replace('"samples_seen": 16', '"samples_seen": 17'), text[:-9], "", "[]", None):
        manifest.unlink() if damaged is None else manifest.write_text(damaged)
        with pytest.raises(DataError, match=r"step-00000002: .*manifest.json.*Step 1 has all its files"):
            checkpoint.load(tmp_path)


@pytest.mark.parametrize("where", ["array", "manifest", "fsync", "rename"])
def test_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, where):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        if where == "array":
            write, count = arraystore.write, iter(range(99))
            patch.setattr(arraystore, "write", lambda *a: full() if next(count) == 5 else write(*a))
        else:
            owner, name = {"manifest": (json, "dump"), "fsync": (os, "fsync"), "rename": (os, "rename")}[where]
            patch.setattr(owner, name, full)
        with pytest.raises(DataError, match="step-00000002: cannot write .*No space left.*step 1 is still there"):
            save(tmp_path, 2, keep=1)
    assert steps_in(tmp_path) == ["step-00000001"]
    assert_same(checkpoint.load(tmp_path)[0], trees_of(1))
    save(tmp_path, 2, keep=1)
    assert steps_in(tmp_path) == ["step-00000002"]


def save_as_ranks(folder, step, trees, size, token, fails=None):
    """Every rank's part of a save, each in a thread of its own; what each of them raised."""

    def rank(r):
        group = Group("", size, r)
        mine = {
            tree: {path: sharding.part(x.shape, sharding.cut(x, group), group) for path, x in values.items()}
            for tree, values in trees.items()
        }
        if r == fails:
            mine["params"] = dict.fromkeys(mine["params"])  # None cannot be written
        checkpoint.save(folder, step, mine, {"samples_seen": step}, rank=r, ranks=size, token=token)

    with ThreadPoolExecutor(size) as pool:
        return [future.exception() for future in [pool.submit(rank, r) for r in range(size)]]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_save_their_parts_of_one_checkpoint_that_any_number_of_ranks_reads(tmp_path, size):
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 3), "blocks/0/q": (5, 12), "b": (7,), "one": (1, 1)}
    trees = {
        tree: {path: rng.standard_normal(s).astype(np.float32) for path, s in shapes.items()} for tree in ("p", "q")
    }
    for step in (1, 2):
        assert save_as_ranks(tmp_path, step, trees, size, f"t{step}") == [None] * size
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002"]
    found, meta = checkpoint.load(tmp_path)
    assert_same(found, trees)
    assert meta == {"samples_seen": 2, "step": 2}
    for other in (1, 2, 5):
        for group in (Group("", other, rank) for rank in range(other)):
            own = checkpoint.load(tmp_path, where=functools.partial(sharding.bounds, group=group))[0]
            for tree, values in trees.items():
                for path, x in values.items():
                    np.testing.assert_array_equal(own[tree][path], x[sharding.bounds(x.shape, group)])


@pytest.mark.parametrize("fails", [0, 1])
def test_a_rank_that_cannot_write_its_part_leaves_the_last_checkpoint(tmp_path, fails):
    trees = {"params": {"a": np.ones((4, 3), np.float32)}}
    save_as_ranks(tmp_path, 1, trees, 2, "t1")
    raised = save_as_ranks(tmp_path, 2, trees, 2, "t2", fails=fails)
    assert all(raised), raised
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002.tmp-t2.failed"]  # tells the other ranks
    assert_same(checkpoint.load(tmp_path)[0], trees)
    assert save_as_ranks(tmp_path, 2, trees, 2, "t3") == [None, None]
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_save_in_the_background_says_what_went_wrong(tmp_path):
    future = checkpoint.in_background(lambda: save(tmp_path, 1))
    assert future.result() == tmp_path / "step-00000001"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the checkpoint"):
        checkpoint.in_background(lambda: save(tmp_path / "file", 1)).result()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_not_finite_is_never_committed(tmp_path, value, dtype):
    large = np.full(9, 6e4).astype(numpy_dtype(dtype))  # as float16 they have no sum
    checkpoint.save(tmp_path, 1, {"params": {"a": large}}, {})
    broken = large.copy()
    broken[4] = value
    with pytest.raises(DataError, match="array params/b has numbers that are not finite.*step 1 is still there"):
        checkpoint.save(tmp_path, 2, {"params": {"a": large, "b": broken}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_the_averaged_weights_are_the_others_where_there_is_no_average(tmp_path):
    array = {"a": np.zeros(1)}
    checkpoint.save(tmp_path, 1, {"params": array, "ema": array}, {})
    checkpoint.save(tmp_path, 2, {"params": array}, {})
    assert [checkpoint.averaged(tmp_path, step) for step in (1, 2, None)] == ["ema", "params", "params"]


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(TypeError, match="array params/a is a str"):
        checkpoint.save(tmp_path, 1, {"params": {"a": "text"}}, {})
    with pytest.raises(TypeError, match="meta holds .*object"):
        checkpoint.save(tmp_path, 1, {"params": {}}, {"x": object()})
    assert steps_in(tmp_path) == []


# A real write beyond the limit fails in the middle of a file, as on a full disk, wherever it is made.
FULL = """
import resource, sys
import numpy as np
from moviegen.storage import checkpoint
from moviegen.errors import DataError

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
trees = {"params": {f"small/{i}": np.ones(5, np.float32) for i in range(99)} | {"large": np.ones(9999, np.float32)}}
try:
    checkpoint.save(sys.argv[1], 2, trees, {})
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
def test_a_disk_that_fills_up_while_it_is_written_leaves_the_last_checkpoint(tmp_path, limit):
    save(tmp_path, 1)
    ended = subprocess.run([sys.executable, "-c", FULL, tmp_path, str(limit)], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert "step-00000002: cannot write the checkpoint" in ended.stdout, ended.stdout
    assert "step 1 is still there, untouched" in ended.stdout and ended.stdout.count("\n") == 1
    assert steps_in(tmp_path) == ["step-00000001"]
    assert_same(checkpoint.load(tmp_path)[0], trees_of(1))
