"""TensorFlow's HDF5 files, read and written without TensorFlow: as transformers has them, lazily, and damage named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from command import PEAK
from conftest import CHECKPOINTS
from test_models import TINY

from vit_core.app.cli import main
from vit_core.config import AutoConfig, ViTConfig
from vit_core.family import PARTS, family_of
from vit_core.files.hdf5 import read_h5, write_h5
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import TF_H5, find_weights, read_checkpoint, readable_names, write_checkpoint
from vit_core.params import Spec, specs

FOLDERS = sorted(CHECKPOINTS.glob("*/tf_h5*"))
FILES = sorted(CHECKPOINTS.glob("*/tf_h5*/*.h5"))
CLS = CHECKPOINTS / "cls" / "tf_h5"
OUTER = "tf_vi_t_for_image_classification"


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (t.dtype.name, t.read().shape, t.read().tobytes()) for name, t in tensors.items()}


def table_of(tensors: dict[str, Tensor], config: ViTConfig) -> dict[str, Spec]:
    return {name: spec for name, spec in specs(config, family_of(config).all_parts).items() if name in tensors}


# ---- golden files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: "/".join(p.parts[-2:]))
def test_golden_files_hold_what_the_pytorch_files_hold(folder: Path) -> None:
    ours, theirs = (read_checkpoint(find_weights(f)) for f in (folder, folder.with_name("pt_safetensors")))
    assert (ours.format, ours.unknown) == ("tf", {})
    assert bits(ours.tensors) == bits(theirs.tensors)


def structure(path: Path) -> dict[str, Any]:
    """Everything about a file but where its parts lie: of each attribute its value and type, of each array its own."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        for key in item.attrs:
            kind = item.attrs.get_id(key).get_type()
            text = (kind.is_variable_str(), kind.get_cset()) if isinstance(kind, h5py.h5t.TypeStringID) else None
            value = item.attrs[key]
            found[f"{name}@{key}"] = (type(kind), text, value if isinstance(value, str) else value.tolist())
        found[f"{name}@"] = list(item.attrs)
        if isinstance(item, h5py.Dataset):
            layout = item.id.get_create_plist().get_layout()
            found[name] = (item.dtype.str, item.shape, item.maxshape, layout, item[()].tobytes())
        else:
            found[name] = list(item)

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(p.parts[-3:]))
def test_written_files_are_built_as_transformers_builds_them(tmp_path: Path, path: Path) -> None:
    with h5py.File(path) as file:
        shard = "vit/embeddings/cls_token:0" in file or "backend" not in file.attrs
        trunk = next((name for name in ("vit", "deit") if name in file), "")
        outer = OUTER if shard else file[trunk].attrs["weight_names"][0].partition("/")[0]
    write_h5(tmp_path / "m.h5", {f"{outer}/{name}": t for name, t in read_h5(path).items()}, shard=shard)
    assert structure(tmp_path / "m.h5") == structure(path)


@pytest.mark.parametrize("model", ["cls", "base", "deit", "deit_cls", "deit_teacher"])
def test_a_model_is_written_as_transformers_writes_it(tmp_path: Path, model: str) -> None:
    """From PyTorch's file: names, their order and the layout of every array."""
    folder = CHECKPOINTS / model / "pt_safetensors"
    config, tensors = AutoConfig.from_pretrained(folder), read_checkpoint(find_weights(folder)).tensors
    architecture = (config.architectures or [""])[0]
    written = write_checkpoint(tmp_path, tensors, table_of(tensors, config), architecture, format="tf", container=TF_H5)
    assert written == ["tf_model.h5"]
    assert structure(tmp_path / "tf_model.h5") == structure(CHECKPOINTS / model / "tf_h5" / "tf_model.h5")


def test_shards_and_their_index(tmp_path: Path) -> None:
    folder = CHECKPOINTS / "mini" / "tf_h5_sharded"
    config, tensors = ViTConfig.from_pretrained(folder), read_checkpoint(find_weights(folder)).tensors
    written = write_checkpoint(
        tmp_path, tensors, table_of(tensors, config), "ViTForImageClassification",
        format="tf", container=TF_H5, max_shard_size=9_000,
    )  # fmt: skip
    count = len(written) - 1
    assert written == [*(f"tf_model-{i:05d}-of-{count:05d}.h5" for i in range(1, count + 1)), "tf_model.h5.index.json"]
    ours, theirs = (json.loads((p / "tf_model.h5.index.json").read_text()) for p in (tmp_path, folder))
    assert ours["weight_map"].keys() == theirs["weight_map"].keys()
    assert ours["metadata"] == theirs["metadata"]
    again = read_checkpoint(find_weights(tmp_path))
    assert again.path.name == "tf_model.h5.index.json"
    assert bits(again.tensors) == bits(tensors)


# ---- what is written is read back --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("max_shard_size", ["5GB", 5_000])
def test_every_bit_is_kept(tmp_path: Path, dtype: str, max_shard_size: Any) -> None:
    """bfloat16 becomes float32, which the total of the index counts."""
    source = read_checkpoint(find_weights(CHECKPOINTS / "mini" / "pt_safetensors"))
    config = ViTConfig.from_pretrained(source.path.parent)
    wanted = {n: t.astype(getattr(ml_dtypes, dtype, dtype)) for n, t in source.tensors.items()}
    written = write_checkpoint(
        tmp_path, wanted, table_of(wanted, config), "ViTForImageClassification",
        format="tf", container=TF_H5, max_shard_size=max_shard_size,
    )  # fmt: skip
    assert (len(written) > 1) == (max_shard_size != "5GB")
    stored = {n: t.astype("float32") if dtype == "bfloat16" else t for n, t in wanted.items()}
    assert bits(read_checkpoint(find_weights(tmp_path)).tensors) == bits(stored)
    if len(written) > 1:
        metadata = json.loads((tmp_path / written[-1]).read_text())["metadata"]
        assert metadata == {"total_size": sum(t.nbytes for t in stored.values())}


@pytest.mark.parametrize("shard", [False, True])
def test_more_names_than_an_attribute_holds(tmp_path: Path, shard: bool) -> None:
    names = [f"m/vit/{'long' * 30}{i}/kernel:0" for i in range(2000)]
    arrays = {name: np.full((2, 3), i, np.float32) for i, name in enumerate(names)}
    write_h5(tmp_path / "m.h5", {name: Tensor.of(a) for name, a in arrays.items()}, shard=shard)
    with h5py.File(tmp_path / "m.h5") as file:
        group, attribute = (file, "layer_names") if shard else (file["vit"], "weight_names")
        assert attribute not in group.attrs
        parts = [group.attrs[f"{attribute}{i}"] for i in range(sum(key.startswith(attribute) for key in group.attrs))]
        assert len(parts) > 1
        assert all(len(part) * max(map(len, part)) <= 64512 for part in parts)
        assert [name for part in parts for name in part] == (sorted(n[2:] for n in names) if shard else names)
    again = read_h5(tmp_path / "m.h5")
    assert {n: t.read().tobytes() for n, t in again.items()} == {n[2:]: a.tobytes() for n, a in arrays.items()}


def test_a_deep_model(tmp_path: Path) -> None:
    config = ViTConfig(**{**TINY, "num_hidden_layers": 60})
    table = specs(config, PARTS["ViTForImageClassification"])
    tensors = {n: Tensor.of(np.full(s.shape, i, np.float32)) for i, (n, s) in enumerate(table.items())}
    write_checkpoint(tmp_path, tensors, table, "ViTForImageClassification", format="tf", container=TF_H5)
    with h5py.File(tmp_path / "tf_model.h5") as file:
        assert {"weight_names0", "weight_names1"} <= set(file["vit"].attrs)
        assert list(file["classifier"].attrs) == ["weight_names"]
    assert bits(read_checkpoint(find_weights(tmp_path)).tensors) == bits(tensors)


def test_scalars_empty_and_transposed_arrays(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(3, 4)
    arrays = {"m/v/t": array.T, "m/v/s": array[0, 1].reshape(()), "m/v/e": array[:0], "m/v/i": np.arange(3)}
    write_h5(tmp_path / "m.h5", {n: Tensor.of(a) for n, a in arrays.items()})
    for name, tensor in read_h5(tmp_path / "m.h5").items():
        np.testing.assert_array_equal(tensor.read(), arrays[f"m/{name}"])
        assert (tensor.shape, tensor.dtype) == (tensor.read().shape, tensor.read().dtype)
        assert tensor.source == name


def test_unwritable_dtype_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tf_model\.h5 can't hold m/v/x \(complex128\)"):
        write_h5(tmp_path / "m.h5", {"m/v/x": Tensor.of(np.ones(2, np.complex128))})
    assert not list(tmp_path.iterdir())


# ---- files of other writers --------------------------------------------------------------------------------------


def weights_file(path: Path, add: Callable[[h5py.Group], Any] | None = None, **attributes: Any) -> Path:
    """The least a reader needs: one layer, one weight, which `add` creates, or an array of ones."""
    name = attributes.pop("name", "m/vit/layernorm/gamma:0")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = attributes.pop("layer_names", [b"vit"])
        group = file.create_group("vit")
        group.attrs.update({"weight_names": [name.encode()], **attributes})
        if add is None:
            group[name] = np.ones(3, np.float32)
        else:
            add(group)
    return path


def test_bytes_big_endians_and_compressed_chunks(tmp_path: Path) -> None:
    """Fixed-length names are those of old files; HF's are not chunked, but h5repack may have been at work."""
    wanted = np.linspace(0, 1, 300).reshape(30, 10)
    for dtype in ("<f4", ">f4", ">f8", "<f2"):
        name = "m/vit/layernorm/gamma:0"
        path = weights_file(
            tmp_path / f"{np.dtype(dtype).name}-{dtype[0] == '>'}.h5",
            lambda g, d=dtype, n=name: g.create_dataset(n, data=wanted.astype(d), chunks=(7, 3), compression="gzip"),
            weight_names=np.array([name.encode()]),
        )
        (tensor,) = read_h5(path).values()
        assert tensor.read().dtype == tensor.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(tensor.read(), wanted.astype(dtype))


def test_weights_that_no_layer_has(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "m.h5")
    with h5py.File(path, "a") as file:
        group = file.create_group("top_level_model_weights")
        group.attrs["weight_names"] = [b"temperature:0"]
        group["temperature:0"] = np.float32(3)
    assert list(read_checkpoint(path).unknown) == ["temperature:0"]


def test_the_file_stays_readable_after_it_was_replaced(tmp_path: Path) -> None:
    """A model is saved to the folder that it is still read from."""
    path = weights_file(tmp_path / "m.h5")
    tensor = read_h5(path)["vit/layernorm/gamma:0"]
    write_h5(path, {"m/vit/layernorm/gamma:0": Tensor.of(np.zeros(3, np.float32))})
    np.testing.assert_array_equal(tensor.read(), np.ones(3))
    np.testing.assert_array_equal(read_h5(path)["vit/layernorm/gamma:0"].read(), np.zeros(3))


# ---- damage ------------------------------------------------------------------------------------------------------

NAME = "m/vit/layernorm/gamma:0"
GOOD = (CLS / "tf_model.h5").read_bytes()


def virtual(group: h5py.Group, secret: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (3,))
    group.create_virtual_dataset(NAME, layout)


def opaque(group: h5py.Group) -> None:
    group.create_dataset(NAME, data=np.ones(3, ml_dtypes.bfloat16).view("V2"))


def twice(group: h5py.Group) -> None:
    for name in (NAME, f"other{NAME[1:]}"):
        group[name] = np.ones(3, np.float32)


DAMAGE: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "truncated": ("truncated", lambda p, _: p.write_bytes(GOOD[:-100])),
    "half": ("truncated", lambda p, _: p.write_bytes(GOOD[: len(GOOD) // 2])),
    "empty": ("signature not found", lambda p, _: p.write_bytes(b"")),
    "text": ("signature not found", lambda p, _: p.write_text("this is not a model" * 100)),
    "zeros inside": ("", lambda p, _: p.write_bytes(GOOD[:200] + bytes(4000) + GOOD[4200:])),
    "no layers": ("no attribute layer_names", lambda p, _: h5py.File(p, "w").close()),
    "no names": ("no attribute weight_names", lambda p, _: weights_file(p, layer_names=[b"vit/m"])),
    "numbers for names": ("does not hold names", lambda p, _: weights_file(p, weight_names=[1, 2])),
    "names in no encoding": ("", lambda p, _: weights_file(p, weight_names=np.array([b"\xff\xfe"]))),
    "missing weight": ("is not there", lambda p, _: weights_file(p, lambda g: None)),
    "missing layer": ("is not there", lambda p, _: weights_file(p, layer_names=[b"vit", b"classifier"])),
    "below a weight": ("is not there", lambda p, _: weights_file(p, weight_names=[NAME.encode() + b"/x"])),
    "a group": ("is no array", lambda p, _: weights_file(p, lambda g: g.create_group(NAME))),
    "absolute": ("is no name", lambda p, _: weights_file(p, weight_names=[b"/vit/" + NAME.encode()])),
    "upwards": ("is no name", lambda p, _: weights_file(p, weight_names=[b"m/../" + NAME.encode()])),
    "soft link": ("is a link", lambda p, _: weights_file(p, lambda g: g.update({NAME: h5py.SoftLink("/vit")}))),
    "external link": ("is a link", lambda p, s: weights_file(p, lambda g: g.update({NAME: h5py.ExternalLink(s, "x")}))),
    "external group": ("is a link", lambda p, s: weights_file(p, lambda g: g.update({"m": h5py.ExternalLink(s, "m")}))),
    "external data": (
        "in another file",
        lambda p, s: weights_file(p, lambda g: g.create_dataset(NAME, (3,), "f4", external=[(str(s), 0, 12)])),
    ),
    "virtual": ("in another file", lambda p, s: weights_file(p, lambda g: virtual(g, s))),
    "opaque": ("has dtype", lambda p, _: weights_file(p, opaque)),
    "texts": ("has dtype", lambda p, _: weights_file(p, lambda g: g.create_dataset(NAME, data=["a", "b"]))),
    "complex": ("has dtype", lambda p, _: weights_file(p, lambda g: g.create_dataset(NAME, data=np.ones(2, "c8")))),
    "no shape": ("shape None", lambda p, _: weights_file(p, lambda g: g.create_dataset(NAME, data=h5py.Empty("f4")))),
    "no data": ("not all there", lambda p, _: weights_file(p, lambda g: g.create_dataset(NAME, (2**40,), "f4"))),
    "no chunks": (
        "not all there",
        lambda p, _: weights_file(p, lambda g: g.create_dataset(NAME, (2**40,), "f4", chunks=(1024,))),
    ),
    "twice": (
        "occurs twice",
        lambda p, _: weights_file(p, twice, weight_names=[NAME, f"other{NAME[1:]}"]),
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_and_treacherous_files_are_named(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = file[NAME] = np.ones(3, np.float32)
    words, damage = DAMAGE[kind]
    damage(tmp_path / "tf_model.h5", secret)
    with pytest.raises(ValueError, match=rf"tf_model\.h5 is damaged or not a tf_model\.h5 \(.*{words}"):
        read_checkpoint(tmp_path / "tf_model.h5")


def test_data_that_lies_beyond_the_end(tmp_path: Path) -> None:
    """Noticed when the file is opened, not when the weight is used."""
    path = weights_file(tmp_path / "tf_model.h5")
    with h5py.File(path) as file:
        offset = file["vit"][NAME].id.get_offset()
    content = path.read_bytes()
    assert content.count(offset.to_bytes(8, "little")) == 1
    path.write_bytes(content.replace(offset.to_bytes(8, "little"), (len(content) - 8).to_bytes(8, "little")))
    with pytest.raises(ValueError, match=r"tf_model\.h5 is damaged or not a tf_model\.h5 \("):
        read_h5(path)


def test_a_chunk_that_does_not_unpack(tmp_path: Path) -> None:
    path = weights_file(
        tmp_path / "tf_model.h5",
        lambda g: g.create_dataset(NAME, data=np.arange(3000.0), chunks=(3000,), compression="gzip", fletcher32=True),
    )
    with h5py.File(path) as file:
        at = file["vit"][NAME].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[at + 40] ^= 0xFF
    path.write_bytes(content)
    tensor = read_h5(path)["vit/layernorm/gamma:0"]
    with pytest.raises(ValueError, match=r"tf_model\.h5 is damaged in 'vit/layernorm/gamma:0'"):
        tensor.read()


def test_lfs_pointer_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        read_checkpoint(tmp_path / "tf_model.h5")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_checkpoint(tmp_path / "nowhere.h5")


@pytest.mark.parametrize("name", ["../tf_model-00001-of-00004.h5", "model.safetensors", "/etc/passwd"])
def test_index_may_only_name_h5_files_beside_it(tmp_path: Path, name: str) -> None:
    shutil.copytree(CHECKPOINTS / "mini" / "tf_h5_sharded", tmp_path, dirs_exist_ok=True)
    index = tmp_path / "tf_model.h5.index.json"
    value = json.loads(index.read_text())
    value["weight_map"][f"{OUTER}/classifier/bias:0"] = name
    index.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"expected a bare file name ending in \.h5"):
        read_checkpoint(index)


# ---- models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cls/tf_h5", "mini/tf_h5_sharded"])
def test_every_backend_loads_it(backend: Any, name: str) -> None:
    load = backend.package.ViTForImageClassification.from_pretrained
    folder = CHECKPOINTS / name
    model, report = load(folder, output_loading_info=True)
    expected = backend.load("ViTForImageClassification", folder.with_name("pt_safetensors"))
    assert report.format == "tf"
    assert not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
    ours, theirs = backend.parameters(model), backend.parameters(expected)
    assert {n: a.tobytes() for n, a in ours.items()} == {n: a.tobytes() for n, a in theirs.items()}


def test_safetensors_win_unless_another_format_is_named(tmp_path: Path, backend: Any) -> None:
    for name in ("pt_safetensors", "tf_h5", "flax_msgpack"):
        shutil.copytree(CHECKPOINTS / "cls" / name, tmp_path, dirs_exist_ok=True)
    load = backend.package.ViTForImageClassification.from_pretrained
    asked: list[dict[str, bool]] = [{}, {"from_pt": True}, {"from_tf": True}, {"from_flax": True}]
    assert [load(tmp_path, output_loading_info=True, **o)[1].format for o in asked] == ["pt", "pt", "tf", "flax"]
    (tmp_path / "model.safetensors").unlink()
    assert [load(tmp_path, output_loading_info=True, **o)[1].format for o in asked[::2]] == ["tf", "tf"]
    with pytest.raises(ValueError, match=r"from_pt=True was given, but .*tf_model\.h5 has the format 'tf'"):
        load(tmp_path, from_pt=True)


def test_order_of_names() -> None:
    by_default = readable_names()
    assert [name for name in by_default if "index" not in name] == [
        "model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack",
    ]  # fmt: skip
    assert readable_names(formats=["tf"])[:3] == ("tf_model.h5", "tf_model.h5.index.json", "model.safetensors")
    assert readable_names("ema") == (
        "model.ema.safetensors", "model.safetensors.index.ema.json",
        "pytorch_model.ema.bin", "pytorch_model.bin.index.ema.json",
    )  # fmt: skip


@pytest.fixture
def keras_model() -> Any:
    vit_tf = pytest.importorskip("vit_tf")
    return vit_tf.ViTForImageClassification(ViTConfig(**TINY), seed=0)


@pytest.mark.parametrize("max_shard_size", ["5GB", 5_000])
def test_saving_and_loading_is_the_identity(tmp_path: Path, keras_model: Any, max_shard_size: Any) -> None:
    keras_model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size=max_shard_size)
    again, report = type(keras_model).from_pretrained(tmp_path, from_tf=True, output_loading_info=True)
    assert Path(report.path).name == ("tf_model.h5" if max_shard_size == "5GB" else "tf_model.h5.index.json")
    assert bits(again.to_tensors()) == bits(keras_model.to_tensors())


def test_the_configuration_says_what_is_stored(tmp_path: Path, keras_model: Any) -> None:
    for asked, stored in (("bfloat16", "float32"), ("float16", "float16")):
        keras_model.save_pretrained(tmp_path, safe_serialization=False, dtype=asked)
        assert list(read_checkpoint(find_weights(tmp_path)).dtypes) == [stored]
        assert ViTConfig.from_pretrained(tmp_path).dtype == stored


def test_files_of_an_earlier_save_do_not_linger(tmp_path: Path, keras_model: Any) -> None:
    others = {"README.md", "config.json", "tf_model_notes.txt", "model.ema.safetensors"}
    for name in (*others, "flax_model.msgpack", "pytorch_model.bin"):  # the last two hold weights of another save
        (tmp_path / name).write_text("{}")
    for safe, size in ((True, "5GB"), (False, "5GB"), (True, 5_000), (False, 5_000), (False, "5GB"), (True, "5GB")):
        keras_model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=size)
        names = {p.name for p in tmp_path.iterdir()} - others
        single = "model.safetensors" if safe else "tf_model.h5"
        index = f"{single}.index.json"
        assert (single in names, index in names) == (size == "5GB", size != "5GB")
        assert all(name == index or name.endswith(Path(single).suffix) for name in names)
        assert find_weights(tmp_path).name in (single, index)
        assert others <= {p.name for p in tmp_path.iterdir()}


def test_another_frameworks_save_takes_the_place_of_h5_files(tmp_path: Path, backend: Any) -> None:
    (tmp_path / "tf_model.h5").write_text("")
    backend.build("ViTModel", ViTConfig(**TINY)).save_pretrained(tmp_path)
    assert not (tmp_path / "tf_model.h5").exists()


OWN_FILES = {"torch": "pytorch_model.bin", "tf": "tf_model.h5", "flax": "flax_model.msgpack"}


@pytest.mark.parametrize("max_shard_size", ["5GB", 5_000])
def test_each_framework_writes_and_reads_its_own_file(tmp_path: Path, backend: Any, max_shard_size: Any) -> None:
    model = backend.build("ViTModel", ViTConfig(**TINY))
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size=max_shard_size)
    assert not list(tmp_path.glob("*.safetensors*"))
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    index = ".index.json" if max_shard_size != "5GB" else ""
    assert Path(report.path).name == OWN_FILES[backend.name] + index
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    assert bits(again.to_tensors()) == bits(model.to_tensors())


def test_variants_of_own_files(tmp_path: Path, backend: Any) -> None:
    model = backend.build("ViTModel", ViTConfig(**TINY))
    options = {"safe_serialization": False, "variant": "ema"}
    if backend.name == "torch":
        model.save_pretrained(tmp_path / "new", **options)
        assert bits(type(model).from_pretrained(tmp_path / "new", variant="ema").to_tensors()) == bits(
            model.to_tensors()
        )
        return
    with pytest.raises(ValueError, match=r"has no variants: leave out variant='ema'"):
        model.save_pretrained(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


# ---- without a framework, in little memory -----------------------------------------------------------------------


def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    for path in (CLS, CLS / "tf_model.h5", CHECKPOINTS / "mini" / "tf_h5_sharded"):
        assert main(["inspect", str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["format"], found["dtypes"].keys(), found["missing"]) == ("tf", {"float32"}, [])
        files = [path] if path.is_file() else list(path.glob("*.h5"))
        assert found["bytes_on_disk"] == sum(p.stat().st_size for p in files)


NO_FRAMEWORK = """
import sys
from pathlib import Path
import vit_core.formats.huggingface, vit_core.pretrained
assert "h5py" not in sys.modules
found = vit_core.formats.huggingface.read_checkpoint(Path(sys.argv[1]))
assert sum(tensor.read().size for tensor in found.tensors.values()) > 0
print(sorted({"torch", "tensorflow", "jax", "flax", "keras", "tf_keras"} & set(sys.modules)))
"""


def test_reading_loads_no_framework() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_FRAMEWORK, str(CLS / "tf_model.h5")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from vit_core.files.hdf5 import read_h5, write_h5
from vit_core.files.tensor import Tensor

def save(count):
    lazy = Tensor((1 << 21,), np.dtype("float32"), lambda: np.ones(1 << 21, np.float32))
    write_h5(Path(sys.argv[1]), {f"m/vit/{i}/kernel:0": lazy for i in range(count)}, shard=sys.argv[2] == "shard")
    return sum(float(tensor.read()[-1]) for tensor in read_h5(Path(sys.argv[1])).values())

assert save(2) == 2
before = peak()
assert save(24) == 24
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("kind", ["whole", "shard"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, kind: str) -> None:
    """24 arrays of 8 MiB are written and read in no more than what two of them need, and two beside."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + MEMORY, str(tmp_path / "m.h5"), kind], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 16384  # KiB: two of them


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from vit_core.files.hdf5 import write_h5
from vit_core.files.tensor import Tensor
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write_h5(Path(sys.argv[1]), {f"m/vit/{i}/kernel:0": Tensor.of(np.ones(20_000, np.float32)) for i in range(20)})
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
@pytest.mark.parametrize("limit", [100, 3_000, 50_000, 1_610_000])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, limit: int) -> None:
    """Whether it is full at the first byte, in the middle or when the file is closed."""
    (tmp_path / "tf_model.h5").write_bytes(b"old")
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path / "tf_model.h5"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "OSError\n"
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
