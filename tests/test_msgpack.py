"""Flax's msgpack files, read lazily and written byte for byte as Flax writes them, without Flax; damage is named."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from conftest import CHECKPOINTS

from vit_core.files import msgpack as msgpack_file
from vit_core.files.msgpack import read_msgpack, write_msgpack
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import find_weights, read_checkpoint

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
FOLDERS = sorted(CHECKPOINTS.glob("*/flax_msgpack*"))


def packed(array: np.ndarray, kind: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(kind, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))


def written(path: Path, tree: Any) -> Path:
    path.write_bytes(msgpack.packb(tree, strict_types=True))
    return path


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: "/".join(p.parts[-2:]))
def test_golden_files_hold_what_the_pytorch_files_hold(folder: Path) -> None:
    other = folder.with_name("pt_safetensors_bf16" if folder.name.endswith("bf16") else "pt_safetensors")
    ours, theirs = (read_checkpoint(find_weights(f)) for f in (folder, other))
    assert (ours.format, ours.unknown) == ("flax", {})
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].read().dtype == tensor.dtype
        assert ours.tensors[name].read().tobytes() == tensor.read().tobytes(), name


def test_safetensors_win_unless_flax_is_named(tmp_path: Path, backend: Any) -> None:
    for name in ("pt_safetensors", "flax_msgpack"):
        shutil.copytree(CHECKPOINTS / "cls" / name, tmp_path, dirs_exist_ok=True)
    load = backend.package.ViTForImageClassification.from_pretrained
    formats = [load(tmp_path, output_loading_info=True, **o)[1].format for o in ({}, {"from_flax": True})]
    assert formats == ["pt", "flax"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_scalars_chunks_and_params(tmp_path: Path, dtype: str) -> None:
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.arange(12).reshape(3, 4).astype(wanted)
    flat = array.ravel()
    chunks = {str(i): packed(part) for i, part in enumerate((flat[:5], flat[5:10], flat[10:]))}
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 3, "1": 4}, "chunks": chunks}
    tree = {"a": {"b": packed(array)}, "c": chunked, "s": packed(array[0, 0].reshape(()), 3)}
    for content in (tree, {"params": tree}):
        tensors = read_msgpack(written(tmp_path / "m.msgpack", content))
        assert sorted(tensors) == ["a.b", "c", "s"]
        for name in ("a.b", "c"):
            assert (tensors[name].dtype, tensors[name].shape) == (wanted, array.shape)
            assert tensors[name].read().flags.aligned and tensors[name].read().flags.writeable
            np.testing.assert_array_equal(tensors[name].read(), array)
        assert tensors["s"].shape == ()


GOOD = (CHECKPOINTS / "cls" / "flax_msgpack" / "flax_model.msgpack").read_bytes()
ONE = packed(np.ones(2, np.float32))


def packed_header(size: int) -> bytes:
    """A map of one array of so many float32, without its bytes."""
    inner = (
        b"\x93" + msgpack.packb((size,)) + msgpack.packb("float32") + b"\xc6" + (size * 4 % 2**32).to_bytes(4, "big")
    )
    return b"\x81\xa1a\xc9" + ((len(inner) + size * 4) % 2**32).to_bytes(4, "big") + b"\x01" + inner


DAMAGE = {
    "truncated": GOOD[:-10],
    "trailing": GOOD + b"x",
    "empty": b"",
    "text": b"this is not a model",
    "no map": msgpack.packb([1, 2]),
    "no array": msgpack.packb({"a": {"b": 1}}),
    "complex": msgpack.packb({"a": msgpack.ExtType(2, b"")}),
    "object dtype": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((2,), "object", b"12345678")))}),
    "too short": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((2**60,), "float32", b"1234")))}),
    "not all there": packed_header(2**40 // 4) + b"\0" * 100,
    "too many dimensions": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,) * 40, "int8", b"1")))}),
    "empty but vast": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((0, 2**60), "int8", b"")))}),
    "trailing inside": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "int8", b"1")) + b"1")}),
    "no dtype": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), 8, b"1")))}),
    "no shape": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb((b"\1", "int8", b"1")))}),
    "no bytes": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "int8", "1")))}),
    "four parts": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "int8", b"1", 0)))}),
    "a map that promises more": b"\xdf\xff\xff\xff\xff\xa1a\x80",
    "a list that promises more": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a long name": msgpack.packb({"a" * 300: ONE}),
    "a longer name": msgpack.packb({"a" * 30_000: ONE}),
    "params is an array": msgpack.packb({"params": 1}),
    "negative": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((-1,), "float32", b"1234")))}),
    "payload": msgpack.packb({"a": msgpack.ExtType(1, b"\xc1")}),
    "number as key": msgpack.packb({1: ONE}),
    "path as key": msgpack.packb({"../a": ONE}),
    "twice": b"\x82" + 2 * (msgpack.packb("a") + msgpack.packb(ONE)),
    "too deep": b"\x81\xa1a" * 5000 + b"\x80",
    "chunks": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": ONE}}}),
    "no chunks": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 0}, "chunks": {}}}),
    "chunks without a shape": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "chunks": {"0": ONE}}}),
    "chunks by other names": msgpack.packb(
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"x": ONE}}}
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(DAMAGE[kind])
    with pytest.raises(ValueError, match=r"flax_model\.msgpack is damaged or not a Flax file"):
        read_checkpoint(tmp_path / "flax_model.msgpack")


def test_any_damage_is_harmless(tmp_path: Path) -> None:
    """A file that ends at any byte, or has another value in any byte, is read within its size or refused by name."""
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": ONE, "1": ONE}}
    good = written(tmp_path / "m.msgpack", {"a": {"b": ONE}, "c": chunked}).read_bytes()
    flips = [(at, bits) for at in range(len(good)) for bits in (0x01, 0x10, 0x80, 0xFF)]
    damaged = [good[:n] for n in range(len(good))]
    damaged += [good[:at] + bytes([good[at] ^ bits]) + good[at + 1 :] for at, bits in flips]
    refused = 0
    for content in damaged:
        (tmp_path / "m.msgpack").write_bytes(content)
        try:
            for tensor in read_msgpack(tmp_path / "m.msgpack").values():
                assert tensor.read().nbytes == tensor.nbytes < len(good)
        except ValueError as error:
            refused += str(error).startswith(f"{tmp_path / 'm.msgpack'} is damaged or not a Flax file")
    assert len(damaged) > refused > len(damaged) // 2


def test_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "flax_model.msgpack").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        read_checkpoint(tmp_path / "flax_model.msgpack")


# ---- in little memory --------------------------------------------------------------------------------------------


def test_a_big_file_is_opened_in_no_memory(tmp_path: Path) -> None:
    """1.5 GiB of zeros, which take no space on the disk either."""
    size = 1_500 * 2**20
    with (tmp_path / "m.msgpack").open("wb") as file:
        header = packed_header(size // 4)
        file.write(header)
        file.truncate(len(header) + size)
    tracemalloc.start()
    tensors = read_msgpack(tmp_path / "m.msgpack")
    assert tracemalloc.get_traced_memory()[1] < 2**18
    tracemalloc.stop()
    assert tensors["a"].shape == (size // 4,)


def test_arrays_are_private_and_released(tmp_path: Path) -> None:
    path = written(tmp_path / "m.msgpack", {"a": packed(np.arange(9000, dtype=np.uint8))})
    content, tensor = path.read_bytes(), read_msgpack(path)["a"]
    tensor.read()[:] = 7
    assert path.read_bytes() == content
    assert set(tensor.read()) == {7}
    tensor.release()
    assert os.name != "posix" or tensor.read()[5] == 5


# ---- writing -----------------------------------------------------------------------------------------------------


@pytest.fixture
def serialize() -> Callable[[Any], bytes]:
    serialization: Any = pytest.importorskip("flax.serialization")
    return serialization.msgpack_serialize


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: "/".join(p.parts[-2:]))
def test_golden_files_are_written_again_byte_for_byte(tmp_path: Path, folder: Path) -> None:
    for path in folder.glob("*.msgpack"):
        write_msgpack(tmp_path / path.name, read_msgpack(path))
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_flax_writes_the_same(tmp_path: Path, dtype: str, serialize: Callable[[Any], bytes]) -> None:
    """Lengths on either side of every size of a header; names that sort differently with and without their dots."""
    array = (np.arange(70_000) % 100).astype(getattr(ml_dtypes, dtype, dtype))
    sizes = (0, 1, 2, 3, 4, 15, 16, 31, 32, 60, 63, 64, 120, 126, 250, 256, 32_760, 65_536, 70_000)
    parts = {str(n): array[:n] for n in sizes}
    shapes = {"b-": np.array(array[7]), "c": array[:12].reshape(3, 4).T, "d": array[:0].reshape(3, 0)}
    tree = {"b": parts, **shapes, "a": {"0": {"x" * 40: array}}}
    flat = {f"b.{n}": a for n, a in parts.items()} | shapes | {f"a.0.{'x' * 40}": array}
    write_msgpack(tmp_path / "m.msgpack", {name: Tensor.of(a) for name, a in flat.items()})
    assert (tmp_path / "m.msgpack").read_bytes() == serialize(tree)
    again = read_msgpack(tmp_path / "m.msgpack")
    assert {n: (t.shape, t.dtype, t.read().tobytes()) for n, t in again.items()} == {
        n: (a.shape, a.dtype, a.tobytes()) for n, a in flat.items()
    }


@pytest.mark.parametrize("limit", [1, 7, 40, 47, 48])
def test_chunks_are_those_of_flax(
    tmp_path: Path, limit: int, serialize: Callable[[Any], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import flax.serialization

    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", limit)
    monkeypatch.setattr(msgpack_file, "_CHUNK", limit)
    arrays = {"k": np.arange(12, dtype=np.float32).reshape(3, 4), "s": np.array(1.0), "x": np.ones(9, "i1")}
    write_msgpack(tmp_path / "m.msgpack", {f"a.{n}": Tensor.of(a) for n, a in arrays.items()})
    assert (tmp_path / "m.msgpack").read_bytes() == serialize({"a": arrays})
    for name, tensor in read_msgpack(tmp_path / "m.msgpack").items():
        np.testing.assert_array_equal(tensor.read(), arrays[name[2:]])
        assert tensor.read().shape == tensor.shape


def test_no_tensors(tmp_path: Path, serialize: Callable[[Any], bytes]) -> None:
    write_msgpack(tmp_path / "m.msgpack", {})
    assert (tmp_path / "m.msgpack").read_bytes() == serialize({})
    assert read_msgpack(tmp_path / "m.msgpack") == {}


@pytest.mark.parametrize(
    ("names", "words"),
    [(["a", "a.b"], "'a.b' is the name of"), (["a.b", "a"], "'a' is the name of"), (["a..b"], "'' is no name"),
     (["a/b"], "'a/b' is no name"), ([""], "'' is no name")],
)  # fmt: skip
def test_names_that_make_no_tree(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_msgpack(tmp_path / "m.msgpack", {name: Tensor.of(np.ones(1)) for name in names})
    assert not list(tmp_path.iterdir())


def test_unwritable_dtype_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"flax_model\.msgpack can't hold x \(complex128\)"):
        write_msgpack(tmp_path / "m.msgpack", {"x": Tensor.of(np.ones(2, np.complex128))})
    assert not list(tmp_path.iterdir())


def test_one_tensor_at_a_time_and_whole_or_not_at_all(tmp_path: Path) -> None:
    events: list[str] = []

    def read(name: str) -> np.ndarray:
        events.append(f"read {name}")
        if name == "c":
            raise OSError("unreadable")
        return np.ones(3)

    def tensor(name: str) -> Tensor:
        return Tensor((3,), np.dtype("f8"), lambda: read(name), name, lambda: events.append(f"release {name}"))

    (tmp_path / "m.msgpack").write_bytes(b"old")
    with pytest.raises(OSError, match="unreadable"):
        write_msgpack(tmp_path / "m.msgpack", {name: tensor(name) for name in "abc"})
    assert events == ["read a", "release a", "read b", "release b", "read c"]
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
