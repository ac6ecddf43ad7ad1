import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from moviegen.errors import DataError
from moviegen.nn import dtypes
from moviegen.storage import arraystore, safetensors_io
from moviegen.storage.arraystore import Lazy
from tests import fuzz

ROOT = Path(safetensors_io.__file__).parents[2]


def tree(seed=0):
    rng = np.random.default_rng(seed)
    made = {f"blocks/{i}/q": rng.standard_normal((6, 4)).astype(np.float32) for i in range(5)}
    made["view"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    return made | {"n": np.int64(3), "flags": np.array([True, False, True]), "empty": np.zeros((0, 3), np.float32)}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def cast(values, dtype):
    return {name: arraystore.cast(np.asarray(value), dtype) for name, value in values.items()}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def as_lazy(values):
    arrays = {name: np.asarray(value) for name, value in values.items()}
    return {name: Lazy(a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", None])
@pytest.mark.parametrize("form", [lambda values: values, as_lazy])
def test_one_file_comes_back_and_the_library_reads_it(tmp_path, dtype, form):
    from safetensors.numpy import load_file

    values = tree() | {"half": np.ones(3, ml_dtypes.bfloat16)}
    path = safetensors_io.write(form(values), tmp_path / "new" / "x.safetensors", dtype)
    assert_same(safetensors_io.read(path), cast(values, dtype))
    assert_same({n: dtypes.to_numpy(n, a) for n, a in load_file(path).items()}, cast(values, dtype))
    assert names_in(path.parent) == ["x.safetensors"]


def test_others_may_read_the_file_where_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        path = safetensors_io.write(tree(), tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_mindspore_tensors(tmp_path):
    import mindspore as ms

    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = safetensors_io.write({"w": ms.Tensor(value)}, tmp_path / "x.safetensors")
    assert_same(safetensors_io.read(path), {"w": value})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("shard_bytes", "count"), [(1, 9), (200, 3), (1000, 1)])
def test_shards_and_their_index(tmp_path, dtype, shard_bytes, count):
    values = tree()
    files = safetensors_io.write_shards(as_lazy(values), tmp_path, dtype, shard_bytes, {"step": 3, "scale": [1.0]})
    found, metadata = safetensors_io.lazy(tmp_path)
    assert metadata == {"step": 3, "scale": [1.0]}
    assert_same({name: np.asarray(array) for name, array in found.items()}, cast(values, dtype))
    assert_same(safetensors_io.read(tmp_path), cast(values, dtype))
    if dtype == "float32":
        assert len(files) == count
    if len(files) == 1:
        assert names_in(tmp_path) == ["model.safetensors"]
        return
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert [file.name for file in files] == names
    assert names_in(tmp_path) == sorted([*names, "model.safetensors.index.json"])
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(value.nbytes for value in cast(values, dtype).values())}
    assert index["weight_map"].keys() == values.keys() and set(index["weight_map"].values()) == set(names)


def test_another_export_replaces_the_one_before_and_nothing_else(tmp_path):
    (tmp_path / "model-notes.txt").write_text("mine")
    for seed, shard_bytes in enumerate((100, 200, 1000, 100)):
        files = safetensors_io.write_shards(tree(seed), tmp_path, "float32", shard_bytes, {})
        index = ["model.safetensors.index.json"] * (len(files) > 1)
        assert names_in(tmp_path) == sorted([*(file.name for file in files), *index, "model-notes.txt"])
        assert_same(safetensors_io.read(tmp_path), cast(tree(seed), None))


def test_a_shard_that_cannot_be_written_leaves_the_export_before(tmp_path):
    def damaged():
        raise DataError("step-00000003: array ema/n is damaged")

    safetensors_io.write_shards(tree(), tmp_path, "float32", 200, {})
    before = names_in(tmp_path)
    bad = as_lazy(tree(1))
    bad["flags"] = bad["flags"]._replace(read=damaged)
    with pytest.raises(DataError, match="ema/n is damaged"):
        safetensors_io.write_shards(bad, tmp_path, "float32", 100, {})
    assert names_in(tmp_path) == before
    assert_same(safetensors_io.read(tmp_path), cast(tree(), None))


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = safetensors_io.write({"a": np.ones(2, np.float32)}, tmp_path / "x.safetensors")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="x.safetensors: cannot write .*No space left"):
        safetensors_io.write({"a": np.zeros(2, np.float32)}, path)
    assert names_in(tmp_path) == ["x.safetensors"]
    np.testing.assert_array_equal(safetensors_io.read(path)["a"], 1)


# Replaces one export by another in a fork for every instant: dies before the n-th call of a function of os.
KILLED = """
import os, signal, sys
import numpy as np
from moviegen.storage import safetensors_io

folder, shards, count = sys.argv[1], int(sys.argv[2]), 0

def tree(value):
    return {str(i): np.full(4, value, np.float32) for i in range(3)}

while True:
    place = f"{folder}/{count}"
    safetensors_io.write_shards(tree(1), place, "float32", 16, {})
    child = os.fork()
    if child == 0:
        left = iter(range(count))
        def fatal(call):
            def patched(*args, **kwargs):
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)
            return patched
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, fatal(getattr(os, name)))
        safetensors_io.write_shards(tree(2), place, "float32", shards, {})
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    count += 1
    if code == 0:
        print(count)
        break
"""


@pytest.mark.parametrize("shards", [16, 32, 100])
def test_killed_anywhere_an_export_is_whole_or_says_that_it_is_not(tmp_path, shards):
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, str(shards)], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    seen = set()
    for place in tmp_path.iterdir():
        try:
            values = {float(value) for array in safetensors_io.read(place).values() for value in array}
            assert len(values) == 1, "two exports mixed"
            seen |= values
        except DataError as error:
            assert "run it again" in str(error)
            seen.add("cut short")
        files = safetensors_io.write_shards({"a": np.ones(2, np.float32)}, place, "float32", 100, {})
        assert names_in(place) == [files[0].name]
    assert seen == {1.0, 2.0, "cut short"} and int(ended.stdout) > 5


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04pickle", b"\xff" * 64])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="x.safetensors: not a readable safetensors file"):
        safetensors_io.read(path)


def test_a_damaged_export_names_the_file(tmp_path):
    files = safetensors_io.write_shards(tree(), tmp_path, "float32", 200, {})
    size = files[1].stat().st_size
    os.truncate(files[1], size - 1)
    with pytest.raises(DataError, match=f"{files[1].name}: not a readable safetensors file"):
        safetensors_io.lazy(tmp_path)
    files[1].unlink()
    with pytest.raises(DataError, match=f"{files[1].name}: not a readable safetensors file"):
        safetensors_io.lazy(tmp_path)
    safetensors_io.write({"other": np.ones(2, np.float32)}, files[1])
    with pytest.raises(DataError, match=f"{files[1].name}: has no array .*index.json says"):
        safetensors_io.lazy(tmp_path)
    for text in ("", "[]", "{}"):
        (tmp_path / safetensors_io.INDEX).write_text(text)
        with pytest.raises(DataError, match="index.json: not an index"):
            safetensors_io.lazy(tmp_path)
    (tmp_path / safetensors_io.INDEX).unlink()
    with pytest.raises(DataError, match="has no model.safetensors.index.json and no model.safetensors"):
        safetensors_io.lazy(tmp_path)


@pytest.mark.parametrize("file", ["../x.safetensors", "/dev/zero", "link", "", "a/../../x.safetensors"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, file):
    path = safetensors_io.write({"a": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(path)
    (folder / safetensors_io.INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(DataError, match="folder: .* leads out of the folder, to /"):
        safetensors_io.lazy(folder)


@pytest.mark.parametrize("text", ['{"weight_map": []}', '{"weight_map": {"a": 5}}', "[" * 200_000])
def test_an_index_is_checked_when_it_is_read(tmp_path, text):
    (tmp_path / safetensors_io.INDEX).write_text(text)
    with pytest.raises(DataError, match="index.json: not an index"):
        safetensors_io.lazy(tmp_path)


def test_rows_are_those_of_the_whole_array(tmp_path):
    values = {"a": np.arange(60.0).reshape(5, 3, 4), "n": np.arange(7), "half": np.ones((4, 2), ml_dtypes.bfloat16)}
    path = safetensors_io.write(values | {"empty": np.zeros((0, 3))}, tmp_path / "x.safetensors", None)
    for name, value in values.items():
        for rows in (slice(None), slice(1, 3), slice(2, 2), slice(3, 99)):
            assert_same({name: safetensors_io.read_rows(path, name, rows)}, {name: value[rows]})
    assert safetensors_io.read_rows(path, "empty").shape == (0, 3)
    with pytest.raises(DataError, match="x.safetensors: .*no array gone"):
        safetensors_io.read_rows(path, "gone")
    status = path.stat()
    os.truncate(path, status.st_size - 8)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="x.safetensors: not a readable safetensors file .*it ends before the end of"):
        for name in values:
            safetensors_io.read_rows(path, name)


@pytest.mark.parametrize("read", [safetensors_io.lazy, lambda path: safetensors_io.read_rows(path, "a")])
def test_a_pipe_in_place_of_weights_does_not_hang(tmp_path, read):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="x.safetensors: is a folder, a pipe or a device"):
        read(tmp_path / "x.safetensors")


def hostile(path, header, length=None):
    text = json.dumps(header).encode()
    path.write_bytes((length or len(text)).to_bytes(8, "little") + text + bytes(8))
    return path


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        ({"shape": [1 << 42], "data_offsets": [0, 16 << 40]}, {}, "not fully covered"),  # 16 TB
        ({"shape": [2] + [1] * 32}, {}, r"a is \[2, 1, .*expected the sizes of an array's axes, 32 at most"),
        ({"shape": [0, 1 << 62], "data_offsets": [0, 0]}, {}, "a is .0, 46|not fully covered"),
        ({}, {"moviegen": "[1]"}, r"its metadata is \[1\], expected dict"),
        ({}, {"moviegen": "[" * 200_000}, "recursion"),
    ],
)
def test_what_a_header_says_is_checked_before_memory_is_asked_for(tmp_path, change, metadata, message):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change
    path = hostile(tmp_path / "x.safetensors", {"__metadata__": metadata, "a": entry})
    with fuzz.little_memory(), pytest.raises(DataError, match=f"x.safetensors: not a readable .*{message}"):
        safetensors_io.lazy(path)
    with pytest.raises(DataError, match="header too large"):
        safetensors_io.lazy(hostile(path, {}, 16 << 40))


def test_bits_of_a_header_are_never_a_traceback(tmp_path):
    rng, refused = random.Random(0), 0
    path = safetensors_io.write(tree(), tmp_path / "x.safetensors", None, {"step": 3, "scale": [1.0]})
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    with fuzz.little_memory():
        for number in range(300):
            if number % 2:
                path.write_bytes(fuzz.flipped(whole, rng, 8 + int.from_bytes(whole[:8], "little")))
            else:
                hostile(path, fuzz.replaced(header, rng))
            try:
                safetensors_io.read(path)
            except DataError:
                refused += 1
    assert refused > 150


# Peak memory over what importing took, in MB, of an export from a checkpoint and an import into one: 96 arrays of 4 MB.
PEAK = """
import sys
import numpy as np
import tensorstore, ml_dtypes, safetensors
from moviegen.demo import isolate
from moviegen.storage import arraystore, checkpoint, safetensors_io

folder, what = sys.argv[1:]
if what == "make":
    checkpoint.save(f"{folder}/a", 1, {"ema": {str(i): np.full((1024, 1024), i, np.float32) for i in range(96)}}, {})
    sys.exit()
before = isolate.own_peak_memory_gb()
if what == "export":
    arrays = checkpoint.lazy(f"{folder}/a")[0]["ema"]
    assert len(safetensors_io.write_shards(arrays, f"{folder}/out", "bfloat16", 64 << 20, {})) == 3
else:
    arrays = safetensors_io.lazy(f"{folder}/out")[0]
    parts = {name: arraystore.whole(arraystore.cast(array, "float32")) for name, array in arrays.items()}
    checkpoint.save(f"{folder}/b", 0, {"ema": parts}, {})
print(1000 * (isolate.own_peak_memory_gb() - before))
"""


def test_memory_holds_a_few_arrays_and_never_the_tree(tmp_path):
    taken = {}
    for what in ("make", "export", "import"):
        ended = subprocess.run([sys.executable, "-c", PEAK, tmp_path, what], capture_output=True, text=True, cwd=ROOT)
        assert ended.returncode == 0, ended.stderr
        taken[what] = float(ended.stdout or 0)
    # The tree is 400 MB, and 200 MB as bfloat16. What is on its way to the disk at one time differs: 82 to 103 MB were seen.
    assert taken["export"] < 50 and taken["import"] < 150, taken
