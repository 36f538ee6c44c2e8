"""Flax's msgpack files: the golden ones hold what the PyTorch files hold, without Flax; damage is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from conftest import CHECKPOINTS

from vit_core.checkpoint import find_weights, read_checkpoint
from vit_core.msgpack_file import read_msgpack

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


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "uint8", "bool"])
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
            assert tensors[name].dtype == wanted
            np.testing.assert_array_equal(tensors[name].read(), array)
        assert tensors["s"].shape == ()


GOOD = (CHECKPOINTS / "cls" / "flax_msgpack" / "flax_model.msgpack").read_bytes()
ONE = packed(np.ones(2, np.float32))
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
    "negative": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((-1,), "float32", b"1234")))}),
    "payload": msgpack.packb({"a": msgpack.ExtType(1, b"\xc1")}),
    "number as key": msgpack.packb({1: ONE}),
    "path as key": msgpack.packb({"../a": ONE}),
    "twice": b"\x82" + 2 * (msgpack.packb("a") + msgpack.packb(ONE)),
    "too deep": b"\x81\xa1a" * 5000 + b"\x80",
    "chunks": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": ONE}}}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(DAMAGE[kind])
    with pytest.raises(ValueError, match=r"flax_model\.msgpack is damaged or not a Flax file"):
        read_checkpoint(tmp_path / "flax_model.msgpack")


def test_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "flax_model.msgpack").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        read_checkpoint(tmp_path / "flax_model.msgpack")
