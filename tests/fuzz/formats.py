"""What is fuzzed: for every format its seeds, from tests/golden, and what may become of them.

A case is a pure function of (format, index): a folder's files, and the one that is read.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import msgpack
import numpy as np
from mutations import changed_json, changed_tree, damaged

from vit_core.files.keras_hdf5 import read_keras_h5, write_keras_h5
from vit_core.files.msgpack import read_msgpack, write_msgpack
from vit_core.files.npz import read_npz, write_npz
from vit_core.files.pytorch import read_pytorch_bin, write_pytorch_bin
from vit_core.files.safetensors import read_safetensors, write_safetensors
from vit_core.files.tensor import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
_WEIGHTS = (".safetensors", ".bin", ".pth", ".npz", ".h5", ".msgpack")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A folder's files by name, and the name of the one that is read, "" for the folder."""

    number: int  # which says what is done with it, too
    files: dict[str, bytes]
    target: str
    options: dict[str, Any] = field(default_factory=dict)  # of `conversion.read`


@dataclass(frozen=True)
class Format:
    """Folders that seeds are taken from, which of their files are changed, and how, beside plain damage."""

    seeds: tuple[str, ...]
    changes: tuple[Callable[[bytes, Random, tuple[bytes, ...]], bytes], ...]
    changed: Callable[[str], bool] = lambda name: name.endswith(_WEIGHTS)
    whole: bool = False  # the folder is read, not the file that was changed
    beside: str = ""  # the folder that the changed file, as `put_as`, is put into
    put_as: str = ""


def case(name: str, index: int) -> Case:
    """The case of a format with this number."""
    random, form = Random(f"{name}/{index}"), FORMATS[name]
    seed = random.choice(form.seeds)
    files, options = dict(_folder(seed)), dict(_options(seed))
    target = random.choice(sorted(file for file in files if form.changed(file)))
    others = tuple(data for other in form.seeds for file, data in _folder(other).items() if form.changed(file))
    change = random.choice((lambda data, random, others: damaged(data, random, others), *form.changes))
    try:
        files[target] = change(files[target], random, others)
    except Exception:  # what is wanted can't be written
        files[target] = damaged(files[target], random, others)
    if form.beside:
        files = {**_folder(form.beside), form.put_as: files[target]}
    return Case(index, files, "" if form.whole else target, options)


@cache
def _folder(seed: str) -> dict[str, bytes]:
    skipped = ("arguments.json", "outputs.npz")
    return {p.name: p.read_bytes() for p in sorted((GOLDEN / seed).iterdir()) if p.is_file() and p.name not in skipped}


@cache
def _options(seed: str) -> dict[str, Any]:
    """What must be said of weights that do not say it themselves."""
    path = GOLDEN / seed / "arguments.json"
    given = json.loads(path.read_text()) if path.is_file() else {}
    return {"num_attention_heads": given["num_heads"]} if isinstance(given.get("num_heads"), int) else {}


# ---- arrays: any container, rebuilt with arrays that are not what they should be ----------------------------------

_DTYPES = ("float64", "float32", "float16", "int64", "int8", "uint8", "bool")


def _changed_arrays(arrays: Arrays, random: Random) -> Arrays:
    """The arrays with one to three renamed, lost, doubled, or of another shape or dtype."""
    arrays = dict(arrays)
    for _ in range(random.choice((1, 1, 2, 3))):
        if not arrays:
            break
        name, other = random.choice(sorted(arrays)), random.choice(sorted(arrays))
        array = arrays[name]
        way = random.randrange(8)
        if way == 0:
            del arrays[name]
        elif way == 1:
            arrays[_other_name(name, random)] = arrays.pop(name)
        elif way == 2:
            arrays[_other_name(name, random)] = array
        elif way == 3:
            arrays[name] = arrays[other]
        elif way == 4:
            arrays[name] = array.astype(random.choice(_DTYPES))
        elif way == 5:
            arrays[name] = array.reshape(
                random.choice((array.shape[::-1], (-1,), (*array.shape, 1), (1, *array.shape)))
            )
        elif way == 6:
            arrays[name] = random.choice((array[..., None], array[:0], array[:1], array.ravel()[:1].reshape(())))
        else:
            arrays[name] = np.zeros([random.choice((0, 1, 2, 3, 8)) for _ in range(random.randrange(7))], array.dtype)
    return arrays


def _other_name(name: str, random: Random) -> str:
    digits = [i for i, c in enumerate(name) if c.isdigit()]
    if digits and random.random() < 0.5:
        at = random.choice(digits)
        return name[:at] + random.choice(("9", "99", "1" * 5000, "-1", "01")) + name[at + 1 :]
    return random.choice((
        f"module.{name}", "module." * 1100 + name, f"vit.{name}", f"{name}.x", f"x{name}", name.upper(), name[1:],
        "embeddings.mask_token", "classifier.weight", "pooler.dense.bias", "blocks.0.ls1.gamma", "head.bias", "é" * 90,
        "dist_token", "encoder.layer.7.output.dense.bias", "cls", "pos_embed", "decoder.0.weight", "fc_norm.weight",
    ))  # fmt: skip


def _rebuilt(read: Callable[[Path], Any], write: Callable[[Path, dict[str, Tensor]], None], suffix: str) -> Any:
    """The change of a file into one of the same kind with other arrays."""

    def change(data: bytes, random: Random, others: tuple[bytes, ...]) -> bytes:
        with TemporaryDirectory() as folder:
            path = Path(folder, f"m{suffix}")
            path.write_bytes(data)
            arrays = {name: tensor.read() for name, tensor in read(path).items()}
            tensors = {name: Tensor.of(array) for name, array in _changed_arrays(arrays, random).items()}
            write(path.with_name(f"out{suffix}"), tensors)
            return path.with_name(f"out{suffix}").read_bytes()

    return change


# ---- what one container alone can suffer --------------------------------------------------------------------------


def _header(data: bytes, random: Random, others: tuple[bytes, ...]) -> bytes:
    """The header of a safetensors file, changed as a JSON tree or in one of its entries."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.5:
        changed = changed_json(header, random)
    else:
        tree = json.loads(header)
        entry = tree[random.choice(sorted(tree))]
        key = random.choice(sorted(entry))
        entry[key] = random.choice((entry[key], None, [], [1], [0, 0], [2**40, 2], "F8_E4M3", "F64", [0, 4], "x", 5))
        tree["__metadata__"] = random.choice((tree.get("__metadata__"), None, {}, [], {"format": "tf"}, {"format": 5}))
        changed = json.dumps(tree).encode()
    return len(changed).to_bytes(8, "little") + changed + rest


def _zip(data: bytes, random: Random, others: tuple[bytes, ...]) -> bytes:
    """The entries of a zip archive, one to three of them changed, packed anew: the checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(random.choice((1, 1, 2, 3))):
        i = random.randrange(len(entries))
        name, content = entries[i]
        way = random.randrange(6)
        if way < 2:
            described = content if name.endswith(".pkl") else content[:128]
            entries[i] = name, damaged(described, random, (data,)) + content[len(described) :]
        elif way == 2:
            entries[i] = (
                random.choice((f"../{name}", f"/{name}", f"{name}x", "a/b.npy", name.upper(), "x.npy", name)),
                content,
            )
        elif way == 3:
            entries.insert(i, (name, content))
        elif way == 4:
            entries[i] = name, random.choice(entries)[1]
        else:
            del entries[i]
            if not entries:
                break
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            archive.writestr(info, content, compress_type=archive.compression)
    return packed.getvalue()


def _pickle(data: bytes, random: Random, others: tuple[bytes, ...]) -> bytes:
    """A pickle that wants more than values, put into another or in its place."""
    wanted = random.choice((
        b"cos\nsystem\n(S'touch ../outside/executed'\ntR", b"c__builtin__\nexec\n(S'1'\ntR", b"cbuiltins\ngetattr\n",
        b"\x8c\x02os\x8c\x06system\x93", b"ctorch._utils\n_rebuild_tensor_v2\n", b"(" * 3000, b"]" * 3000 + b"a" * 3000,
        pickle.dumps([[]] * 50, 2)[2:-1], b"\x8a\xff" + b"\xff" * 255, b"2" * 100,
    ))  # fmt: skip
    at = data.find(b"\x80\x02", random.randrange(len(data) // 4 or 1))
    at = max(at, 0) + 2 + random.choice((0, 0, random.randrange(200)))
    return data[:at] + wanted + data[at:]


def _msgpack(data: bytes, random: Random, others: tuple[bytes, ...]) -> bytes:
    """The tree of a Flax file, changed; arrays are extensions, whose payload may be changed, too."""
    tree = msgpack.unpackb(data, raw=False, strict_map_key=False)
    leaves: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        for key, value in node.items():
            waiting.extend([value] if isinstance(value, dict) else [])
            leaves.extend([(node, key)] if isinstance(value, msgpack.ExtType) else [])
    node, key = random.choice(leaves)
    shape, dtype, content = msgpack.unpackb(node[key].data, raw=False)
    described = random.choice((
        ([*shape, 1], dtype, content), (shape[::-1], dtype, content), (shape, "float64", content), (shape, 5, content),
        ([-1], dtype, content), ([2**40, 2**40], dtype, b""), (shape, dtype, content[:-1]), ([], dtype, content[:4]),
        (shape, dtype), ("x", dtype, content), (shape, "object", content), ([0] * 40, dtype, b""),
    ))  # fmt: skip
    code = random.choice((1, 1, 1, 2, 3, 5, -1 % 128))
    chunks = {"0": node[key], "1": node[key]}
    node[key] = random.choice((
        msgpack.ExtType(code, msgpack.packb(described)), msgpack.ExtType(1, damaged(node[key].data[:64], random)),
        {"__msgpack_chunked_array__": True, "shape": {"0": shape[0] * 2}, "chunks": chunks}, {}, 5, None, [node[key]],
        {"__msgpack_chunked_array__": True, "shape": {"0": 2**40}, "chunks": {"1": 5}}, {"": {"": {}}},
    ))  # fmt: skip
    if random.random() < 0.1:
        return b"\x81\xa0" * random.randrange(3000) + b"\x80"
    return bytes(msgpack.packb(changed_tree(tree, random) if random.random() < 0.3 else tree, use_bin_type=True))


def _hdf5(data: bytes, random: Random, others: tuple[bytes, ...]) -> bytes:
    """An HDF5 file in which h5py has replaced a dataset, a group or an attribute by something else."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        items: list[str] = []
        file.visit(items.append)
        for _ in range(random.choice((1, 1, 2))):
            item = random.choice(items)
            if item not in file:
                continue
            node = file[item]
            if random.random() < 0.4:
                _change_attribute(random.choice((file, node)), random)
            elif isinstance(node, h5py.Dataset):
                array = node[()]
                del file[item]
                _put(file, item, array, random)
            else:
                _move(file, item, random)
    return buffer.getvalue()


def _change_attribute(node: Any, random: Random) -> None:
    names = sorted(node.attrs) or ["x"]
    name = random.choice((*names, "layer_names", "weight_names", "dtype", "name"))
    value = random.choice((
        5, "x", b"\xff", np.zeros(3), ["a", "b"], h5py.Empty("f4"), np.array(["a/b:0", "../x"], "S9"), np.zeros(0),
        "bfloat16",
    ))  # fmt: skip
    if name in node.attrs and random.random() < 0.3:
        del node.attrs[name]
    else:
        node.attrs[name] = value


def _put(file: h5py.File, item: str, array: np.ndarray, random: Random) -> None:
    chunks = {"chunks": True} if array.ndim and array.size else {}
    way = random.randrange(9)
    if way < 3:
        kind = random.choice((">f4", "f8", "f2", "i1", "u8", "?", "V2", "S3", "c8", h5py.enum_dtype({"A": 1}, "i4")))
        kept = np.zeros(array.shape, "V2") if kind == "V2" else np.zeros(array.shape, kind) if kind == "S3" else array
        file.create_dataset(item, data=kept, dtype=kind)
    elif way == 3 and chunks:
        file.create_dataset(item, data=array, **chunks, compression=random.choice(("gzip", "lzf", None)), shuffle=True)
    elif way == 4 and chunks:
        file.create_dataset(item, shape=array.shape, dtype=array.dtype, maxshape=[None] * array.ndim, **chunks)
    elif way == 5:
        file.create_dataset(item, shape=(random.choice((0, 10, 2**30, 2**50)), 8), dtype="f4", chunks=(1, 8))
    elif way == 6:
        file.create_dataset(item, data=random.choice((h5py.Empty("f4"), "text", ["a", "bc"], [file.ref])), dtype=None)
    elif way == 7:
        file.create_dataset(item, data=np.zeros([random.choice((1, 2, 8)) for _ in range(random.randrange(6))]))
    else:
        file[item] = random.choice((h5py.SoftLink("/"), h5py.ExternalLink("../outside/other.h5", "x"), file))


def _move(file: h5py.File, item: str, random: Random) -> None:
    way = random.randrange(4)
    if way == 0:
        del file[item]
    elif way == 1:
        file.move(item, f"{item}{random.choice(('x', '_9', '_1', '_01'))}")
    elif way == 2:
        file[f"{item}x"] = file[item]
    else:
        del file[item]
        file[item] = random.choice((h5py.SoftLink("/"), h5py.ExternalLink("../outside/other.h5", "x"), 5))


def _json(data: bytes, random: Random, others: tuple[bytes, ...]) -> bytes:
    return changed_json(data, random)


def _named(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


def _mini(kinds: Iterator[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"ckpt/mini/{kind}" for kind in kinds)


def _families(*names: str) -> tuple[str, ...]:
    return tuple(f"families/{name}" for name in names)


_MEMBERS = tuple(
    f"ckpt/{name}/pt_safetensors"
    for name in (
        "beit_absolute", "beit_cls", "beit_mim", "deit_teacher", "dinov2_cls", "dinov2_reg_swiglu", "ijepa_cls",
        "mae_pretraining", "msn_cls",
    )
)  # fmt: skip
_TIMM = _families("timm_beit", "timm_beit_token", "timm_dinov2", "timm_dinov2_gated", "timm_dinov2_registers")
_BINS = (
    *_mini(("pt_bin_fp16", "pt_bin_bf16")),
    *_families("torchvision", "timm_training", "deit3", "deit_distilled", "dino_backbone", "mae_args"),
    *_families("facebook_dinov2", "facebook_dinov2_gated", "facebook_dinov2_registers", "facebook_dinov2_training"),
    *_families("microsoft_beit", "microsoft_beit_token", "microsoft_beit_tokens"),
    *_TIMM,
)
_SAFE = (
    *_mini(("pt_safetensors", "tf_safetensors", "flax_safetensors", "pt_safetensors_bf16")),
    *_families("timm", "timm_layer_scale", "timm_no_embed_class", "timm_reg_tokens", "timm_distilled", "timm_swiglu"),
    *_MEMBERS,
)
_DINOV2_PRESETS = _families("keras_hub_dinov2", "keras_hub_dinov2_no_mask", "keras_hub_dinov2_registers")
_KERAS = (
    *_families("vit_tf", "vit_tf_trained", "keras_hub", "keras_hub_bfloat16", "keras_hub_pre_logits"),
    *_DINOV2_PRESETS,
)
_PRESETS = (
    *_families("keras_hub_preset", "keras_hub_backbone_preset", "keras_hub_pooled", "keras_hub_no_class_token"),
    *_DINOV2_PRESETS,
)
_NPZ = _families("google_linen", "google_pre_logits", "big_vision_old", "big_vision_scan", "big_vision_bfloat16")
_SHARDED = _mini(("pt_bin_sharded", "tf_h5_sharded", "flax_msgpack_sharded", "tf_safetensors_sharded"))

FORMATS = {
    "safetensors": Format(
        _SAFE,
        (_header, _header, _rebuilt(lambda p: read_safetensors(p)[0], lambda p, t: write_safetensors(p, t, {}), ".st")),
    ),
    "pytorch_zip": Format(_BINS, (_zip, _zip, _pickle, _rebuilt(read_pytorch_bin, write_pytorch_bin, ".bin"))),
    "pytorch_legacy": Format(_mini(("pt_bin_legacy",)), (_pickle,)),
    "msgpack": Format(
        (*_mini(("flax_msgpack_bf16",)), "ckpt/tiny_12_layers/flax_msgpack"),
        (_msgpack, _msgpack, _rebuilt(read_msgpack, write_msgpack, ".msgpack")),
    ),
    "npz": Format(_NPZ, (_zip, _zip, _rebuilt(read_npz, write_npz, ".npz"))),
    "tf_h5": Format(("ckpt/cls/tf_h5", "ckpt/base_nopool/tf_h5"), (_hdf5,)),
    "keras_h5": Format(_KERAS, (_hdf5, _rebuilt(read_keras_h5, write_keras_h5, ".weights.h5"))),
    "preset": Format(_PRESETS, (_json, _json), lambda name: name.endswith((".json", ".h5")), whole=True),
    "index": Format(_SHARDED, (_json, _json, _json), lambda name: name.endswith(".json"), whole=True),
    "shard": Format(_SHARDED, (), whole=True),
    "config": Format(
        _mini(("pt_safetensors",)) + _families("timm", "timm_gelu_tanh") + _MEMBERS + _TIMM,
        (_json, _json, _json),
        _named("config.json"),
        True,
    ),
    "preprocessor": Format(
        ("processor/configs",),
        (_json, _json, _json),
        lambda name: not name.startswith("_"),
        True,
        "ckpt/mini/pt_safetensors",
        "preprocessor_config.json",
    ),
}
