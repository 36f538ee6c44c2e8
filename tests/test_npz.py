"""NumPy's .npz files, read lazily and without pickles, written byte for byte as NumPy writes them; attacks named."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vit_core.files import npz
from vit_core.files.npz import read_npz, write_npz
from vit_core.files.tensor import Tensor

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint32", "uint8", "bool")
FUZZ = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def arrays_of(dtype: str) -> dict[str, np.ndarray]:
    array = np.arange(24).reshape(2, 3, 4).astype(getattr(ml_dtypes, dtype, dtype))
    return {"Transformer/a/kernel": array, "s": np.array(array[0, 0, 1]), "e": array[:0], "v": array[0, 0].copy()}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def header(text: str, version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode("latin-1", "replace")


def archive(path: Path, entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries:
            file.writestr(zipfile.ZipInfo(name), data, method)
    return path


# ---- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_written_as_numpy_writes_and_read_back(tmp_path: Path, dtype: str) -> None:
    arrays = arrays_of(dtype)
    np.savez(tmp_path / "theirs.npz", **arrays)
    write_npz(tmp_path / "ours.npz", {name: Tensor.of(a) for name, a in arrays.items()})
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()
    with np.load(tmp_path / "ours.npz") as loaded:
        assert {n: a.tobytes() for n, a in loaded.items()} == {n: a.tobytes() for n, a in arrays.items()}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["native", "big-endian", "Fortran", "both"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_is_read(tmp_path: Path, dtype: str, order: str, save: Callable[..., None]) -> None:
    stored = arrays = arrays_of(dtype)
    if order in ("big-endian", "both") and dtype != "bfloat16":
        stored = {n: a.astype(a.dtype.newbyteorder(">")) for n, a in stored.items()}
    if order in ("Fortran", "both"):
        stored = {n: np.asarray(a, order="F") for n, a in stored.items()}
    save(tmp_path / "m.npz", **stored)
    tensors = read_npz(tmp_path / "m.npz")
    assert list(tensors) == list(arrays)
    for name, tensor in tensors.items():
        read = tensor.read()
        assert (tensor.shape, tensor.dtype, tensor.source) == (arrays[name].shape, arrays[name].dtype, name)
        assert (read.shape, read.dtype, read.dtype.isnative) == (tensor.shape, tensor.dtype, True)
        assert read.flags.c_contiguous and read.flags.aligned and read.flags.writeable
        assert read.tobytes() == arrays[name].tobytes()
        tensor.release()
        assert tensor.read().tobytes() == arrays[name].tobytes()


def test_a_golden_file() -> None:
    with np.load(GOLDEN / "inputs.npz") as theirs:
        ours = read_npz(GOLDEN / "inputs.npz")
        assert {n: t.read().tobytes() for n, t in ours.items()} == {n: a.tobytes() for n, a in theirs.items()}


def test_transposed_arrays_are_written_in_c_order(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    write_npz(tmp_path / "m.npz", {"t": Tensor.of(array).transposed((1, 0))})
    with np.load(tmp_path / "m.npz") as loaded:
        np.testing.assert_array_equal(loaded["t"], array.T)


def test_no_arrays(tmp_path: Path) -> None:
    write_npz(tmp_path / "m.npz", {})
    assert read_npz(tmp_path / "m.npz") == {}


# ---- in little memory --------------------------------------------------------------------------------------------


def test_a_big_file_is_opened_in_no_memory(tmp_path: Path) -> None:
    """1.5 GiB of zeros, stored in no space: what the directory says is taken from a small file."""
    size = 1_500 * 2**20
    start = header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size // 4},)}}")
    info = zipfile.ZipInfo("a.npy")
    info.CRC, info.header_offset, info.file_size, info.compress_size = 0, 0, len(start) + size, len(start) + size
    with (tmp_path / "m.npz").open("wb") as file:
        file.write(info.FileHeader() + start)
        file.seek(size, os.SEEK_CUR)
        with zipfile.ZipFile(file, "w") as directory:
            directory.filelist.append(info)
            directory.start_dir, directory._didModify = file.tell(), True
    tracemalloc.start()
    tensors = read_npz(tmp_path / "m.npz")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert tensors["a"].shape == (size // 4,)


def test_one_tensor_at_a_time_and_whole_or_not_at_all(tmp_path: Path) -> None:
    events: list[str] = []

    def read(name: str) -> np.ndarray:
        events.append(f"read {name}")
        if name == "c":
            raise OSError("unreadable")
        return np.ones(3)

    def tensor(name: str) -> Tensor:
        return Tensor((3,), np.dtype("f8"), lambda: read(name), name, lambda: events.append(f"release {name}"))

    (tmp_path / "m.npz").write_bytes(b"old")
    with pytest.raises(OSError, match="unreadable"):
        write_npz(tmp_path / "m.npz", {name: tensor(name) for name in "abc"})
    assert events == ["read a", "release a", "read b", "release b", "read c"]
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a//b", "a\\b", "a\nb"])
def test_names_and_dtypes_that_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no name of an array"):
        write_npz(tmp_path / "m.npz", {name: Tensor.of(np.ones(1))})
    for dtype in (np.complex64, object, "U3", ml_dtypes.float8_e4m3fn):
        with pytest.raises(ValueError, match=r"An \.npz file can't hold x"):
            write_npz(tmp_path / "m.npz", {"x": Tensor.of(np.zeros(1, dtype))})
    assert not list(tmp_path.iterdir())


# ---- damage and attacks ------------------------------------------------------------------------------------------

ONE = npy(np.arange(3, dtype=np.float32))


class Touched:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("touched",)


def saved(**arrays: Any) -> Callable[[Path], Any]:
    return lambda path: np.savez(path, **arrays)


def entries(*pairs: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Callable[[Path], Any]:
    return lambda path: archive(path, list(pairs), method)


def described(text: str, data: bytes = b"", **options: Any) -> Callable[[Path], Any]:
    return entries(("a.npy", header(text, **options) + data))


def twice(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(path, [("a.npy", ONE), ("a.npy", ONE)])


def encrypted(path: Path) -> None:
    archive(path, [("a.npy", ONE)])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)


def directory(path: Path, offset: int, *values: int) -> None:
    """A good file whose first directory record has other values of 4 bytes."""
    archive(path, [("a.npy", ONE), ("b.npy", ONE)])
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}I", content, content.index(b"PK\1\2") + offset, *values)
    path.write_bytes(content)


def bomb(path: Path) -> None:
    """2 GiB by its directory, which is not put to the test."""
    archive(path, [("a.npy", ONE + bytes(10**6))], zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 24, 2**31)
    path.write_bytes(content)


def shape(text: str, data: bytes = b"") -> Callable[[Path], Any]:
    return described(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {text}}}", data)


def good(path: Path) -> bytes:
    return archive(path, [("a.npy", ONE), ("b.npy", ONE)]).read_bytes()


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "empty": ("empty", lambda p: p.write_bytes(b"")),
    "text": ("not a zip file", lambda p: p.write_text("this is not a model" * 100)),
    "truncated": ("not a zip file", lambda p: p.write_bytes(good(p)[:-30])),
    "start is missing": ("", lambda p: p.write_bytes(good(p)[200:])),
    "objects": (
        "'a' holds Python objects, which are never unpickled",
        saved(a=np.array([Touched()], object)),
    ),
    "objects in fields": ("Python objects", saved(a=np.zeros(2, [("x", object), ("y", "f4")]))),
    "fields": ("has dtype", saved(a=np.zeros(2, [("x", "f4")]))),
    "void": ("has dtype", saved(a=np.zeros(2, "V4"))),
    "texts": ("has dtype", saved(a=np.array(["a"]))),
    "complex": ("has dtype", saved(a=np.zeros(2, "c8"))),
    "dates": ("has dtype", saved(a=np.zeros(2, "M8[s]"))),
    "long doubles": ("has dtype", described("{'descr': '<f16', 'fortran_order': False, 'shape': (1,)}", bytes(16))),
    "arrays of arrays": ("has dtype", described("{'descr': '2i1', 'fortran_order': False, 'shape': (1,)}", bytes(2))),
    "bomb": ("bytes unpack to 2147483648", bomb),
    "a terabyte": ("has 12 bytes", shape(f"({2**38},)", bytes(12))),
    "beyond 64 bits": ("shape", shape(f"({2**63}, 2)", bytes(12))),
    "empty but vast": ("shape", shape(f"(0, {2**61})")),
    "too many dimensions": ("shape", shape(f"({'1,' * 40})", bytes(4))),
    "negative": ("shape", shape("(-3,)", bytes(12))),
    "one byte less": ("has 11 bytes", shape("(3,)", bytes(11))),
    "one byte more": ("has 13 bytes", shape("(3,)", bytes(13))),
    "shape of text": ("header of 'a'", shape("'abc'")),
    "a call": ("header of 'a'", described("__import__('os').mkdir('touched')")),
    "nested": ("header of 'a'", described("(" * 3000)),
    "unfinished": ("header of 'a'", described("{'descr': '''")),
    "long header": ("header of 'a'", described(" " * 60_000)),
    "no magic": ("header of 'a'", entries(("a.npy", b"numbers" * 20))),
    "no header": ("header of 'a'", entries(("a.npy", b""))),
    "version": ("its version is", described("{}", version=b"\3\0")),
    "no dict": ("header of 'a'", described("3")),
    "no array": ("is no array", entries(("a.npy", ONE), ("readme.txt", b"hello"))),
    "folder": ("is no array", entries(("a.npy/", b""))),
    "no name": ("is no name", entries((".npy", ONE))),
    "absolute": ("leads out of the archive", entries(("/etc/a.npy", ONE))),
    "upwards": ("leads out of the archive", entries(("a/../../b.npy", ONE))),
    "backslash": ("leads out of the archive", entries(("a\\b.npy", ONE))),
    "twice": ("the entry 'a.npy' occurs twice", twice),
    "encrypted": ("is encrypted", encrypted),
    "bzip2": ("in a way that NumPy does not use", entries(("a.npy", ONE), method=zipfile.ZIP_BZIP2)),
    "overlap": ("overlap", lambda p: directory(p, 42, 30 + 5 + len(ONE))),
    "elsewhere": ("not where the directory has it", lambda p: directory(p, 42, 7)),
    "beyond the end": ("not all there", lambda p: directory(p, 20, 2**30, 2**30)),
    "reaches into the next": ("has 20 bytes|overlap", lambda p: directory(p, 20, len(ONE) + 8, len(ONE) + 8)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_and_treacherous_files_are_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words, damage = DAMAGE[kind]
    damage(tmp_path / "m.npz")
    with pytest.raises(ValueError, match=rf"m\.npz is damaged or not an \.npz file \(.*({words})"):
        read_npz(tmp_path / "m.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


def test_a_compressed_array_that_is_not_what_was_promised(tmp_path: Path) -> None:
    data = npy(np.random.default_rng(0).random(40_000))
    path = archive(tmp_path / "m.npz", [("a.npy", data)], zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    for at, value in ((20_000, 0xFF), (content.index(b"PK\1\2") + 16, 0xA5)):  # in the data, in the checksum
        damaged = bytearray(content)
        damaged[at] ^= value
        path.write_bytes(damaged)
        tensor = read_npz(path)["a"]
        with pytest.raises(ValueError, match=r"m\.npz is damaged in 'a'"):
            tensor.read()


def test_a_compressed_array_that_unpacks_to_more(tmp_path: Path) -> None:
    """Promised are 3 numbers, packed are 25 million: no more than one step of them is unpacked."""
    data = ONE + bytes(10**8)
    path = archive(tmp_path / "m.npz", [("a.npy", data)], zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 24, len(ONE))
    path.write_bytes(content)
    tensor = read_npz(path)["a"]
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"m\.npz is damaged in 'a'"):
        tensor.read()
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_what_unpacks_to_little_more_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "m.npz", a=np.zeros(100_000))
    assert read_npz(tmp_path / "m.npz")["a"].read().sum() == 0
    monkeypatch.setattr(npz, "_SLACK", 700_000)
    with pytest.raises(ValueError, match="unpack to 800128"):
        read_npz(tmp_path / "m.npz")


def test_stand_ins_and_missing_files(tmp_path: Path) -> None:
    for content, words in (
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>", "HTML"),
    ):
        (tmp_path / "m.npz").write_bytes(content)
        with pytest.raises(ValueError, match=rf"m\.npz is an? .*{words}"):
            read_npz(tmp_path / "m.npz")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_npz(tmp_path / "nowhere.npz")


def outcome(path: Path) -> str:
    """ "read", or the message of the error. The arrays are as large as they said, and no larger than the file."""
    try:
        for tensor in read_npz(path).values():
            assert (tensor.read().shape, tensor.read().dtype) == (tensor.shape, tensor.dtype)
            assert tensor.nbytes <= path.stat().st_size
    except ValueError as error:
        return str(error)
    return "read"


@FUZZ
@given(st.text(max_size=60), st.sampled_from(["<f4", "|V2", "|O", ">i8", "<f4'", "((", "{}"]))
def test_any_header_is_an_array_or_a_named_error(tmp_path: Path, text: str, descr: str) -> None:
    for content in (text, f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({text})}}"):
        path = archive(tmp_path / "m.npz", [("a.npy", header(content))])
        assert outcome(path).startswith(("read", f"{path} is damaged or not an .npz file"))


@FUZZ
@given(st.integers(0, 600), st.integers(1, 255))
def test_any_flipped_bits_are_harmless(tmp_path: Path, at: int, bits: int) -> None:
    path = archive(tmp_path / "m.npz", [("a.npy", ONE), ("b.npy", ONE)], zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= bits
    path.write_bytes(content)
    assert outcome(path).startswith(("read", f"{path} is damaged"))
