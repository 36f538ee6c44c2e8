"""PyTorch's .bin files, read and written without PyTorch: read as torch.load reads them, and nothing executed."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import pickletools
import shutil
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from command import PEAK
from conftest import CHECKPOINTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vit_core.files.pytorch import read_pytorch_bin, read_state_dicts, write_pytorch_bin
from vit_core.files.safetensors import read_safetensors
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import find_weights, read_checkpoint

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(CHECKPOINTS.glob("*/pt_bin*"))
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
LAYOUTS = {"zip": True, "legacy": False}
BOTH = pytest.mark.parametrize("layout", LAYOUTS)
FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])

Bits = dict[str, tuple[str, tuple[int, ...], bytes]]


def bits(tensors: Mapping[str, Tensor]) -> Bits:
    for tensor in tensors.values():
        assert tensor.read().flags.aligned
        assert (tensor.read().dtype, tensor.read().shape) == (tensor.dtype, tensor.shape)
    return {name: (t.dtype.name, t.shape, t.read().tobytes()) for name, t in tensors.items()}


def torch_bits(tensors: Mapping[str, Any]) -> Bits:
    return {
        name: (str(t.dtype)[6:], tuple(t.shape), bytes(t.detach().contiguous().flatten().view(torch.uint8).tolist()))
        for name, t in tensors.items()
    }


def saved(path: Path, content: Any, layout: str = "zip", **options: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=LAYOUTS[layout], **options)
    return path


# ---- what transformers and torch wrote ---------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: "/".join(p.parts[-2:]))
def test_golden_files_hold_what_the_safetensors_files_hold(folder: Path) -> None:
    kind = folder.name.removeprefix("pt_bin").replace("_sharded", "").replace("_legacy", "")
    theirs, _ = read_safetensors(folder.with_name(f"pt_safetensors{kind}") / "model.safetensors")
    ours: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.bin")):
        shard = read_pytorch_bin(file)
        assert (shard.key, shard.left_out) == ("", ())
        assert not shard.keys() & ours.keys()
        ours |= shard
    assert bits(ours) == bits(theirs)
    assert all(name == tensor.source for name, tensor in ours.items())


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape(tmp_path: Path, dtype: str, layout: str) -> None:
    numbers = torch.arange(-60, 60).reshape(2, 3, 4, 5).to(getattr(torch, dtype))
    content = {
        "whole": numbers,
        "scalar": numbers[1, 2, 3, 4].clone(),
        "empty": numbers[:, :0].clone(),
        "one": numbers[:1, :1, :1, :1].clone(),
        "flat": numbers.flatten().clone(),
    }
    path = saved(tmp_path / "m.bin", content, layout)
    assert bits(read_pytorch_bin(path)) == torch_bits(torch.load(path, weights_only=True)) == torch_bits(content)


@BOTH
def test_views_of_one_storage(tmp_path: Path, layout: str) -> None:
    whole = torch.arange(120.0).reshape(2, 3, 4, 5)
    content = {
        "whole": whole,
        "same": whole.detach(),
        "transposed": whole.transpose(0, 3),
        "permuted": whole.permute(2, 0, 3, 1),
        "sliced": whole[1:, ::2, 1:3, ::3],
        "row": whole[1, 2, 3],
        "scalar": whole[1, 2, 3, 4],
        "nothing": whole[2:],
    }
    path = saved(tmp_path / "m.bin", content, layout)
    tensors = read_pytorch_bin(path)
    expected = torch_bits(torch.load(path, weights_only=True))
    assert bits(tensors) == expected
    for tensor in tensors.values():
        tensor.read()[...] = -1
        assert bits(tensors) == expected, "tensors share memory"


@BOTH
def test_a_view_alone_in_its_storage_is_read_in_place(tmp_path: Path, layout: str) -> None:
    """A slice keeps the storage it was cut from; its own elements are found by offset and strides."""
    content = {"a": torch.arange(600.0).reshape(20, 30)[3:7, 5::2].T}
    tensors = read_pytorch_bin(saved(tmp_path / "m.bin", content, layout))
    assert bits(tensors) == torch_bits(content)
    if layout == "zip":
        assert not tensors["a"].read().flags.owndata
        tensors["a"].read()[...] = 0  # a private map: the file stays
        tensors["a"].release()
        assert bits(read_pytorch_bin(tmp_path / "m.bin")) == torch_bits(content)


@BOTH
def test_modules_and_parameters(tmp_path: Path, layout: str) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    for content in (module.state_dict(), dict(module.named_parameters()), OrderedDict(module.named_buffers())):
        tensors = read_pytorch_bin(saved(tmp_path / "m.bin", content, layout))
        assert bits(tensors) == torch_bits(content)
        assert tensors.left_out == ()


@BOTH
def test_tied_parameters_are_two_arrays(tmp_path: Path, layout: str) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0))
    for content in (
        {"a": weight, "b": weight},
        {"a": weight, "b": weight.data[:]},
        {"a": weight.data, "b": weight[2:]},
    ):
        tensors = read_pytorch_bin(saved(tmp_path / "m.bin", content, layout))
        assert bits(tensors) == torch_bits(content)
        tensors["a"].read()[:] = 7
        assert bits(tensors) == torch_bits(content)


def test_big_endian_storages(tmp_path: Path) -> None:
    """What torch.save writes on a big-endian machine: the record says so, and every element is turned round."""
    content = {name: torch.arange(-6, 6).reshape(3, 4).to(getattr(torch, name)) for name in DTYPES}
    path = saved(tmp_path / "little.bin", content)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "big.bin", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in name:
                size = content[DTYPES[int(name.rpartition("/")[2])]].element_size()
                data = np.frombuffer(data, f"V{size}").view(np.uint8).reshape(-1, size)[:, ::-1].tobytes()
            target.writestr(name, data)
    assert torch_bits(torch.load(tmp_path / "big.bin", weights_only=True)) == torch_bits(content)
    assert bits(read_pytorch_bin(tmp_path / "big.bin")) == torch_bits(content)


@BOTH
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_other_pickle_protocols(tmp_path: Path, protocol: int, layout: str) -> None:
    content = torch.nn.Linear(3, 2).state_dict()
    path = saved(tmp_path / "m.bin", content, layout, pickle_protocol=protocol)
    assert bits(read_pytorch_bin(path)) == torch_bits(content)


def test_files_without_checksums(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        path = saved(tmp_path / "m.bin", {"a": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is not None
    assert bits(read_pytorch_bin(path)) == torch_bits({"a": torch.ones(3)})


# ---- what stands beside the tensors ------------------------------------------------------------------------------


@BOTH
def test_a_training_checkpoint(tmp_path: Path, layout: str) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3, "model": module.state_dict(), "optimizer": optimizer.state_dict(), "best": 0.5, "name": "vit",
        "x": None, "shape": torch.Size([2, 3]), "dtype": torch.bfloat16, "many": [1, (2, 3, 4, 5), {}, True],
        "big": 2**200, "storage": torch.arange(4).untyped_storage(),
    }  # fmt: skip
    path = saved(tmp_path / "m.bin", content, layout)
    tensors = read_pytorch_bin(path)
    assert bits(tensors) == torch_bits(module.state_dict())
    assert (tensors.key, set(tensors.left_out)) == ("model", content.keys() - {"model"})
    assert bits(read_pytorch_bin(path, key="model")) == bits(tensors)


def test_several_state_dicts_ask_for_a_choice(tmp_path: Path) -> None:
    content = {"teacher": {"a": torch.ones(2)}, "student": {"a": torch.zeros(2), "step": 4}, "ema": torch.ones(1)}
    path = saved(tmp_path / "m.bin", content)
    with pytest.raises(
        ValueError, match=r"several state dicts: .*'' \(1 tensors\), 'teacher' \(1 tensors\), 'student'"
    ):
        read_pytorch_bin(path)
    with pytest.raises(ValueError, match=r"no state dict 'model': choose with key= among"):
        read_pytorch_bin(path, key="model")
    chosen = read_pytorch_bin(path, key="student")
    assert bits(chosen) == torch_bits({"a": torch.zeros(2)})
    assert chosen.left_out == ("teacher", "ema", "student.step")
    assert read_pytorch_bin(path, key="").left_out == ("teacher", "student")
    assert list(read_state_dicts(path)) == ["", "teacher", "student"]


def test_one_state_dict_in_two_places(tmp_path: Path) -> None:
    state = {"a": torch.ones(2)}
    tensors = read_state_dicts(saved(tmp_path / "m.bin", {"model": state, "ema": state}))
    tensors["model"]["a"].read()[:] = 5
    assert bits(tensors["ema"]) == torch_bits(state)


def test_no_tensors(tmp_path: Path) -> None:
    assert read_pytorch_bin(saved(tmp_path / "m.bin", {})) == {}
    for content, what in (
        (torch.ones(2), "a single tensor"),
        ([torch.ones(2)], "a list"),
        ({"epoch": 1}, "no tensors by name"),
        ({0: torch.ones(2)}, "no tensors by name"),
        ({"": torch.ones(2)}, "'' is no name"),
        ({"a\x1b[2J": torch.ones(2)}, "is no name"),
    ):
        with pytest.raises(ValueError, match=rf"m\.bin .*{what}"):
            read_pytorch_bin(saved(tmp_path / "m.bin", content))


# ---- files that are refused --------------------------------------------------------------------------------------


def zipped(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None, **others: bytes) -> Path:
    """A file in the zip layout of a pickle, storages and other entries."""
    entries = {
        "data.pkl": pickled,
        "version": b"3\n",
        **{f"data/{key}": data for key, data in (storages or {}).items()},
        **others,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return path


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def integers(*values: int) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(offset: int = 0, size: bytes = integers(2), stride: bytes = integers(1), **storage: Any) -> bytes:
    """The opcodes of a tensor."""
    numel, kind = integer(storage.get("numel", 4)), storage.get("kind", b"torch\nFloatStorage")
    identity = b"(U\x07storagec" + kind + b"\nX\1\0\0\0" + storage.get("key", b"0") + b"U\3cpu" + numel + b"tQ"
    end = b"\x89ccollections\nOrderedDict\n)R" + storage.get("metadata", b"") + b"tR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + integer(offset) + size + stride + end


def state(*tensors: bytes) -> bytes:
    return b"\x80\2}(" + b"".join(b"U\1" + bytes([97 + i]) + t for i, t in enumerate(tensors)) + b"u."


FOUR = {"0": np.arange(4, dtype=np.float32).tobytes()}


def test_the_hand_made_file_is_one_that_torch_reads(tmp_path: Path) -> None:
    """So that what follows is refused for its damage, not for how it was made."""
    path = zipped(tmp_path / "m.bin", state(tensor(offset=1, size=integers(2, 1), stride=integers(2, 2**61))), FOUR)
    content = {"a": torch.tensor([[1.0], [3.0]])}
    assert bits(read_pytorch_bin(path)) == torch_bits(content)
    assert torch_bits(torch.load(path, weights_only=True)) == torch_bits(content)


BAD_PICKLES: dict[str, tuple[bytes, str]] = {
    "offset": (state(tensor(offset=3)), "exceeds its storage"),
    "offset of nothing": (state(tensor(offset=5, size=integers(0))), "exceeds its storage"),
    "offset of a scalar": (state(tensor(offset=4, size=b")", stride=b")")), "exceeds its storage"),
    "negative offset": (state(tensor(offset=-1)), "no lengths"),
    "size": (state(tensor(size=integers(5))), "exceeds its storage"),
    "negative size": (state(tensor(size=integers(-1))), "no lengths"),
    "huge size": (state(tensor(size=integers(2**62, 2**62), stride=integers(1, 1))), "does not fit"),
    "huge and empty": (state(tensor(size=integers(0, 2**62), stride=integers(1, 1))), "does not fit"),
    "endless number": (state(tensor(size=integers(2**2000))), "no lengths"),
    "many dimensions": (state(tensor(size=integers(*[1] * 33), stride=integers(*[1] * 33))), "no lengths"),
    "bool as size": (state(tensor(size=b"\x88\x85")), "no lengths"),
    "negative stride": (state(tensor(offset=3, stride=integers(-1))), "no lengths"),
    "stride": (state(tensor(stride=integers(4))), "exceeds its storage"),
    "expanded": (state(tensor(size=integers(2**60), stride=integers(0))), "'a': elements .* share memory"),
    "overlapping": (state(tensor(size=integers(2, 2), stride=integers(1, 1))), "share memory"),
    "rank": (state(tensor(size=integers(2, 1))), "no lengths"),
    "list as size": (state(tensor(size=b"]")), "not described by"),
    "negated": (state(tensor(metadata=b"}U\3neg\x88s")), "'a': a negated tensor"),
    "storage too large": (state(tensor(numel=5)), "has 16 bytes, expected 20"),
    "storage too small": (state(tensor(numel=3)), "has 16 bytes, expected 12"),
    "endless storage": (state(tensor(numel=2**62)), "has 16 bytes"),
    "negative storage": (state(tensor(numel=-1)), "not that of a storage"),
    "other storage": (state(tensor(key=b"1")), "no storage '1'"),
    "path as key": (state(tensor(key=b"/")), "no storage '/'"),
    "two dtypes": (state(tensor(), tensor(kind=b"torch\nIntStorage")), "in two ways"),
    "function as storage": (state(tensor(kind=b"torch\nSize")), "torch.Size is no storage"),
    "module id": (b"\x80\2(U\6moduleNNNtQ.", "not that of a storage"),
    "module of a global": (b"\x80\2(U\6modulecos\nsystem\nNNtQU\4exit\x85R.", "an object of os.system, .*nothing was"),
    "text as id": (b"\x80\2U\1aQ.", "not that of a storage"),
    "reduced number": (b"\x80\2K\1)R.", "holds an object of a int, called, .*; nothing was executed"),
    "reduced storage": (b"\x80\2ctorch\nFloatStorage\n)R.", "an object of torch.FloatStorage"),
    "no arguments": (b"\x80\2ctorch\nSize\nNR.", "no tuple"),
    "wrong arguments": (b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n)R.", "missing 6 required"),
    "dict of no pairs": (b"\x80\2ccollections\nOrderedDict\n](NNNe\x85R.", "something else than pairs"),
    "attributes of a function": (b"\x80\2ctorch\nSize\n}b.", "sets the attributes of a _Global, .* nothing was exec"),
    "attributes of a tensor": (b"\x80\2" + tensor() + b"}b.", "sets the attributes of a View"),
    "attributes by slots": (b"\x80\2}N}\x86b.", "sets the attributes of a dict"),
    "inst": (b"\x80\2(ios\nsystem\n.", "opcode INST, .* nothing was executed"),
    "obj": (b"\x80\2(o.", "opcode OBJ"),
    "new object": (b"\x80\2ctorch\nSize\n)\x81.", "an object of torch.Size"),
    "new object of keywords": (b"\x80\4ctorch\nSize\n)}\x92.", "an object of torch.Size"),
    "new object of nothing": (b"\x80\2N)\x81.", "an object of an object"),
    "call of a call": (b"\x80\2cos\nsystem\n)R)R.", "an object of os.system"),
    "tensor of a class": (state(b"ctorch._tensor\n_rebuild_from_type_v2\n(NN)NtR"), "'a': a tensor of the class"),
    "tensors of tensors": (
        state(b"ctorch._tensor\n_rebuild_from_type_v2\nq\0(h\0ctorch\nTensor\n)NtR"), "'a': a tensor of"
    ),
    "extension": (b"\x80\2\x82\1.", "opcode EXT1"),
    "long bytes": (b"\x80\2B\xff\xff\xff\xff.", "expected 4294967295 bytes"),
    "longer bytes": (b"\x80\2\x8e" + b"\xff" * 8 + b".", "sys.maxsize|expected"),
    "long integer": (b"\x80\2\x8b\xff\xff\xff\x7f.", "not enough data"),
    "long text": (b"\x80\2X\xff\xff\xff\xff.", "expected 4294967295 bytes"),
    "long name": (b"\x80\2c" + b"a" * 100_000, "no newline found"),
    "far memo": (b"\x80\2Nr\xff\xff\xff\xff.", "holds a NoneType"),
    "missing memo": (b"\x80\2h\7.", "inconsistent at byte"),
    "text that is none": (b"\x80\2X\1\0\0\0\xff.", "utf-8"),
    "no stop": (b"\x80\2}", "breaks off at byte 3"),
    "no opcode": (b"\x80\2\xff", "breaks off at byte 3"),
    "nothing": (b"", "breaks off at byte 0"),
    "empty stack": (b"\x80\2.", "inconsistent"),
    "no mark": (b"\x80\2t.", "inconsistent"),
    "set in nothing": (b"\x80\2s.", "inconsistent"),
    "set in a list": (b"\x80\2]NNs.", "no dict"),
    "appended to a dict": (b"\x80\2}Na.", "no list"),
    "odd items": (b"\x80\2}(Nu.", "no dict"),
    "tuple as key": (b"\x80\2})Ns.", "no tensors by name"),
    "colliding keys": (b"\x80\2}" + integer(2**61 - 1) + b"Ns" + integer(2**62 - 2) + b"Ns.", "no tensors by name"),
    "twice": (b"\x80\2}(U\1aNU\1aNu.", "'a' occurs twice"),
    "nameless global": (b"\x80\4NN\x93.", "has no name"),
    "deep": (b"\x80\2" + b"]" * 300_000 + b"a" * 299_999 + b".", "holds a list"),
    "deep tuple": (b"\x80\2N" + b"\x85" * 300_000 + b".", "holds a tuple"),
    "deep key": (b"\x80\2}N" + b"\x85" * 300_000 + b"Ns.", "no tensors by name"),
    "laughter": (b"\x80\2)" + b"q\0h\0\x86" * 100 + b".", "holds a tuple"),
    "laughter as key": (b"\x80\2})" + b"q\0h\0\x86" * 100 + b"Ns.", "no tensors by name"),
    "laughter as id": (b"\x80\2)" + b"q\0h\0\x86" * 100 + b"Q.", "not that of a storage"),
    "laughter as shape": (state(tensor(size=b")" + b"q\0h\0\x86" * 100)), "no lengths"),
    "itself": (b"\x80\2}q\0U\1ah\0s.", "no tensors by name"),
    "copied shape": (b"\x80\2ctorch\nSize\n](" + b"N" * 33 + b"e\x85R.", "torch.Size is no list"),
    "too large": (b"\x80\2" + b"N" * (1 << 22) + b".", "expected at most 4194304"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_PICKLES)
def test_bad_pickles_are_named(kind: str, tmp_path: Path) -> None:
    pickled, reason = BAD_PICKLES[kind]
    with pytest.raises(ValueError, match=rf"(?s)m\.bin .*({reason})"):
        read_pytorch_bin(zipped(tmp_path / "m.bin", pickled, FOUR))


def test_one_dict_in_very_many_places(tmp_path: Path) -> None:
    names = [b"X\5\0\0\0%05d" % i for i in range(50_000)]
    inner = b"}(" + b"".join(name + b"h\1" for name in names) + b"uq\2"
    pickled = b"\x80\2}(U\1t" + tensor() + b"q\1U\1d" + inner + b"".join(name + b"h\2" for name in names) + b"u."
    with pytest.raises(ValueError, match="more names than a model has"):
        read_pytorch_bin(zipped(tmp_path / "m.bin", pickled, FOUR))


class Runs:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@BOTH
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.name if os.name == 'nt' else 'posix'}.system"),
        (eval, "builtins.eval"),
        (subprocess.run, ".run"),
    ],
)
def test_nothing_is_executed(tmp_path: Path, function: Any, name: str, protocol: int, layout: str) -> None:
    marker = tmp_path / "ran"
    command = {"eval": f"open({str(marker)!r}, 'w').close()"}.get(function.__name__, f"echo > {marker}")
    options = ({"shell": True},) if function is subprocess.run else ()
    bad = Runs(_call_with, function, command, *options) if options else Runs(function, command)
    path = saved(tmp_path / "m.bin", {"a": torch.ones(2), "b": bad}, layout, pickle_protocol=protocol)
    name = name.replace("builtins", "__builtin__") if protocol == 2 else name
    name = "test_pytorch_bin._call_with" if options else name
    tensors = read_pytorch_bin(path)
    assert bits(tensors) == torch_bits({"a": torch.ones(2)})
    assert tensors.left_out == (f"b ({name})",)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file would have run something"


def _call_with(function: Any, command: str, options: dict[str, Any]) -> Any:
    return function(command, check=True, **options)


def test_a_pickle_that_is_none_of_torch(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(pickle.dumps(Runs(os.system, f"echo > {tmp_path / 'ran'}")))
    with pytest.raises(ValueError, match=r"does not begin as torch\.save lets a file begin"):
        read_pytorch_bin(tmp_path / "m.bin")
    assert not (tmp_path / "ran").exists()


ATTACKS: dict[str, Callable[[Any], Any]] = {
    "the file": lambda bad: bad,
    "the model": lambda bad: {"model": bad},
    "beside the model": lambda bad: {"model": {"a": torch.ones(2)}, "args": bad},
    "in the model": lambda bad: {"model": {"a": torch.ones(2), "b": bad}},
    "a key": lambda bad: {"a": torch.ones(2), bad: 1},
    "in a list": lambda bad: {"a": torch.ones(2), "b": [(bad, {"c": bad})]},
    "in a set": lambda bad: {"a": torch.ones(2), "b": frozenset([bad])},
    "an attribute": lambda bad: {"a": torch.ones(2), "b": argparse.Namespace(lr=bad)},
    "a tensor's attribute": lambda bad: {"a": torch.ones(2), "b": _with(torch.ones(1), bad)},
    "an argument": lambda bad: {"a": torch.ones(2), "b": Runs(list, [bad])},
}


def _with(tensor: Any, attribute: Any) -> Any:
    tensor.attribute = attribute
    return tensor


@BOTH
@pytest.mark.parametrize("place", ATTACKS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_executed_wherever_it_stands(tmp_path: Path, place: str, protocol: int, layout: str) -> None:
    marker = tmp_path / "ran"
    content = ATTACKS[place](Runs(eval, f"open({str(marker)!r}, 'w').close()"))
    path = saved(tmp_path / "m.bin", content, layout, pickle_protocol=protocol)
    if place in ("the file", "the model"):
        with pytest.raises(ValueError, match=r"m\.bin holds .*eval.*; nothing was executed\. If you trust"):
            read_pytorch_bin(path)
    else:
        assert bits(read_pytorch_bin(path)).items() >= torch_bits({"a": torch.ones(2)}).items()
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file would have run something"


def test_no_global_is_imported(tmp_path: Path) -> None:
    """Looking a name up is enough to run the code of its module."""
    (tmp_path / "surprise.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nthing = 1\n")
    path = zipped(tmp_path / "m.bin", state(tensor(), b"csurprise\nthing\n)R", b"csurprise\nthing\n)\x81}b"), FOUR)
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from vit_core.files.pytorch import read_pytorch_bin
print(read_pytorch_bin(Path({str(path)!r})).left_out)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "('b (surprise.thing)', 'c (surprise.thing)')"
    assert not (tmp_path / "ran").exists()


def test_training_files_with_other_objects_name_them(tmp_path: Path) -> None:
    content = {"teacher": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=0.1)}
    tensors = read_pytorch_bin(saved(tmp_path / "m.bin", content))
    assert (bits(tensors), tensors.left_out) == (torch_bits(content["teacher"]), ("args (argparse.Namespace)",))
    path = saved(tmp_path / "m.bin", torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"holds an object of torch\.nn\.modules\.linear\.Linear, .* save its tensors"):
        read_pytorch_bin(path)


def test_names_of_objects_are_shown_without_escapes(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.bin", state(tensor(), b"ca\x1b[2J\nthing\n)R"), FOUR)
    assert read_pytorch_bin(path).left_out == ("b ('a\\x1b[2J.thing')",)


def _beside() -> dict[str, Any]:
    """Values that torch.load(weights_only=True) reads, which no model is made of."""
    parameter = torch.nn.Parameter(torch.ones(2))
    schedule = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([parameter]), [3, 7, 7])
    return {
        "Counter": schedule.state_dict(), "set": {1, 2}, "bytes": b"abc", "bytearray": bytearray(b"abc"),
        "complex": 1 + 2j, "device": torch.device("cpu"), "dtype": torch.float8_e4m3fn, "layout": torch.strided,
        "sparse": torch.eye(3).to_sparse(), "complexes": torch.ones(2) * 1j,
        "conjugate": (torch.ones(2) * 1j).conj(), "fp8": torch.ones(2).to(torch.float8_e4m3fn),
        "uint16": torch.ones(2).to(torch.uint16), "expanded": torch.ones(1).expand(3), "long": 2**1000,
        "keys": {1.5: 1, None: 2, True: 3, (1, (2,)): 4, -1: 5, 2**40: 6, b"x": 7}, "empty": torch.Size([]),
        "meta": torch.ones(2, device="meta"),
    }  # fmt: skip


@BOTH
@pytest.mark.parametrize("kind", _beside())
def test_what_torch_reads_beside_a_model_hides_no_model(tmp_path: Path, kind: str, layout: str) -> None:
    model = torch.nn.Linear(3, 2).state_dict()
    path = saved(tmp_path / "m.bin", {"model": model, "beside": _beside()[kind]}, layout)
    if (kind, layout) not in (("fp8", "legacy"), ("uint16", "legacy")):  # PyTorch 2.13 itself can't read those
        torch.load(path, weights_only=True)
    assert bits(read_state_dicts(path)["model"]) == torch_bits(model)


@pytest.mark.parametrize("kind", ["sparse", "complexes", "conjugate", "fp8", "expanded"])
def test_tensors_of_the_model_that_can_not_be_read_are_named(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "m.bin", {"a": torch.ones(2), "odd": _beside()[kind]})
    with pytest.raises(ValueError, match=r"m\.bin holds tensors that no model here has, .*: 'odd': .*save it again"):
        read_pytorch_bin(path)
    assert bits(read_state_dicts(path)[""].checked(path, ignore_unknown=True)) == torch_bits({"a": torch.ones(2)})


def test_parameters_with_attributes(tmp_path: Path) -> None:
    content = {"a": _with(torch.ones(2), 1), "b": _with(torch.nn.Parameter(torch.zeros(3)), 2)}
    assert bits(read_pytorch_bin(saved(tmp_path / "m.bin", content))) == torch_bits(content)


def test_two_levels_of_wrapping(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2).state_dict()
    content = {"app": {"model": model, "step": 3}, "epoch": 1, "set": {1}}
    tensors = read_pytorch_bin(saved(tmp_path / "m.bin", content))
    assert bits(tensors) == torch_bits(model)
    assert tensors.key == "app.model"
    assert set(tensors.left_out) == {"epoch", "set (__builtin__.set)", "app.step"}
    with pytest.raises(ValueError, match="no tensors by name"):
        read_pytorch_bin(saved(tmp_path / "m.bin", {"a": {"b": {"c": {"d": torch.ones(1)}}}}))


def repacked(source: bytes, change: Callable[[zipfile.ZipInfo], str | None], compression: int = 0) -> bytes:
    """The same archive with its entries renamed, or left out."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(content, "w", compression) as new:
        for info in old.infolist():
            if name := change(info):
                new.writestr(zipfile.ZipInfo(name), old.read(info), compression)
    return content.getvalue()


def twice(source: bytes) -> bytes:
    content = io.BytesIO(source)
    with zipfile.ZipFile(content, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"")
    return content.getvalue()


def added(name: str, content: bytes = b"") -> Callable[[bytes], bytes]:
    def change(source: bytes) -> bytes:
        buffer = io.BytesIO(source)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(name, content)
        return buffer.getvalue()

    return change


def directory(source: bytes, offset: int, form: str, value: int) -> bytes:
    """The archive with a field of the first entry of its directory changed."""
    start, changed = source.index(b"PK\1\2"), bytearray(source)
    struct.pack_into(form, changed, start + offset, value)
    return bytes(changed)


def overlapping(source: bytes) -> bytes:
    """Both storages at the place of the first."""
    changed = bytearray(source)
    places = [i for i in range(len(source)) if source[i : i + 4] == b"PK\1\2"]
    entries = [i for i in places if b"/data/" in source[i : i + 80]]
    changed[entries[1] + 42 : entries[1] + 46] = changed[entries[0] + 42 : entries[0] + 46]
    return bytes(changed)


def pickles(source: bytes) -> bytes:
    """The older layout without its storages."""
    file = io.BytesIO(source)
    for _ in range(5):
        list(pickletools.genops(file))
    return source[: file.tell()]


GOOD = (CHECKPOINTS / "mini" / "pt_bin_bf16" / "pytorch_model.bin").read_bytes()
LEGACY = (CHECKPOINTS / "mini" / "pt_bin_legacy" / "pytorch_model.bin").read_bytes()
BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"this is not a model", "neither a zip archive nor a pickle"),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "HTML page": (lambda: b"\n<!DOCTYPE html><html>404</html>", "is an HTML page"),
    "tar": (lambda: b"storages".ljust(257, b"\0") + b"ustar  \0", "tar archive of PyTorch 0.1"),
    "other pickle": (lambda: pickle.dumps({"a": 1}), "does not begin as torch.save"),
    "truncated": (lambda: GOOD[:-10], "zip directory"),
    "half": (lambda: GOOD[: len(GOOD) // 2], "zip directory"),
    "first bytes": (lambda: GOOD[:40], "zip directory"),
    "no pickle": (lambda: repacked(GOOD, lambda i: None if "pkl" in i.filename else i.filename), "0 data.pkl"),
    "two roots": (lambda: added("other/data.pkl")(GOOD), "2 data.pkl"),
    "other archive": (lambda: repacked(GOOD, lambda i: i.filename.replace("/", "_")), "0 data.pkl"),
    "no storage": (lambda: repacked(GOOD, lambda i: None if i.filename.endswith("/7") else i.filename), "storage '7'"),
    "compressed": (lambda: repacked(GOOD, lambda i: i.filename, zipfile.ZIP_DEFLATED), "is compressed"),
    "encrypted": (lambda: directory(GOOD, 8, "<H", 1), "is encrypted"),
    "twice": (lambda: twice(GOOD), "occurs twice"),
    "absolute": (lambda: added("/etc/passwd")(GOOD), "leads out of the archive"),
    "parent": (lambda: added("pytorch_model/../../a")(GOOD), "leads out of the archive"),
    "backslash": (lambda: added("..\\a")(GOOD), "leads out of the archive"),
    "entry beyond the file": (lambda: directory(GOOD, 42, "<I", 2**31), "is not where the directory has it"),
    "entry elsewhere": (lambda: directory(GOOD, 42, "<I", 1), "is not where the directory has it"),
    "sizes": (lambda: directory(GOOD, 24, "<I", 2**31), "is not where the directory has it"),
    "overlapping": (lambda: overlapping(GOOD), "two of its entries overlap"),
    "byte order": (lambda: repacked(GOOD, lambda i: i.filename.replace("storage_alignment", "x")
        .replace("byteorder", "y").replace(".format_version", "byteorder")), "byte order is b'1'"),
    "TorchScript": (lambda: added("pytorch_model/code/a.py")(GOOD), "TorchScript archive"),
    "legacy, truncated": (lambda: LEGACY[:-1], "is not all there"),
    "legacy, half": (lambda: LEGACY[:2000], "breaks off|expected"),
    "legacy, without storages": (lambda: pickles(LEGACY), "not those its tensors ask for"),
    "legacy, trailing": (lambda: LEGACY + b"x", "1 of its bytes belong to none"),
    "legacy, other number": (lambda: LEGACY.replace(b"\x8a\x0a\x6c", b"\x8a\x0a\x6d", 1), "does not begin as"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_named(kind: str, tmp_path: Path) -> None:
    make, reason = BAD_FILES[kind]
    (tmp_path / "m.bin").write_bytes(make())
    with pytest.raises(ValueError, match=rf"m\.bin .*({reason})"):
        read_pytorch_bin(tmp_path / "m.bin")


def test_torchscript_as_torch_writes_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "m.bin"))
    with pytest.raises(ValueError, match="TorchScript archive"):
        read_pytorch_bin(tmp_path / "m.bin")


def test_what_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pytorch_bin(tmp_path / "m.bin")
    with pytest.raises(IsADirectoryError):
        read_pytorch_bin(tmp_path)


# ---- any damage at all -------------------------------------------------------------------------------------------

EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=8)


def attempt(path: Path, content: bytes) -> None:
    """Read a damaged file: it is refused, or what it says of its tensors is so."""
    path.write_bytes(content)
    try:
        found = read_state_dicts(path)
    except (ValueError, OSError) as error:
        found, message = {}, str(error)
    else:
        message = str(path)
    assert str(path) in message
    for tensors in found.values():
        assert sum(t.nbytes for t in tensors.values()) <= len(tensors) * len(content)
        bits(tensors)


def edited(content: bytes, edits: list[tuple[int, int]], keep: int | None = None) -> bytes:
    changed = bytearray(content[:keep])
    for place, value in edits:
        if changed:
            changed[place % len(changed)] = value
    return bytes(changed)


def small(layout: str) -> bytes:
    buffer = io.BytesIO()
    shared = torch.arange(12.0).reshape(3, 4)
    content = {"epoch": 3, "model": OrderedDict(a=shared, b=shared.T[1:], c=torch.ones(2, dtype=torch.bfloat16))}
    torch.save(content, buffer, _use_new_zipfile_serialization=LAYOUTS[layout])
    return buffer.getvalue()


SMALL = {layout: small(layout) for layout in LAYOUTS}


@BOTH
@FUZZ
@given(edits=EDITS, keep=st.none() | st.integers(0, 3000))
def test_any_damage_to_a_file(tmp_path: Path, layout: str, edits: list[tuple[int, int]], keep: int | None) -> None:
    attempt(tmp_path / "m.bin", edited(SMALL[layout], edits, keep))


@FUZZ
@given(edits=EDITS, keep=st.none() | st.integers(0, 600))
def test_any_damage_to_the_pickle(tmp_path: Path, edits: list[tuple[int, int]], keep: int | None) -> None:
    with zipfile.ZipFile(io.BytesIO(SMALL["zip"])) as archive:
        root = archive.namelist()[0].partition("/")[0]
        pickled = archive.read(f"{root}/data.pkl")
        storages = {n.rpartition("/")[2]: archive.read(n) for n in archive.namelist() if n.startswith(f"{root}/data/")}
    attempt(zipped(tmp_path / "m.bin", edited(pickled, edits, keep), storages), (tmp_path / "m.bin").read_bytes())


PIECES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
PIECES += [b"h\0", b"q\0", b"K\1", b"U\1a", b"ctorch\nSize\n", b"ctorch\nFloatStorage\n", tensor(), state(tensor())]


@FUZZ
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_opcodes(tmp_path: Path, pieces: list[bytes]) -> None:
    path = zipped(tmp_path / "m.bin", b"\x80\2" + b"".join(pieces) + b".", FOUR)
    attempt(path, path.read_bytes())


# ---- memory and imports ------------------------------------------------------------------------------------------

READ_ONE = """
import sys
from pathlib import Path
from vit_core.files.pytorch import read_pytorch_bin
before = peak()
tensor = read_pytorch_bin(Path(sys.argv[1]))["layer.3"]
array = tensor.read()
assert array[0, 0] == 3 and array.shape == (1024, 1024)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@BOTH
def test_reading_one_tensor_of_a_big_file_costs_one_tensor(tmp_path: Path, layout: str) -> None:
    """64 MiB in tensors of 4 MiB. In the older layout opening takes two more, for pickles all over the file."""
    content = {f"layer.{i}": torch.full((1024, 1024), float(i)) for i in range(16)}
    path = saved(tmp_path / "m.bin", content, layout)
    done = subprocess.run(
        [sys.executable, "-c", PEAK + READ_ONE, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) < {"zip": 4 << 10, "legacy": 16 << 10}[layout]


def test_the_package_loads_no_framework() -> None:
    code = "import vit_core.files.pytorch, sys; print(' '.join({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(done.stdout.split()) & {"torch", "tensorflow", "keras", "jax", "flax", "h5py", "requests"}


# ---- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [1 << 30, 0])
def test_what_is_written_torch_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    """Also with every entry written as one beyond a gibibyte is."""
    monkeypatch.setattr("vit_core.files.pytorch._LARGE", large)
    arrays: dict[str, Any] = {}
    for dtype in DTYPES:
        whole = np.arange(-12, 12).reshape(2, 3, 4).astype(getattr(ml_dtypes, dtype, dtype))
        arrays |= {dtype: whole, f"{dtype}.T": whole.T, f"{dtype}.0": whole[0, 0, 0], f"{dtype}.empty": whole[:, :0]}
    tensors = {name: Tensor.of(np.asarray(array)) for name, array in arrays.items()}
    write_pytorch_bin(tmp_path / "m.bin", tensors)
    for mapped in (False, True):
        loaded = torch.load(tmp_path / "m.bin", weights_only=True, mmap=mapped)
        assert torch_bits(loaded) == bits(tensors)
        assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in loaded.values())
    again = read_pytorch_bin(tmp_path / "m.bin")
    assert list(again) == list(tensors)
    assert bits(again) == bits(tensors)
    with zipfile.ZipFile(tmp_path / "m.bin") as archive:
        assert archive.testzip() is None
    for tensor in again.values():
        assert tensor.nbytes == 0 or not tensor.read().flags.owndata
        assert tensor.nbytes == 0 or tensor.read().ctypes.data % 64 == 0


def test_writing_holds_one_tensor_in_memory(tmp_path: Path) -> None:
    shape, dtype = (1024, 1024), np.dtype(np.float32)
    tensors = {str(i): Tensor(shape, dtype, lambda i=i: np.full(shape, i, dtype)) for i in range(8)}
    tracemalloc.start()
    write_pytorch_bin(tmp_path / "m.bin", tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * tensors["0"].nbytes
    assert bits(read_pytorch_bin(tmp_path / "m.bin")) == bits(tensors)


@pytest.mark.parametrize("folder", FOLDERS[:3], ids=lambda p: "/".join(p.parts[-2:]))
def test_a_golden_file_written_again(tmp_path: Path, folder: Path) -> None:
    tensors = read_checkpoint(find_weights(folder.with_name("pt_safetensors"))).tensors
    write_pytorch_bin(tmp_path / "m.bin", tensors)
    assert torch_bits(torch.load(tmp_path / "m.bin", weights_only=True)) == bits(tensors)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = shutil.copy(CHECKPOINTS / "cls" / "pt_bin" / "pytorch_model.bin", tmp_path / "m.bin")
    before = path.read_bytes()

    def fail() -> Any:
        raise OSError("no space left")

    good = Tensor.of(np.ones(3, np.float32))
    with pytest.raises(OSError, match="no space"):
        write_pytorch_bin(path, {"a": good, "b": Tensor((3,), np.dtype(np.float32), fail)})
    with pytest.raises(ValueError, match=r"can't hold b \(complex64\): expected one of float64"):
        write_pytorch_bin(path, {"a": good, "b": Tensor.of(np.ones(2, np.complex64))})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
