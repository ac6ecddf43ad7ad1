import ml_dtypes
import numpy as np
import pytest

from moviegen.nn import dtypes
from moviegen.parallel import sharding
from moviegen.parallel.mesh import Group
from moviegen.storage import arraystore

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def write(folder, *parts):
    """Stores an array, or parts of one, and returns its entry."""
    parts = [part if isinstance(part, arraystore.Part) else arraystore.whole(part) for part in parts]
    entry = arraystore.create(folder, parts[0])
    for part in parts:
        entry["files"] |= arraystore.write(folder, entry, part)
    return entry


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32", "int64", "uint8", "bool", BFLOAT16])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 3)])
def test_round_trip(tmp_path, dtype, shape):
    array = np.random.default_rng(0).standard_normal(shape)
    array = (np.asarray(array) * 3).astype(dtype)
    back = arraystore.read(tmp_path / "a", write(tmp_path / "a", array))
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_tensorstore_reads_the_same(tmp_path, monkeypatch):
    """The format is zarr's, checksums included: another reader needs nothing of ours."""
    import tensorstore as ts

    monkeypatch.setattr(arraystore, "CHUNK_BYTES", 100)
    array = np.random.default_rng(0).standard_normal((7, 2, 5)).astype(np.float32)
    entry = write(tmp_path / "a", array)
    store = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/a/"}}).result()
    np.testing.assert_array_equal(store.read().result(), array)
    np.testing.assert_array_equal(arraystore.read(tmp_path / "a", entry), array)


def test_zeros_are_files_too(tmp_path):
    """tensorstore leaves all-zero chunks out by default, and a lost file would then read as zeros without an error."""
    entry = write(tmp_path / "a", np.zeros((4, 4), np.float32))
    (tmp_path / "a" / "c.0.0").unlink()
    with pytest.raises(OSError, match="c.0.0"):
        arraystore.read(tmp_path / "a", entry)


def test_large_arrays_are_cut_along_the_first_axis(tmp_path, monkeypatch):
    monkeypatch.setattr(arraystore, "CHUNK_BYTES", 100)
    array = np.arange(70, dtype=np.float32).reshape(7, 2, 5)  # 40 bytes a row: two rows a chunk
    entry = write(tmp_path / "a", array)
    assert sorted(entry["files"]) == ["c.0.0.0", "c.1.0.0", "c.2.0.0", "c.3.0.0"]
    np.testing.assert_array_equal(arraystore.read(tmp_path / "a", entry), array)


@pytest.mark.parametrize("shape", [(10, 3), (3, 10), (7,), (2, 3)])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_parts_of_several_ranks_are_one_array(tmp_path, shape, size, monkeypatch):
    monkeypatch.setattr(arraystore, "CHUNK_BYTES", 16)
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    groups = [Group("", size, rank) for rank in range(size)]
    shards = [sharding.cut(array, group) for group in groups]
    entry = write(tmp_path / "a", *(sharding.part(shape, *pair) for pair in zip(shards, groups, strict=True)))
    np.testing.assert_array_equal(arraystore.read(tmp_path / "a", entry), array)
    for other in (1, 2, 3, 5):
        for group in (Group("", other, rank) for rank in range(other)):
            where = sharding.bounds(shape, group)
            np.testing.assert_array_equal(arraystore.read(tmp_path / "a", entry, where), array[where])


def test_a_slice_needs_its_own_files_alone(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    groups = [Group("", 2, rank) for rank in range(2)]
    entry = write(tmp_path / "a", *(sharding.part((4, 3), sharding.cut(array, group), group) for group in groups))
    (tmp_path / "a" / "c.1.0").unlink()
    np.testing.assert_array_equal(arraystore.read(tmp_path / "a", entry, (slice(0, 2), slice(0, 3))), array[:2])
    with pytest.raises(OSError, match=r"c\.1\.0"):
        arraystore.read(tmp_path / "a", entry, (slice(1, 3), slice(0, 3)))


def test_views_and_foreign_byte_order(tmp_path):
    array = np.arange(12, dtype=">f4").reshape(3, 4).T
    back = arraystore.read(tmp_path / "a", write(tmp_path / "a", dtypes.to_numpy("a", array)))
    np.testing.assert_array_equal(back, array)


def test_every_flipped_byte_is_found_or_harmless(tmp_path):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    entry = write(tmp_path / "a", array)
    for file in sorted((tmp_path / "a").iterdir()):
        whole, found = file.read_bytes(), 0
        for i in range(len(whole)):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            try:
                np.testing.assert_array_equal(arraystore.read(tmp_path / "a", entry), array)
            except (OSError, ValueError):
                found += 1
        file.write_bytes(whole)
        assert found == len(whole) if file.name == "c.0.0" else found > 0.9 * len(whole)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b + b"\0"])
def test_another_length_is_found(tmp_path, damage):
    entry = write(tmp_path / "a", np.ones(5, np.float32))
    file = tmp_path / "a" / "c.0"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="c.0"):
        arraystore.read(tmp_path / "a", entry)


def test_an_intact_file_of_another_save_is_found(tmp_path):
    entry = write(tmp_path / "a", np.ones(5, np.float32))
    write(tmp_path / "b", np.full(5, 2, np.float32))
    (tmp_path / "b" / "c.0").replace(tmp_path / "a" / "c.0")
    with pytest.raises(ValueError, match="c.0 is not the file that was saved"):
        arraystore.read(tmp_path / "a", entry)


def test_odd_names_stay_apart_and_inside():
    names = [
        "a/b",
        "a//b",
        "/a/b",
        "a/../b",
        "a/./b",
        "a/b/",
        "ä",
        "a b",
        "a:b?*",
        "..",
        "%00",
        "a\n",
        "a.b",
        "a%2Fb",
        "",
    ]
    folders = [arraystore.folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert not folder.startswith("/") and not {"", ".", ".."} & set(folder.split("/"))


def test_cast_leaves_whole_numbers_alone():
    assert arraystore.cast(np.ones(2, np.float32), "bfloat16").dtype == BFLOAT16
    assert arraystore.cast(np.ones(2, BFLOAT16), "float32").dtype == np.float32
    assert arraystore.cast(np.ones(2, np.int32), "bfloat16").dtype == np.int32
    assert arraystore.cast(np.ones(2, BFLOAT16), None).dtype == BFLOAT16
