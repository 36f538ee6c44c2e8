"""Weight files: every safetensors format read and written to the byte, lazily, and damage named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import CHECKPOINTS
from safetensors import safe_open
from safetensors.numpy import save_file

from vit_core.config import AutoConfig, ViTConfig
from vit_core.family import PARTS
from vit_core.files.safetensors import read_safetensors, write_safetensors
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import find_weights, read_checkpoint, write_checkpoint
from vit_core.params import specs

FOLDERS = sorted(p for p in CHECKPOINTS.glob("*/*") if "safetensors" in p.name)
SHARD_SIZES = {"pt_safetensors_sharded": 40_000}  # bytes, as the golden files were split


def parts_of(folder: Path) -> frozenset[str]:
    if folder.parent.name == "base_nopool":
        return frozenset()
    if folder.parent.name == "deit_mask_token":
        return frozenset({"mask_token"})
    architecture = (AutoConfig.from_pretrained(folder).architectures or [""])[0]
    return PARTS[architecture]


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: t.read() for name, t in read_checkpoint(find_weights(folder)).tensors.items()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: "/".join(p.parts[-2:]))
def test_golden_files_are_read_and_written_back(folder: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    checkpoint = read_checkpoint(find_weights(folder))
    table = specs(config, parts_of(folder))
    assert checkpoint.format == folder.name.partition("_")[0]
    assert {n: t.shape for n, t in checkpoint.tensors.items()} == {n: s.shape for n, s in table.items()}
    assert not checkpoint.unknown
    assert sum(checkpoint.dtypes.values()) == sum(s.size for s in table.values())
    written = write_checkpoint(
        tmp_path, checkpoint.tensors, table, (config.architectures or [""])[0],
        format=checkpoint.format, max_shard_size=SHARD_SIZES.get(folder.name, "5GB"),
    )  # fmt: skip
    again = arrays_of(tmp_path)
    for name, tensor in checkpoint.tensors.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].tobytes() == tensor.read().tobytes()
    if folder.name != "tf_safetensors_sharded":  # TensorFlow splits by a rule of its own
        assert {n: (tmp_path / n).read_bytes() for n in written} == {
            p.name: p.read_bytes() for p in folder.iterdir() if p.name != "config.json"
        }


@pytest.mark.parametrize("name", ["tf_safetensors", "tf_safetensors_sharded", "flax_safetensors"])
def test_formats_hold_the_same_arrays(name: str) -> None:
    expected = arrays_of(CHECKPOINTS / "mini" / "pt_safetensors")
    actual = arrays_of(CHECKPOINTS / "mini" / name)
    assert actual.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(actual[key], array)


@pytest.mark.parametrize("fmt", ["pt", "tf", "flax"])
@pytest.mark.parametrize("max_shard_size", ["5GB", 9_000, 100])
def test_index_and_shards_of_every_format(tmp_path: Path, fmt: str, max_shard_size: Any) -> None:
    folder = CHECKPOINTS / "mini" / "pt_safetensors_mixed"
    source = read_checkpoint(find_weights(folder))
    table = specs(ViTConfig.from_pretrained(folder), parts_of(folder))
    written = write_checkpoint(
        tmp_path, source.tensors, table, "ViTForImageClassification", format=fmt, max_shard_size=max_shard_size
    )
    assert (len(written) > 1) == (max_shard_size != "5GB")
    again = read_checkpoint(find_weights(tmp_path))
    assert again.format == fmt
    assert {n: t.read().tobytes() for n, t in again.tensors.items()} == {
        n: t.read().tobytes() for n, t in source.tensors.items()
    }


def test_tf_index_has_the_keys_of_transformers(tmp_path: Path) -> None:
    folder = CHECKPOINTS / "mini" / "tf_safetensors_sharded"
    table = specs(ViTConfig.from_pretrained(folder), parts_of(folder))
    tensors = read_checkpoint(find_weights(folder)).tensors
    write_checkpoint(tmp_path, tensors, table, "ViTForImageClassification", format="tf", max_shard_size=9_000)
    ours, theirs = (json.loads((p / "model.safetensors.index.json").read_text()) for p in (tmp_path, folder))
    assert ours["weight_map"].keys() == theirs["weight_map"].keys()
    assert ours["metadata"] == theirs["metadata"]


def test_a_variant_has_its_own_files(tmp_path: Path) -> None:
    folder = CHECKPOINTS / "mini" / "pt_safetensors"
    table = specs(ViTConfig.from_pretrained(folder), parts_of(folder))
    tensors = read_checkpoint(find_weights(folder)).tensors
    written = write_checkpoint(
        tmp_path, tensors, table, "ViTForImageClassification", variant="ema", max_shard_size=9_000
    )
    assert "model.safetensors.index.ema.json" in written
    assert sum(name.startswith("model.ema-0000") for name in written) == len(written) - 1 > 1
    assert find_weights(tmp_path, "ema").name == "model.safetensors.index.ema.json"
    with pytest.raises(FileNotFoundError, match=r"expected model.safetensors or .*; the folder holds model\.ema-00001"):
        find_weights(tmp_path)


def test_wrong_or_missing_metadata_does_not_mislead(tmp_path: Path) -> None:
    """The names inside decide."""
    for fmt in ("pt", "tf", "flax"):
        source = CHECKPOINTS / "mini" / f"{fmt}_safetensors" / "model.safetensors"
        tensors, _ = read_safetensors(source)
        for metadata in ({}, {"format": "pt"}, {"format": "mlx"}, {"format": "flax"}):
            write_safetensors(tmp_path / "model.safetensors", tensors, metadata)
            assert read_checkpoint(tmp_path / "model.safetensors").format == fmt


def test_both_spellings_of_pytorch_names(tmp_path: Path) -> None:
    array = np.ones((2, 2), np.float32)
    names = ["vit.layers.0.attention.q_proj.weight", "vit.encoder.layer.1.attention.attention.query.weight", "other"]
    save_file(dict.fromkeys(names, array), tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path / "model.safetensors")
    assert sorted(checkpoint.tensors) == [f"encoder.layer.{i}.attention.attention.query.weight" for i in (0, 1)]
    assert list(checkpoint.unknown) == ["other"]
    names.append("encoder.layer.0.attention.attention.query.weight")
    save_file(dict.fromkeys(names, array), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds encoder.layer.0.attention.attention.query.weight twice, as '"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_reading_is_lazy_and_private(tmp_path: Path) -> None:
    """Arrays are views of the mapped file; writing to one reaches neither the file nor another reader."""
    shutil.copytree(CHECKPOINTS / "mini" / "pt_safetensors", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    before = path.read_bytes()
    tensor = read_checkpoint(path).tensors["classifier.weight"]
    array = tensor.read()
    assert not array.flags.owndata
    array += 1
    assert path.read_bytes() == before
    assert not np.array_equal(array, read_checkpoint(path).tensors["classifier.weight"].read())


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_]
)
def test_container_keeps_every_bit(tmp_path: Path, dtype: Any) -> None:
    """Also of empty, scalar and transposed arrays, and as the safetensors library reads and writes them."""
    bits = np.random.default_rng(0).integers(0, 2, (3, 40), np.uint8) if dtype is np.bool_ else None
    raw = np.random.default_rng(0).integers(0, 256, 3 * 40 * np.dtype(dtype).itemsize, np.uint8)
    array = (bits if bits is not None else raw).view(dtype).reshape(3, 40)
    arrays = {"b": array, "a": array.T, "scalar": array[0, 0].reshape(()), "empty": array[:0], "ü": array[:1, :3]}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_safetensors(ours, {n: Tensor.of(a) for n, a in arrays.items()}, {"format": "pt"})
    save_file({n: np.array(a, order="C") for n, a in arrays.items()}, theirs, {"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()
    tensors, metadata = read_safetensors(ours)
    assert metadata == {"format": "pt"}
    for name, expected in arrays.items():
        actual = tensors[name].read()
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.tobytes() == np.ascontiguousarray(expected).tobytes()
        tensors[name].release()
        assert tensors[name].read().tobytes() == np.ascontiguousarray(expected).tobytes()


def test_unwritable_dtype_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"safetensors can't hold x \(complex128\)"):
        write_safetensors(tmp_path / "m.safetensors", {"x": Tensor.of(np.ones(2, np.complex128))}, {})
    assert not list(tmp_path.iterdir())


# ---- damage ------------------------------------------------------------------------------------------------------


def corrupt(path: Path, **changes: Any) -> None:
    """Change entries of a safetensors header, keeping the data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.update(changes)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def bias(dtype: str, *shape: int) -> dict[str, Any]:
    return {"classifier.bias": {"dtype": dtype, "shape": shape, "data_offsets": [0, 12]}}


GOOD = CHECKPOINTS / "mini" / "pt_safetensors" / "model.safetensors"
DAMAGE = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-10]),
    "truncated header": lambda p: p.write_bytes(p.read_bytes()[:100]),
    "empty": lambda p: p.write_bytes(b""),
    "five bytes": lambda p: p.write_bytes(b"12345"),
    "trailing bytes": lambda p: p.write_bytes(p.read_bytes() + b"x"),
    "text": lambda p: p.write_text("this is not a model" * 10),
    "huge header": lambda p: p.write_bytes((1 << 62).to_bytes(8, "little") + p.read_bytes()[8:]),
    "no JSON": lambda p: p.write_bytes((16).to_bytes(8, "little") + b"{" * 16),
    "overlap": lambda p: corrupt(p, extra={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
    "wrong shape": lambda p: corrupt(p, **bias("F32", 4)),
    "negative": lambda p: corrupt(p, **bias("F32", -3)),
    "overflow": lambda p: corrupt(p, **bias("F32", 2**40, 2**40)),
    "unknown dtype": lambda p: corrupt(p, **bias("F3", 3)),
    "metadata": lambda p: corrupt(p, __metadata__={"format": 1}),
    "LFS pointer": lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(GOOD, path)
    DAMAGE[kind](path)
    with pytest.raises(ValueError, match=r"model\.safetensors") as caught:
        read_checkpoint(path)
    assert (
        "git lfs pull" in str(caught.value) or "damaged" in str(caught.value) or "not valid JSON" in str(caught.value)
    )


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    content = GOOD.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].replace(b'"classifier.bias":', b'"classifier.weight":', 1)
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(ValueError, match=r"'classifier.weight' occurs twice"):
        read_checkpoint(tmp_path / "model.safetensors")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    shutil.copytree(CHECKPOINTS / "cls" / "pt_safetensors_sharded", tmp_path, dirs_exist_ok=True)
    return tmp_path / "model.safetensors.index.json"


def change_index(index: Path, change: Any) -> None:
    value = json.loads(index.read_text())
    change(value)
    index.write_text(json.dumps(value))


def test_missing_shard(sharded: Path) -> None:
    (sharded.parent / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"names the shard model-00002-of-00003\.safetensors, which is not beside"
    ):
        read_checkpoint(sharded)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", ".hidden.safetensors",
             "C:x.safetensors", "x\0.safetensors", "model.bin", "a..safetensors"]
)  # fmt: skip
def test_index_may_only_name_files_beside_it(sharded: Path, name: str) -> None:
    change_index(sharded, lambda value: value["weight_map"].update({"classifier.bias": name}))
    with pytest.raises(ValueError, match=r"expected a bare file name ending in .safetensors"):
        read_checkpoint(sharded)


def test_promised_tensor_is_missing(sharded: Path) -> None:
    file = "model-00001-of-00003.safetensors"
    change_index(sharded, lambda value: value["weight_map"].update({"vit.pooler.dense.bias": file}))
    with pytest.raises(ValueError, match=r"promises tensors that no shard holds: vit.pooler.dense.bias"):
        read_checkpoint(sharded)


def test_tensor_in_two_shards(sharded: Path) -> None:
    one, two = (sharded.parent / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    with safe_open(one, "np") as file:
        name = next(iter(file.keys()))
        array = file.get_tensor(name)
    tensors = {n: np.array(t.read()) for n, t in read_safetensors(two)[0].items()}
    save_file({**tensors, name: array}, two, {"format": "pt"})
    with pytest.raises(ValueError, match=r"is in model-00002-of-00003.safetensors and in another shard"):
        read_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}])
def test_index_without_a_map(sharded: Path, weight_map: Any) -> None:
    change_index(sharded, lambda value: value.update(weight_map=weight_map))
    with pytest.raises(ValueError, match=r"has no weight_map"):
        read_checkpoint(sharded)
