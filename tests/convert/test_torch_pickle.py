import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys

import pytest

from moviegen.convert import torch_pickle
from moviegen.convert.torch_pickle import StandIn, Storage, Tensor


def test_several_pickles_in_a_stream_are_read_one_by_one():
    values = [2**70, {"a": 1, "b": {"c": True}}, ["x", "y"], None, ("1", 2.5)]
    stream = io.BytesIO(b"".join(pickle.dumps(value, 2) for value in values))
    assert [torch_pickle.interpret(stream) for _ in values] == values


def test_a_tensor_is_described_by_whole_numbers():
    storage = Storage("float32", "0", 24)
    for name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        assert StandIn(name)(storage, 0, (2, 3), (3, 1)).shape == (2, 3)
        for size in ((-1, 3), (2.0, 3), (True, 3)):
            with pytest.raises(ValueError, match="as no plain tensor does"):
                StandIn(name)(storage, 0, size, (3, 1))


def test_names_are_words():
    with pytest.raises(ValueError, match="it names os.system, which no plain tensor needs"):
        torch_pickle.interpret(b"cos\nsystem\n.")
    with pytest.raises(ValueError, match="no dictionary of tensors alone|not a dictionary of tensors alone: a is none"):
        torch_pickle.tensors({"a": 1})


# ---- hostile pickles, written instruction by instruction


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(key="0", count=b"K\x04"):
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + count + b"tQ"


def tensor(shape=b"K\x02\x85", strides=b"K\x01\x85"):
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"K\x00" + shape + strides + b"tR"


def dictionary(value):
    return b"\x80\x02}" + text("w") + value + b"s."


def test_the_harmless_one_of_these_is_read():
    found = torch_pickle.tensors(torch_pickle.interpret(dictionary(tensor())))
    assert found == {"w": Tensor(Storage("float32", "0", 4), 0, (2,), (1,))}


SYSTEM = text("touch ran") + b"\x85R"  # the argument, and the call


@pytest.mark.parametrize(
    "value, message",
    [
        (b"cos\nsystem\n" + SYSTEM, "it names os.system"),
        (text("os") + text("system") + b"\x93" + SYSTEM, "it names os.system"),
        (b"cbuiltins\neval\n" + SYSTEM, "it names builtins.eval"),
        (b"c__builtin__\neval\n" + SYSTEM, "it names __builtin__.eval"),
        (b"ccollections\nOrderedDict.fromkeys\n" + SYSTEM, "it names collections.OrderedDict.fromkeys"),
        (text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93", "OrderedDict.__init__.__globals__"),
        (text("torch") + text("._utils._rebuild_tensor_v2") + b"\x93", "it names torch.._utils"),
        (text("") + text("torch.FloatStorage") + b"\x93", "it names .torch.FloatStorage"),
        (b"K\x01K\x02\x93", "STACK_GLOBAL requires str"),
        (b"(ios\nsystem\n", "it has the instruction INST"),
        (b"(cos\nsystem\n" + text("touch ran") + b"o", "it names os.system|the instruction OBJ"),
        (b"ccollections\nOrderedDict\n)\x81", "it has the instruction NEWOBJ"),
        (b"ccollections\nOrderedDict\n)}\x92", "it has the instruction NEWOBJ_EX"),
        (text("os.system") + SYSTEM, "not callable"),
        (b"ctorch\nFloatStorage\n" + SYSTEM, "it calls torch.FloatStorage as no plain tensor does"),
        (b"ccollections\nOrderedDict\n" + SYSTEM, "it calls collections.OrderedDict as no plain tensor does"),
        (b"ccollections\nOrderedDict\n]K\x01a\x85R", "cannot convert"),
        (b"ctorch._utils\n_rebuild_parameter\n" + SYSTEM, "it calls torch._utils._rebuild_parameter as no plain"),
        (tensor() + b"}" + text("shape") + b")sb", "__dict__"),
        (tensor() + b"N}" + text("shape") + b")s\x86b", "attribute"),
        (storage() + b"N}" + text("count") + b"K\x09s\x86b", "attribute"),
        (b"ctorch\nFloatStorage\n}" + text("name") + text("os.system") + b"sb", "it sets attributes"),
        (b"ctorch\nFloatStorage\nN}" + text("__call__") + b"Ns\x86b", "it sets attributes"),
        (b"}}" + text("a") + b"K\x01sb", "__dict__"),
        (b"\x82\x01", "it has the instruction EXT1"),
        (b"\x84\x01\x00\x00\x00", "it has the instruction EXT4"),
        (b"K\x01Q", "a storage is not described as torch does"),
        (b"(" + text("storage") + text("torch") + text("0") + text("cpu") + b"K\x04tQ", "not described as torch does"),
        (
            b"(" + text("storage") + b"ccollections\nOrderedDict\n" + text("0") + text("cpu") + b"K\x04tQ",
            "not described",
        ),
        (storage(count=b"J\xff\xff\xff\xff"), "a storage is not described as torch does"),
        (storage(count=b"\x8a\x09" + bytes(8) + b"\x01"), "a storage is not described as torch does"),
        (b"P0\n", "it has the instruction PERSID"),
        (b"\x96" + struct.pack("<Q", 4) + b"abcd", "it has the instruction BYTEARRAY8"),
        (b"\x97", "it has the instruction NEXT_BUFFER"),
        (b"\x97\x98", "it has the instruction NEXT_BUFFER"),
        (b"C\x04abcd", "it has the instruction SHORT_BINBYTES"),
        (b"\x8d" + struct.pack("<Q", 1 << 62) + b"a", "expected 4611686018427387904 bytes"),
        (b"\x8f", "it has the instruction EMPTY_SET"),
        (tensor(shape=b"(" + b"K\x01" * 40 + b"t", strides=b"(" + b"K\x01" * 40 + b"t"), "as no plain tensor does"),
        (tensor(shape=b"]K\x02a"), "as no plain tensor does"),
        (b"h\x07", "Memo value not found"),
        (b"0" * 9, "it has the instruction POP"),
        (b"tttt", "mark|MARK|stack"),
    ],
)
def test_what_is_hostile_is_refused(tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        torch_pickle.tensors(torch_pickle.interpret(dictionary(value)))
    assert os.listdir() == []


def test_attributes_are_never_set():
    """Torch notes versions of modules as an attribute of the dictionary; it is dropped."""
    state = b"}(" + text("keys") + b"K\x01" + text("_metadata") + b"}u"
    found = torch_pickle.interpret(b"\x80\x02ccollections\nOrderedDict\n)R" + state + b"b.")
    assert found == {} and vars(found) == {}


def test_an_extension_code_that_somebody_registered_is_refused():
    copyreg.add_extension("os", "system", 240)
    try:
        pickle.loads(b"\x82\xf0.")  # now it is in a table that `find_class` is not asked about
        with pytest.raises(ValueError, match="EXT1"):
            torch_pickle.interpret(dictionary(b"\x82\xf0" + SYSTEM))
    finally:
        copyreg.remove_extension("os", "system", 240)
        copyreg.clear_extension_cache()


DOUBLED = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
NEST = {
    "tuples": b"N" + b"\x85" * 400_000,
    "tuples as a key": b"})" + b"\x85" * 400_000 + b"Ns",
    "as many tuples as are allowed": b"})" + b"\x85" * torch_pickle._MOST_TUPLES + b"Ns",
    "lists": b"]" * 400_000 + b"a" * 399_999,
    "dictionaries": b"".join(b"}" + text("a") for _ in range(200_000)) + b"N" + b"s" * 200_000,
    "calls": b"ccollections\nOrderedDict\n" + b"]" * 100_000 + b"\x85R" * 100_000,
    "a list in itself": b"]q\x00h\x00a",
    "a dictionary in itself": b"}q\x00" + text("a") + b"h\x00s",
    "tuples that hold the one before twice, as a key": b"(" + DOUBLED + b"tNs",
    "the same, put late": b"(" + DOUBLED.replace(b"\x86q", b"\x86Nbq") + b"tNs",
    "the same without numbers": b"(" + DOUBLED.replace(b"\x86q" + b"\x01", b"\x86\x94", 1) + b"tNs",
    "marks": b"(" * 1_000_000,
    "a memo of 64 GB": b"r\xff\xff\xff\xff",
}


@pytest.mark.parametrize("name", NEST)
def test_deep_nesting_and_large_memory_end_in_an_error(tmp_path, name):
    """In a process with 2 GB and the usual stack, since what goes wrong would end it."""
    (tmp_path / "evil.pkl").write_bytes(dictionary(NEST[name]))
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from moviegen.convert import torch_pickle\n"
        "try:\n    torch_pickle.tensors(torch_pickle.interpret(open(sys.argv[1], 'rb')))\n"
        "except ValueError as error:\n    print('refused:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "evil.pkl"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0 and done.stdout.startswith("refused: "), done.stdout[-300:] + done.stderr[-300:]


def test_one_list_of_pairs_fills_one_dictionary():
    pairs = b"]q\x00(](" + text("a") + b"K\x01ee"
    call = b"ccollections\nOrderedDict\nh\x00\x85R"
    assert torch_pickle.interpret(b"\x80\x02" + pairs + b"(" + call + call + b"t\x86.")[1] == ({"a": 1}, {})
