"""Files of torch.save without torch: what torch wrote comes back bit by bit; hostile files are refused and run nothing."""

from __future__ import annotations

import argparse
import collections
import io
import mmap
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import archive, call, entries, legacy, name, storage, tensor, value
from hypothesis import given, settings
from hypothesis import strategies as st

from qavit.checkpoints._weights import StoredTensor, float_array, raw_array, weight_of
from qavit.checkpoints.formats.reading import open_weights, state_dict
from qavit.checkpoints.formats.torch_files import read_torch_file

GOLDEN = Path(__file__).parent / "data" / "golden"
DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]


def opened(content: bytes, folder: Path) -> object:
    path = folder / "file.pth"
    path.write_bytes(content)
    return read_torch_file(path)


def same(found: StoredTensor, expected: torch.Tensor) -> None:
    assert found.shape == tuple(expected.shape)
    assert found.dtype == str(expected.dtype)[len("torch.") :]
    bits = raw_array(weight_of(found))
    if expected.dtype == torch.bfloat16:
        expected = expected.contiguous().view(torch.int16)
    np.testing.assert_array_equal(bits.view(expected.numpy().dtype), expected.numpy())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_formats(zipped, dtype, tmp_path):
    generator = torch.Generator().manual_seed(1)
    plain = (torch.randn(5, 7, generator=generator) * 50).to(getattr(torch, dtype))
    content = {"a": plain, "b": {"c": [plain[0], plain.new_tensor(3)]}, "epoch": 3, "rate": 1e-4, "name": "ü", "none": None}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "x.pth")
    same(found["a"], plain)
    same(found["b"]["c"][0], plain[0])
    same(found["b"]["c"][1], plain.new_tensor(3))
    assert {key: found[key] for key in ("epoch", "rate", "name", "none")} == {
        "epoch": 3, "rate": 1e-4, "name": "ü", "none": None,
    }  # fmt: skip
    buffer, _, _, offset = weight_of(found["a"])
    assert isinstance(buffer, mmap.mmap)
    assert buffer[offset : offset + 4] == plain.contiguous().view(torch.uint8).numpy().tobytes()[:4]


@pytest.mark.parametrize("zipped", [True, False])
def test_views_share_and_strides_are_straightened(zipped, tmp_path):
    whole = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    views = {
        "whole": whole, "part": whole[1], "column": whole[:, 2], "turned": whole.permute(2, 0, 1),
        "steps": whole[::2, :, 1::2],
        "none": whole[:0], "empty": torch.zeros(0, 7), "scalar": torch.tensor(2.5), "repeated": torch.ones(3).expand(4, 3),
        "parameter": torch.nn.Parameter(whole), "one": whole[1:2, :, 0:1],
    }  # fmt: skip
    torch.save(views, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "x.pth")
    for key, expected in views.items():
        same(found[key], expected.detach())
    parts = {key: weight_of(found[key]) for key in ("whole", "part", "parameter")}
    assert len({id(weight[0]) for weight in parts.values()}) == 1
    assert parts["part"][3] == parts["whole"][3] + 20 * 4
    assert isinstance(weight_of(found["turned"])[0], np.ndarray)


def test_newer_types_and_containers(tmp_path):
    subclass = torch.nn.Parameter(torch.ones(2))
    subclass.note = "kept aside"
    content = {
        "u16": torch.arange(5).to(torch.uint16), "u64": torch.arange(3).to(torch.uint64), "subclass": subclass,
        "size": torch.Size([2, 3]), "dtype": torch.float16, "device": torch.device("cpu"), "set": {1, "a"},
        "options": argparse.Namespace(lora_alpha=32, nested=argparse.Namespace(r=16)), "path": Path("a/b"),
        "ordered": collections.OrderedDict(a=1, b=[2]), "number": np.float32(2.5),
        "tuple": (1, (2, None)), "bytes": b"\x00\xff",
        "big": 1 << 70, "minus": -5, "bool": True, 7: "seven",
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pth")
    found = read_torch_file(tmp_path / "x.pth")
    same(found["u16"], content["u16"])
    same(found["u64"], content["u64"])
    same(found["subclass"], torch.ones(2))
    assert found["options"] == {"lora_alpha": 32, "nested": {"r": 16}}
    assert found["size"] == (2, 3)
    assert found["dtype"] == "torch.float16"
    assert found["device"] == "cpu"
    assert found["path"] == "a/b"
    assert found["number"] == 2.5
    for key in ("set", "ordered", "tuple", "bytes", "big", "minus", "bool", 7):
        assert found[key] == content[key], key


def test_omegaconf_configurations_become_plain(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    plain = {"integration_point": "late", "lora": {"alpha": 32, "r": 16, "on": ["q", "v"]}, "rate": 0.5}
    torch.save({"model": {"a.b": torch.ones(2)}, "config": omegaconf.OmegaConf.create(plain)}, tmp_path / "x.pth")
    content = open_weights(tmp_path / "x.pth")
    assert content.others["config"] == plain
    assert list(content.tensors) == ["model.a.b"]


def test_everything_that_weights_only_reads(tmp_path):
    """What torch.load(weights_only=True) takes without being told to: containers, numbers, and every kind of tensor."""
    dense = torch.zeros(3, 4)
    dense[0, 1], dense[2, 3] = 2.5, -1
    scales, zeros = torch.tensor([0.5, 0.25]), torch.tensor([3, -4])
    content = {
        "counter": collections.Counter({30: 1, 40: 2}), "complex": 1 + 2j, "bytearray": bytearray(b"ab"),
        "dtypes": [torch.quint8, torch.complex64, torch.uint16, torch.float8_e4m3fn, torch.per_tensor_affine],
        "coo": dense.to_sparse(), "hybrid": torch.arange(12.0).reshape(3, 4).to_sparse(1), "half": dense.half().to_sparse(),
        "csr": dense.to_sparse_csr(), "meta": torch.empty(2, 3, device="meta"),
        "by tensor": torch.quantize_per_tensor(torch.tensor([[0.5, -1.0], [2.0, 0.3]]), 0.1, 10, torch.quint8),
        "by channel": torch.quantize_per_channel(torch.tensor([[0.5, -1.0], [2.0, 0.3]]), scales, zeros, 1, torch.qint8),
        "numbers": torch.tensor([1 + 2j]), "state": torch.get_rng_state(),
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pth")
    assert torch.load(tmp_path / "x.pth", weights_only=True)["counter"] == content["counter"]
    found = read_torch_file(tmp_path / "x.pth")
    assert found["counter"] == {30: 1, 40: 2}
    assert found["complex"] == 1 + 2j
    assert found["dtypes"][0] == "torch.quint8"
    same(found["state"], content["state"])
    for key, expected in (
        ("coo", dense), ("half", dense), ("hybrid", torch.arange(12.0).reshape(3, 4)),
        ("by tensor", content["by tensor"].dequantize()), ("by channel", content["by channel"].dequantize()),
    ):  # fmt: skip
        assert found[key].shape == tuple(expected.shape)
        np.testing.assert_array_equal(float_array(weight_of(found[key])), expected.numpy())
    assert "compressed rows" in found["csr"].what or "sparse_csr" in found["csr"].what
    assert "meta device" in found["meta"].what
    content = open_weights(tmp_path / "x.pth")
    assert set(content.unread) == {"csr", "meta"}


def sparse(indices, values, size):
    """A pickled sparse tensor."""
    layout = call(name("torch.serialization", "_get_layout"), value("torch.sparse_coo"))
    return call(name("torch._utils", "_rebuild_sparse_tensor"), layout, hostile_tuple(indices, values, size))


def hostile_tuple(*parts):
    return b"(" + b"".join(parts) + b"t"


@pytest.mark.parametrize(
    ("indices", "size", "message"),
    [
        ((1, 1), (4,), None),
        ((1, 1), (1 << 36,), "much larger than what is stored"),
        ((2, 1), (2,), "sparse tensor of"),
        ((1, 2), (4,), "do not fit"),
    ],
)
def test_hostile_sparse_tensors(indices, size, message, tmp_path):
    places = tensor(of=storage("1", 2, "LongStorage"), size=indices, stride=(indices[1], 1))
    values = tensor(size=(1,), stride=(1,))
    pickled = entries(a=sparse(places, values, value(size)))
    content = archive(pickled, others={"archive/data/1": struct.pack("<2q", 9, 0)})
    if message is None:  # an index outside of the size, told when the items are asked for
        found = opened(content, tmp_path)["a"]
        with pytest.raises(ValueError, match="an index outside of its size"):
            weight_of(found)
    elif "do not fit" in message:
        with pytest.raises(ValueError, match=message):
            opened(content, tmp_path)
    else:
        assert message in opened(content, tmp_path)["a"].what


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 2))
        self.register_buffer("scale", torch.tensor(2.5))

    def forward(self, x):
        return x @ self.weight * self.scale


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(Inner(), torch.nn.Linear(2, 2).half())
        self.size = 7

    def forward(self, x):
        return self.blocks(x)


def test_torchscript_archives_are_records(tmp_path):
    model = Outer()
    torch.jit.script(model).save(tmp_path / "x.pt")
    names = zipfile.ZipFile(tmp_path / "x.pt").namelist()
    assert any("/code/" in one for one in names)
    content = open_weights(tmp_path / "x.pt")
    expected = model.state_dict()
    assert set(content.tensors) == set(expected)
    for key, tensor_ in expected.items():
        same(content.tensors[key], tensor_)
    # The program is not looked at: one that is broken changes nothing.
    broken = tmp_path / "y.pt"
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(broken, "w") as new:
        for one in old.namelist():
            new.writestr(one, b"import os; os.system('true')" if "/code/" in one else old.read(one))
    assert set(open_weights(broken).tensors) == set(expected)


def test_nested_dicts_have_dotted_names(tmp_path):
    one, two = torch.ones(2), torch.zeros(3)
    content = {
        "model": {"a.weight": one}, "ema": {"inner": {"a.weight": two}}, "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": one, "step": 4}}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pth")
    found = open_weights(tmp_path / "x.pth")
    assert set(found.tensors) == {"model.a.weight", "ema.inner.a.weight", "optimizer.state.0.exp_avg"}
    assert found.others["epoch"] == 3


def test_shared_dicts_cannot_stand_for_a_huge_tree_of_names(tmp_path):
    table = {"a": torch.ones(1)}
    for _ in range(60):
        table = {"x": table, "y": table}
    torch.save(table, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="entries in nested dicts"):
        open_weights(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "file", ["qavit_official_late/checkpoint.pth", "blip_itm/checkpoint.pth", "qavit_official_late/t5/pytorch_model.bin"]
)
def test_golden_checkpoints_are_bitwise_torchs(file):
    expected = torch.load(GOLDEN / file, weights_only=True)
    wrapped = "model" in expected
    expected = expected.get("model", expected)
    found = open_weights(GOLDEN / file).tensors
    found = {key.removeprefix("model.") if wrapped else key: tensor_ for key, tensor_ in found.items()}
    assert set(found) == set(expected)
    for key, tensor_ in expected.items():
        same(found[key], tensor_)


def test_compressed_members_are_inflated_and_checked(tmp_path):
    content = archive(entries(a=tensor()), compression=zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(float_array(weight_of(opened(content, tmp_path)["a"])), [1, 2, 3, 4])
    spoiled = bytearray(archive(entries(a=tensor()), {"0": bytes(4000)}, zipfile.ZIP_DEFLATED))
    start = spoiled.index(b"archive/data/0") + len(b"archive/data/0")
    spoiled[start + 2] ^= 0x55
    with pytest.raises(ValueError, match=r"unpack|decompress"):
        weight_of(opened(bytes(spoiled), tmp_path)["a"])


def test_the_other_byte_order(tmp_path):
    content = archive(entries(a=tensor()), {"0": struct.pack(">4f", 1, 2, 3, 4)}, others={"archive/byteorder": b"big"})
    np.testing.assert_array_equal(float_array(weight_of(opened(content, tmp_path)["a"])), [1, 2, 3, 4])
    with pytest.raises(ValueError, match="byte order"):
        opened(archive(entries(a=tensor()), others={"archive/byteorder": b"middle"}), tmp_path)


# Hostile files.


class Runs:
    """Pickles to a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def attacks(marker: Path) -> dict[str, object]:
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Runs(os.system, command),
        "posix in a state dict": {"model": {"a.weight": torch.ones(2), "b": Runs(os.system, command)}},
        "subprocess": Runs(subprocess.check_output, ["touch", str(marker)]),
        "eval": Runs(eval, code),
        "exec": Runs(exec, code),
        "open": Runs(open, str(marker), "w"),
        "getattr": Runs(getattr, "text", "upper"),
        "import": Runs(__import__, "os"),
        "nested": Runs(collections.OrderedDict, [("a", Runs(os.system, command))]),
        "in a tensor": Runs(torch._utils._rebuild_tensor_v2, Runs(os.system, command), 0, (1,), (1,), False, {}),
        "in a parameter": Runs(torch._utils._rebuild_parameter, Runs(os.system, command), False, {}),
        "torch.load": Runs(torch.load, str(marker)),
        "a whole module": torch.nn.Linear(2, 2),
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4"])
def test_no_code_is_run(attack, form, tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "x.pth"
    content = attacks(marker)[attack]
    if form == "protocol 4":
        if attack == "a whole module" or "state dict" in attack:
            return
        path.write_bytes(archive(pickle.dumps(content, 4)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"asks for .*refused, nothing was run"):
        read_torch_file(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02(" + value("touch ran") + b"ios\nsystem\n.", "operation 0x69"),  # INST
        (b"\x80\x02(" + name("collections", "OrderedDict") + b"o.", "operation 0x6f"),  # OBJ
        (b"\x80\x02\x82\x01.", "operation 0x82"),  # EXT1
        (b"\x80\x05\x97.", "operation 0x97"),  # NEXT_BUFFER
        (b"\x80\x02" + value("os") + value("system") + b"\x93.", "asks for os.system"),  # STACK_GLOBAL
        (b"\x80\x02" + name("os", "system") + b"(X\x02\x00\x00\x00lstR.", "asks for os.system"),
        (b"\x80\x02" + name("torch", "FloatStorage") + b")R.", "a call of torch.FloatStorage"),
        (b"\x80\x02" + value("text") + b")R.", "a call of something that is not a name"),
        (b"\x80\x02" + name("argparse", "Namespace") + b"(K\x01tR.", "a call of argparse.Namespace"),
        (b"\x80\x02K\x01}b.", "attributes for int"),
        (b"\x80\x02h\x05.", "has not made"),
        (b"\x80\x020.", "more values than it has"),
        (b"\x80\x02a.", "more values than it has"),
        (b"\x80\x02u.", "did not open"),
        (b"\x80\x02K\x01K\x02.", "left over"),
        (b"\x80\x02(.", "left over"),
        (b"\x80\x02}(K\x01u.", "not a dict"),
        (b"\x80\x02}](K\x01K\x02esK\x03.", r"more values|left over"),
        (b"\x80\x02}]K\x01s.", "a dict key of type list"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "cut short"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.", "cut short"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "cut short"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", "more than 255 bytes"),
        (b"\x80\x02X\x02\x00\x00\x00\xff\xfe.", "decode"),
        (b"\x80\x02", "cut short"),
        (b"\x80\x02]q\x00h\x00a.", "holds itself"),
        (b"\x80\x02" + b"]" * 300 + b"a" * 299 + b".", "nested more than 100 deep"),
        (b"\x80\x02" + b")" + b"\x85" * 20_000 + b".", "nested more than 100 deep"),
        (b"\x80\x02}" + b")" + b"\x85" * 20_000 + b"K\x01s.", "a dict key of type tuple"),
        (call(name("torch", "Size"), b"K\x01") + b".", "expected one argument of list"),
        (call(name("_codecs", "encode"), value("a"), value("rot13")) + b".", "not latin1"),
        (call(name("numpy", "dtype"), value("O8")) + b".", "a NumPy number of type O8"),
        (
            call(name("torch._tensor", "_rebuild_from_type_v2"), name("torch", "Size"), b"N", b")") + b".",
            "made by torch.Size",
        ),
        (b"\x80\x02K\x01K\x02\x93.", "a name that is not text"),
        (b"\x80\x04" + name("torch", "Size") + b")}" + value("a") + b"K\x01s\x92.", "a call with named arguments"),
        (b"\x80\x02" + name("argparse", "Namespace") + b")RK\x01b.", "argparse.Namespace without a dict of attributes"),
        (b"\x80\x02K\x01(K\x02e.", "items for something that is not a list: int"),
        (b"\x80\x04](K\x01\x90.", "items for something that is not a set: list"),
        (call(name("torch._utils", "_rebuild_tensor"), b"K\x01") + b".", "without storage, offset, size and stride"),
        (call(name("torch._utils", "_rebuild_tensor_v3"), b"K\x01") + b".", "offset, size, stride and dtype"),
        (
            call(name("torch._utils", "_rebuild_tensor_v3"), *[b"N"] * 6, name("torch", "Size")) + b".",
            "a tensor of type torch.Size",
        ),
        (call(name("torch._utils", "_rebuild_parameter"), b"K\x01") + b".", "a parameter that is not made of a tensor"),
        (call(name("torch._tensor", "_rebuild_from_type_v2"), b"K\x01") + b".", "a tensor subclass that is not made"),
        (call(name("collections", "OrderedDict"), value([1])) + b".", "something that is not pairs"),
        (call(name("numpy.core.multiarray", "scalar"), b"K\x01", b"K\x02") + b".", "without its type and bytes"),
        (
            call(name("numpy.core.multiarray", "scalar"), call(name("numpy", "dtype"), value("f4")), value(b"abc")) + b".",
            "a NumPy number of the wrong length",
        ),
        (call(name("pathlib", "PosixPath"), b"K\x01") + b".", "a name that is not text"),
    ],
)
def test_hostile_pickles(pickled, message, tmp_path):
    for content in (archive(pickled), legacy(pickled, {})):
        with pytest.raises(ValueError, match=message):
            opened(content, tmp_path)


def test_storages_that_are_not_described_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a storage without type, name and size"):
        opened(archive(b"\x80\x02" + value(("storage",)) + b"Q."), tmp_path)
    with pytest.raises(ValueError, match="a storage where none is expected"):
        opened(b"\x80\x02" + storage() + b".", tmp_path)


@pytest.mark.parametrize(
    ("pickled", "expected"),
    [
        (call(name("collections", "OrderedDict"), value([["a", 1], ("b", 2)])), {"a": 1, "b": 2}),
        (name("argparse", "Namespace") + b")R" + value((None, {"a": 1})) + b"b", {"a": 1}),
        (name("argparse", "Namespace") + b")R" + value(({"a": 1}, {"b": 2})) + b"b", {"a": 1, "b": 2}),
        (b"}" + name("torch", "float16") + b"K\x01s", {"torch.float16": 1}),
        (b"}" + value(("a", 2)) + b"K\x01s", {("a", 2): 1}),
    ],
)
def test_containers_in_their_other_spellings(pickled, expected, tmp_path):
    assert opened(archive(b"\x80\x02" + pickled + b"."), tmp_path) == expected


def test_a_memo_is_as_large_as_what_is_in_it(tmp_path):
    assert opened(archive(b"\x80\x02K\x01r\xff\xff\xff\xff0j\xff\xff\xff\xff."), tmp_path) == 1


def test_shared_parts_cannot_stand_for_a_huge_tree(tmp_path):
    # 60 levels of (x, x): 2^60 leaves where it is walked as a tree, 60 tuples where it is not.
    doubled = b"\x80\x02K\x01" + b"2\x86" * 60
    found = opened(archive(doubled + b"."), tmp_path)
    assert isinstance(found, tuple)
    with pytest.raises(ValueError, match=r"shape \(tuple, tuple\)"):
        opened(archive(b"\x80\x02" + tensor(stride=(1, 1)).replace(value((4,)), doubled[2:]) + b"."), tmp_path)
    with pytest.raises(ValueError, match="a storage of type tuple"):
        opened(archive(b"\x80\x02(" + value("storage") + doubled[2:] + value("0") + value("cpu") + b"K\x04tQ."), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (5,)}, "reaches item 4 of a storage of 4"),
        ({"offset": 1}, "reaches item 4 of a storage of 4"),
        ({"offset": 1 << 61}, "reaches item"),
        ({"size": (2, 3), "stride": (1, 2)}, "reaches item 5"),
        ({"stride": (-1,), "offset": 3}, r"strides \(-1\)"),
        ({"size": (-4,)}, r"shape \(-4\)"),
        ({"offset": -1}, "offset -1"),
        ({"offset": 0.5}, "offset 0.5"),
        ({"size": (1 << 40, 1 << 40), "stride": (0, 0)}, "repeats the 4 items"),
        ({"size": (1 << 62,), "stride": (0,)}, "expected whole numbers from 0"),
        ({"size": (1 << 61, 1 << 61, 0), "stride": (0, 0, 0)}, "the sizes overflow"),
        ({"size": (1 << 200,)}, "expected whole numbers from 0"),
        ({"size": (4,), "stride": (1, 1)}, "1 sizes and 2 strides"),
        ({"size": (1,) * 40, "stride": (1,) * 40}, "40 sizes"),
        ({"size": ("a",)}, r"shape \(str\)"),
        ({"size": 4}, "not iterable"),
        ({"of": value(5)}, "not a storage"),
        ({"of": storage(items=5)}, "is 16 bytes, expected 20"),
        ({"of": storage(items=1 << 60)}, "is 16 bytes, expected"),
        ({"of": storage(items=-1)}, "size is not one"),
        ({"of": storage(key="1")}, "is missing"),
        ({"of": storage(key="../../../etc/passwd")}, "is missing"),
        ({"of": storage(key=None)}, "not one"),
        ({"of": storage(kind="QUInt4x2Storage")}, "asks for torch.QUInt4x2Storage"),
        ({"of": storage(kind="DoubleStorage", items=2), "size": (3,)}, "reaches item 2 of a storage of 2"),
    ],
)
def test_hostile_tensors(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        opened(archive(entries(a=tensor(**options))), tmp_path)


def test_tensors_may_overlap_in_their_storage_but_members_not_in_the_file(tmp_path):
    found = opened(archive(entries(a=tensor(size=(3,)), b=tensor(offset=1, size=(3,)))), tmp_path)
    np.testing.assert_array_equal(float_array(weight_of(found["b"])), [2, 3, 4])
    content = bytearray(archive(entries(a=tensor(), b=tensor(of=storage(key="1"))), {"0": bytes(16), "1": bytes(16)}))
    first, second = content.find(b"archive/data/0") - 30, content.find(b"archive/data/1") - 30
    directory = content.rfind(b"archive/data/1") - 4
    assert struct.unpack_from("<I", content, directory) == (second,)
    struct.pack_into("<I", content, directory, first)
    content[content.rfind(b"archive/data/1") + len("archive/data/")] = ord("2")
    with pytest.raises(ValueError, match="overlap"):
        opened(bytes(content), tmp_path)


def test_archives_that_torch_does_not_write(tmp_path):
    outside = archive(entries(a=tensor()), others={"../../outside": b"x", "/etc/other": b"y"})
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    np.testing.assert_array_equal(float_array(weight_of(opened(outside, folder)["a"])), [1, 2, 3, 4])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["deep", "deep/er", "deep/er/file.pth"]
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as packed:
        packed.writestr("hello.txt", b"x")
    with pytest.raises(ValueError, match="holds no data"):
        opened(empty.getvalue(), tmp_path)
    with pytest.raises(ValueError, match="several"):
        opened(archive(entries(a=tensor()), others={"b/data.pkl": b""}), tmp_path)
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = archive(entries(a=tensor()), others={"archive/data/0": bytes(16)})
    with pytest.raises(ValueError, match="twice"):
        opened(twice, tmp_path)
    with pytest.raises(ValueError, match="packed in an unknown way"):
        opened(archive(entries(a=tensor()), compression=zipfile.ZIP_LZMA), tmp_path)
    with pytest.raises(ValueError, match="the file is empty"):
        opened(b"", tmp_path)
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "absent.pth")


def test_zip_bombs(tmp_path, monkeypatch):
    million = 1 << 20
    zeros = bytes(96 * million)
    bomb = archive(
        entries(a=tensor(size=(24 * million,), of=storage(items=24 * million))), {"0": zeros}, zipfile.ZIP_DEFLATED
    )
    assert len(bomb) < million // 2
    found = opened(bomb, tmp_path)
    with pytest.raises(ValueError, match="grows to more than 67108864 bytes"):
        weight_of(found["a"])
    # A member that states less than it unpacks to, and one that states more.
    for stated in (1 << 12, 1 << 21):
        content = bytearray(archive(entries(a=tensor()), {"0": bytes(million)}, zipfile.ZIP_DEFLATED))
        directory = content.rfind(b"archive/data/0") - 46
        struct.pack_into("<I", content, directory + 24, stated)
        with pytest.raises(ValueError, match="does not unpack to its stated size"):
            weight_of(opened(bytes(content), tmp_path)["a"])
    # A compressed pickle has to stay within its own limit.
    monkeypatch.setattr("qavit.checkpoints.formats.torch_files.MAX_PICKLE_BYTES", million)
    huge = b"\x80\x02X" + struct.pack("<I", 2 * million) + bytes(2 * million) + b"."
    with pytest.raises(ValueError, match=r"data\.pkl is missing, or longer"):
        opened(archive(huge, compression=zipfile.ZIP_DEFLATED), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (legacy(entries(a=tensor()), {"0": (4, bytes(12))}), "cut short"),
        (legacy(entries(a=tensor()), {"0": (5, bytes(20))}), "not of its stated size"),
        (legacy(entries(a=tensor()), {"0": (-1, bytes(16))}), "not of its stated size"),
        (legacy(entries(a=tensor()), {}), "does not match"),
        (legacy(entries(a=tensor()), {"0": (4, bytes(16)), "1": (0, b"")}), "does not match"),
        (legacy(entries(a=tensor(), b=tensor(of=storage(items=3))), {"0": (4, bytes(16))}), "has two sizes"),
        (legacy(entries(a=tensor(of=storage(extra=value(("v", 2, 3))))), {"0": (4, bytes(16))}), "past its storage"),
        (legacy(entries(a=tensor(of=storage(extra=value(("v", -2, 3))))), {"0": (4, bytes(16))}), "without offset"),
        (legacy(entries(a=tensor(of=storage(extra=value(7)))), {"0": (4, bytes(16))}), "without offset"),
        (pickle.dumps(1, 2), "not a file that torch.save wrote"),
        (b"\x93NUMPY" + bytes(100), "neither a file of torch"),
        (legacy(b"\x80\x02}.", {})[:-60], "cut short"),
        (b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1002, {})), "format that is not 1001"),
        (b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, {}, "keys")), "have no list"),
    ],
)
def test_hostile_legacy_files(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        opened(content, tmp_path)


def test_legacy_views(tmp_path):
    content = legacy(
        entries(a=tensor(of=storage(extra=value(("v", 1, 3))), size=(3,)), b=tensor()),
        {"0": (4, struct.pack("<4f", 1, 2, 3, 4))},
    )
    found = opened(content, tmp_path)
    np.testing.assert_array_equal(float_array(weight_of(found["a"])), [2, 3, 4])
    np.testing.assert_array_equal(float_array(weight_of(found["b"])), [1, 2, 3, 4])


def test_what_a_checkpoint_is_made_of():
    found = StoredTensor.__new__(StoredTensor)
    content = state_dict({"a.weight": found, "a.scale": 2.5, "epoch": 3, "on.off": True}, "x.pth")
    assert list(content.tensors) == ["a.weight", "a.scale"]
    assert float_array(content.tensors["a.scale"]) == 2.5
    assert content.others == {"epoch": 3, "on.off": True}
    with pytest.raises(ValueError, match=r"x\.pth: expected a dict of tensors, got list"):
        state_dict([found], "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth"):
        state_dict({"epoch": 3}, "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_files_are_refused(zipped, tmp_path):
    path = tmp_path / "whole.pth"
    torch.save(
        {"model": {f"a.{n}": torch.full((7, 3), float(n)) for n in range(4)}}, path, _use_new_zipfile_serialization=zipped
    )
    content = path.read_bytes()
    for step in range(50):
        with pytest.raises(ValueError, match=r"file\.pth"):
            opened(content[: len(content) * step // 50], tmp_path)


def mutated(content: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    data = bytearray(content)
    for position, byte in changes:
        data[position % len(data)] = byte
    return bytes(data[: len(data) - cut % len(data)] if cut else data)


def read_all(path: Path) -> None:
    found = read_torch_file(path)
    for tensor_ in state_dict(found, path).tensors.values():
        weight_of(tensor_)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from([0, 0, 0, 1, 7, 50]),
    st.sampled_from(["zip", "deflated", "legacy", "protocol 4"]),
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, changes, cut, form):
    plain = entries(a=tensor(), b=tensor(offset=1, size=(2,), stride=(2,)), c=value([1, "x", None, {"k": (2.5, True)}]))
    content = {
        "zip": lambda: archive(plain),
        "deflated": lambda: archive(plain, compression=zipfile.ZIP_DEFLATED),
        "legacy": lambda: legacy(plain, {"0": (4, bytes(16))}),
        "protocol 4": lambda: archive(pickle.dumps({"a": [1, 2, {"b": b"c"}], "d": {3, 4}}, 4)),
    }[form]()
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(mutated(content, changes, cut))
    try:
        read_all(path)
    except ValueError as err:
        if str(path) not in str(err):
            raise


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [bytes([byte]) for byte in b"\x80(0123NJKMGTUXBC]})aesudltR\x81\x85\x86\x87\x8f\x90\x91\x93\x94bqrhjcQ."]
        ),
        max_size=60,
    )
)
def test_random_pickles_are_read_or_refused(tmp_path_factory, operations):
    path = tmp_path_factory.getbasetemp() / "random.pth"
    path.write_bytes(archive(b"\x80\x02" + b"".join(operations) + b"."))
    try:
        read_torch_file(path)
    except ValueError as err:
        if str(path) not in str(err):
            raise


def test_reading_needs_no_torch():
    code = (
        "import sys; from qavit.checkpoints.formats.reading import open_weights\n"
        "from qavit.checkpoints._weights import weight_of\n"
        f"tensors = open_weights({str(GOLDEN / 'qavit_official_late' / 'checkpoint.pth')!r}).tensors\n"
        "[weight_of(tensor) for tensor in tensors.values()]\n"
        "print('torch' in sys.modules)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True
    )
    assert done.stdout.split() == [b"False"], done.stderr.decode()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_download_that_ended_early_is_called_one(zipped, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(4000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"x\.pth: .*is the download unfinished\?"):
        read_torch_file(path)
