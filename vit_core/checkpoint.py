"""Weight files on disk <-> lazily read tensors under their canonical names.

Reads and writes the safetensors files, whole or sharded, of Hugging Face's PyTorch, TensorFlow and Flax ViTs and the
HDF5 files of its TensorFlow ViTs; reads the msgpack files of its Flax ViTs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vit_core.files import check_shard_names, finish_save, read_json_object, write_atomically
from vit_core.msgpack_file import read_msgpack
from vit_core.params import DIALECTS, TORCH_V5, Parsed, Spec, native_name, parse_name
from vit_core.safetensors_file import Tensor, read_safetensors, write_safetensors

# The component that TensorFlow's full variable names begin with; only its shard indices spell it out.
_TF_OUTER_NAMES = {
    "ViTModel": "tf_vi_t_model",
    "ViTForImageClassification": "tf_vi_t_for_image_classification",
    "ViTForMaskedImageModeling": "tf_vi_t_for_masked_image_modeling",
}


def _safetensors(path: Path) -> tuple[dict[str, Tensor], str]:
    tensors, metadata = read_safetensors(path)
    return tensors, metadata.get("format", "pt")


def _h5(path: Path) -> tuple[dict[str, Tensor], str]:
    from vit_core.h5_file import read_h5  # h5py is loaded when it is needed

    return read_h5(path), "tf"


def _msgpack(path: Path) -> tuple[dict[str, Tensor], str]:
    return read_msgpack(path), "flax"


@dataclass(frozen=True)
class _Container:
    """A kind of weights file."""

    stem: str
    format: str  # the one it is the own file of
    read: Callable[[Path], tuple[dict[str, Tensor], str]]  # the tensors by their names in it, and the claimed format


_CONTAINERS = {  # by suffix, the one that wins first
    ".safetensors": _Container("model", "pt", _safetensors),
    ".h5": _Container("tf_model", "tf", _h5),
    ".msgpack": _Container("flax_model", "flax", _msgpack),
}


def weight_names(variant: str | None = None, suffix: str = ".safetensors") -> tuple[str, str]:
    """The names of a weights file and of the index of a sharded one."""
    stem, tag = _CONTAINERS[suffix].stem, f".{variant}" if variant else ""
    return f"{stem}{tag}{suffix}", f"{stem}{suffix}.index{tag}.json"


def readable_names(variant: str | None = None, formats: Collection[str] = ()) -> tuple[str, ...]:
    """The names a weights file may have, the one that wins first: the own files of these formats before others.

    Only safetensors files have variants.
    """
    suffixes = [".safetensors"] if variant else sorted(_CONTAINERS, key=lambda s: _CONTAINERS[s].format not in formats)
    return tuple(name for suffix in suffixes for name in weight_names(variant, suffix))


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: nothing of its tensors is read yet, and they are in PyTorch's layout."""

    path: Path  # the weights file, or the index of its shards
    format: str  # pt, tf or flax
    tensors: dict[str, Tensor]  # by canonical name
    unknown: dict[str, Tensor]  # by their names in the file: no parameters of a ViT

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of elements stored in each dtype, the most frequent first."""
        found: Counter[str] = Counter()
        for tensor in (*self.tensors.values(), *self.unknown.values()):
            found[tensor.dtype.name] += tensor.nbytes // tensor.dtype.itemsize
        return dict(found.most_common())


def find_weights(folder: Path, variant: str | None = None) -> Path:
    """The weights file, or index, of a folder. Raises FileNotFoundError that lists what is there."""
    finish_save(folder)
    names = readable_names(variant)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) if folder.is_dir() else ""
    raise FileNotFoundError(
        f"No weights in {folder}: expected {' or '.join(names)}; "
        + (f"the folder holds {there}." if there else "the folder is empty or missing.")
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a weights file or an index. Raises OSError for a missing file, ValueError for a damaged one."""
    if path.suffix == ".json":
        found, claimed, weight_map = _read_shards(path)
    else:
        (found, claimed), weight_map = _container(path.suffix).read(path), None
    fmt, parsed = _recognise(found, claimed)
    tensors: dict[str, Tensor] = {}
    for native, known in parsed.items():
        if known.name in tensors:
            both = f"{tensors[known.name].source!r} and {native!r}"
            raise ValueError(f"{path} holds {known.name} twice, as {both}: remove one of them.")
        tensors[known.name] = found[native].transposed(known.axes)
    if weight_map is not None:
        _check_complete(path, weight_map, found, tensors, fmt)
    return Checkpoint(path, fmt, tensors, {name: t for name, t in found.items() if name not in parsed})


def _container(suffix: str) -> _Container:
    return _CONTAINERS.get(suffix, _CONTAINERS[".safetensors"])


def _read_shards(index: Path) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from tensor names to file names: it is not an index of shards.")
    shards = set(weight_map.values())
    suffix = next((suffix for suffix in _CONTAINERS if f"{suffix}." in index.name), ".safetensors")
    check_shard_names(shards, suffix, str(index))
    found: dict[str, Tensor] = {}
    claimed = "pt"
    for shard in sorted(shards):
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index} names the shard {shard}, which is not beside it: fetch it again.")
        tensors, claimed = _CONTAINERS[suffix].read(index.parent / shard)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise ValueError(f"{index}: the tensor {twice[0]!r} is in {shard} and in another shard: save it again.")
        found.update(tensors)
    return found, claimed, weight_map


def _recognise(native_names: Iterable[str], claimed: str) -> tuple[str, dict[str, Parsed]]:
    """The format in which most names make sense, the claimed one when several do, and what the names stand for."""
    candidates: dict[str, dict[str, Parsed]] = {}
    for fmt, dialect in DIALECTS.items():
        dialects = (dialect, TORCH_V5) if fmt == "pt" else (dialect,)
        parsed = {name: parse_name(name, *dialects) for name in native_names}
        candidates[fmt] = {name: known for name, known in parsed.items() if known is not None}
    best = max(candidates, key=lambda fmt: (len(candidates[fmt]), fmt == claimed))
    return best, candidates[best]


def _check_complete(
    index: Path, weight_map: Mapping[str, str], found: Mapping[str, Tensor], tensors: Mapping[str, Tensor], fmt: str
) -> None:
    """Every tensor the index promises must be in a shard, under its name or another name of the same parameter."""
    dialects = (DIALECTS[fmt], TORCH_V5) if fmt == "pt" else (DIALECTS[fmt],)

    def present(name: str) -> bool:
        if fmt == "flax":
            return name.replace("/", ".") in found  # msgpack indices join the path by slashes
        inner = name.partition("/")[2]  # TensorFlow's indices carry the outer name, its shards do not
        known = parse_name(name, *dialects) or parse_name(inner, *dialects)
        return name in found or inner in found or (known is not None and known.name in tensors)

    lost = sorted(name for name in weight_map if not present(name))
    if lost:
        raise ValueError(f"{index} promises tensors that no shard holds: {', '.join(lost)}: save it again.")


def own_patterns(format: str, variant: str | None = None) -> tuple[str, ...]:
    """Patterns of every file a save of this variant may write: those of an earlier one that are left over are stale."""
    found: list[str] = []
    for suffix in (".safetensors", ".h5") if format == "tf" and not variant else (".safetensors",):
        single, index = weight_names(variant, suffix)
        found += [single, index, single.replace(suffix, f"-?????-of-?????{suffix}")]
    return tuple(found)


def check_serialization(safe_serialization: bool, format: str, variant: str | None) -> None:
    """Refuse, with ValueError, to write HDF5 files that nobody would read."""
    if not safe_serialization and format != "tf":
        raise ValueError(
            "safe_serialization=False writes tf_model.h5, which only vit_tf does: leave the argument out, every "
            "framework reads safetensors files; or load the model with vit_tf and save it from there."
        )
    if not safe_serialization and variant:
        raise ValueError(f"tf_model.h5 has no variants: leave out variant={variant!r} or safe_serialization=False.")


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    specs: Mapping[str, Spec],
    architecture: str,
    *,
    format: str = "pt",
    max_shard_size: int | str = "5GB",
    variant: str | None = None,
    safe_serialization: bool = True,
) -> list[str]:
    """Write tensors, given by canonical name in PyTorch's layout, and return the names of the files.

    `max_shard_size` is in bytes, or a text such as "200MB"; beyond it the file is split and an index is written.
    `safe_serialization=False` writes HDF5 instead, for the format "tf" alone.
    """
    check_serialization(safe_serialization, format, variant)
    native = _native(tensors, specs, architecture, format)
    outer = f"{_TF_OUTER_NAMES[architecture]}/" if format == "tf" else ""
    single, index = weight_names(variant, ".safetensors" if safe_serialization else ".h5")
    if safe_serialization:
        files = _split(native, single, max_shard_size)
        for file, names in files.items():
            write_safetensors(folder / file, {name: native[name] for name in names}, {"format": format})
    else:
        from vit_core.h5_file import storable, write_h5

        native = {name: storable(tensor) for name, tensor in native.items()}
        files = _split(native, single, max_shard_size)
        for file, names in files.items():
            write_h5(folder / file, {outer + name: native[name] for name in names}, shard=len(files) > 1)
    if len(files) == 1:
        return list(files)
    metadata = {"total_size": sum(t.nbytes for t in native.values())}
    if format == "pt":
        metadata["total_parameters"] = sum(spec.size for spec in specs.values())
    _write_index(folder / index, metadata, {outer + name: file for file, names in files.items() for name in names})
    return [*files, index]


def _native(
    tensors: Mapping[str, Tensor], specs: Mapping[str, Spec], architecture: str, format: str
) -> dict[str, Tensor]:
    """The tensors as a file of this format names them and lays them out."""
    dialect, prefixed = DIALECTS[format], architecture != "ViTModel"
    return {
        native_name(spec, dialect, prefixed): tensors[name].transposed(dialect.permutation(spec.kind, spec.leaf))
        for name, spec in specs.items()
    }


def _split(tensors: Mapping[str, Tensor], single: str, max_shard_size: int | str) -> dict[str, list[str]]:
    """The names of the tensors by the file they go to: the single one, or shards numbered after it."""
    from huggingface_hub import split_state_dict_into_shards_factory

    stem, _, suffix = single.rpartition(".")
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=f"{stem}{{suffix}}.{suffix}",
        max_shard_size=max_shard_size,
    )
    return dict(split.filename_to_tensors)


def _write_index(path: Path, metadata: Mapping[str, int], weight_map: Mapping[str, str]) -> None:
    text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
    write_atomically(path, text.encode())
