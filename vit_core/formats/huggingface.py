"""Weight files on disk <-> lazily read tensors under their canonical names.

Reads and writes the files, whole or sharded, of Hugging Face's PyTorch, TensorFlow and Flax ViTs: safetensors, and the
older kind each framework had of its own.
"""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vit_core.config import AutoConfig, ViTConfig
from vit_core.family import FAMILIES, Family, family_of, has_head
from vit_core.files.disk import check_shard_names, check_stays, write_atomically
from vit_core.files.documents import read_json_object
from vit_core.files.names import CONFIG_NAME
from vit_core.files.safetensors import read_safetensors, write_safetensors
from vit_core.files.saving import beside, find
from vit_core.files.tensor import Tensor
from vit_core.formats.rules import below_each_other
from vit_core.params import DIALECTS, TORCH_V5, Parsed, Spec, native_name, parse_name, parse_names

_FEW_LAYERS = 100  # that a configuration may ask for whatever its weights hold


def tf_outer_name(architecture: str) -> str:
    """What TensorFlow's full variable names begin with, as Keras names a class; only HDF5 files and indices say it."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", f"TF{architecture}")
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


@dataclass(frozen=True)
class Container:
    """A kind of weights file: its name, and bytes <-> arrays by the names they have in it."""

    stem: str
    suffix: str
    format: str  # the one whose own file it is; the one claimed where a file does not say
    read: Callable[[Path], tuple[Mapping[str, Tensor], str]]  # the tensors, and the claimed format
    write: Callable[[Path, Mapping[str, Tensor], str, bool], None]  # of this format, and whether it is a shard
    storable: Callable[[Tensor], Tensor] = lambda tensor: tensor  # what it makes of a tensor it has no dtype for

    def names(self, variant: str | None = None) -> tuple[str, str]:
        """The names of a weights file and of the index of a sharded one."""
        tag = f".{variant}" if variant else ""
        return f"{self.stem}{tag}{self.suffix}", f"{self.stem}{self.suffix}.index{tag}.json"

    def patterns(self, variant: str | None = None) -> tuple[str, ...]:
        """Patterns of every file that a save of this variant may write, and replaces where an earlier one wrote it."""
        single, index = self.names(variant)
        number, plain = "[0-9]" * 5, glob.escape(single.removesuffix(self.suffix))
        return plain + self.suffix, glob.escape(index), f"{plain}-{number}-of-{number}{self.suffix}"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str]:
    tensors, metadata = read_safetensors(path)
    return tensors, metadata.get("format", "pt")


# The modules of the older containers are loaded when one of their files is read or written.


def read_bin(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file of PyTorch's own kind, as `Container.read` does."""
    from vit_core.files.pytorch import read_pytorch_bin

    return read_pytorch_bin(path), "pt"


def write_bin(path: Path, tensors: Mapping[str, Tensor], format: str, shard: bool) -> None:
    """Write a file of PyTorch's own kind, as `Container.write` does."""
    from vit_core.files.pytorch import write_pytorch_bin

    write_pytorch_bin(path, tensors)


def _read_msgpack(path: Path) -> tuple[dict[str, Tensor], str]:
    from vit_core.files.msgpack import read_msgpack

    return read_msgpack(path), "flax"


def _write_msgpack(path: Path, tensors: Mapping[str, Tensor], format: str, shard: bool) -> None:
    from vit_core.files.msgpack import write_msgpack

    write_msgpack(path, tensors)


def _read_h5(path: Path) -> tuple[dict[str, Tensor], str]:
    from vit_core.files.hdf5 import read_h5

    return read_h5(path), "tf"


def _write_h5(path: Path, tensors: Mapping[str, Tensor], format: str, shard: bool) -> None:
    from vit_core.files.hdf5 import write_h5

    write_h5(path, tensors, shard=shard)


def _storable_in_h5(tensor: Tensor) -> Tensor:
    from vit_core.files.hdf5 import storable

    return storable(tensor)


SAFETENSORS = Container(
    "model", ".safetensors", "pt", _read_safetensors, lambda p, t, f, _: write_safetensors(p, t, {"format": f})
)
PYTORCH_BIN = Container("pytorch_model", ".bin", "pt", read_bin, write_bin)
TF_H5 = Container("tf_model", ".h5", "tf", _read_h5, _write_h5, _storable_in_h5)
FLAX_MSGPACK = Container("flax_model", ".msgpack", "flax", _read_msgpack, _write_msgpack)
CONTAINERS = (SAFETENSORS, PYTORCH_BIN, TF_H5, FLAX_MSGPACK)  # the one that wins first
OWN_CONTAINERS = {"pt": PYTORCH_BIN, "tf": TF_H5, "flax": FLAX_MSGPACK}


def readable_names(variant: str | None = None, formats: Collection[str] = ()) -> tuple[str, ...]:
    """The names a weights file may have, the one that wins first: the own files of these formats before others.

    Only the files PyTorch reads have variants.
    """
    containers = [c for c in CONTAINERS if c.format == "pt" or not variant]
    containers.sort(key=lambda c: c.format not in formats)
    return tuple(name for container in containers for name in container.names(variant))


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: nothing of its tensors is read yet, and they are in PyTorch's layout."""

    path: Path  # the weights file, or the index of its shards
    format: str  # pt, tf, flax, or the name of a `Format`
    family: Family
    tensors: dict[str, Tensor]  # by canonical name
    unknown: dict[str, Tensor]  # by their names in the file: no parameters of a ViT
    config: ViTConfig | None = None  # what the files beside the weights say, or the weights themselves
    processor: dict[str, Any] | None = None  # what preprocessor_config.json says, where that is known
    notes: tuple[str, ...] = ()  # what a user should know of how it was read
    files: tuple[Path, ...] = ()  # that hold the tensors
    dropped: tuple[str, ...] = ()  # names in the file of what was left out as asked for: a head
    doubts: tuple[str, ...] = ()  # what a user must know beside the notes: guesses that may be wrong

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of elements stored in each dtype, the most frequent first."""
        found: Counter[str] = Counter()
        for tensor in (*self.tensors.values(), *self.unknown.values()):
            found[tensor.dtype.name] += tensor.nbytes // tensor.dtype.itemsize
        return dict(found.most_common())

    def without(self, parts: Collection[str]) -> Checkpoint:
        """The checkpoint with the tensors of these parts among the unknown ones."""
        dropped = {name: tensor for name, tensor in self.tensors.items() if name.split(".")[0] in parts}
        tensors = {name: tensor for name, tensor in self.tensors.items() if name not in dropped}
        unknown = self.unknown | {tensor.source or name: tensor for name, tensor in dropped.items()}
        return replace(self, tensors=tensors, unknown=unknown)

    def by_any_name(self) -> dict[str, Tensor]:
        """Every tensor by its canonical name, or none, and by its name in the file."""
        found = self.unknown | self.tensors
        return {tensor.source: tensor for tensor in found.values()} | found


def find_weights(folder: Path, variant: str | None = None) -> Path:
    """The weights file, or index, of a folder. Raises FileNotFoundError that lists what is there."""
    names = readable_names(variant)
    for name in names:
        if (found := find(folder, name)).is_file():
            return found
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) if folder.is_dir() else ""
    raise FileNotFoundError(
        f"No weights in {folder}: expected {' or '.join(names)}; "
        + (f"the folder holds {there}." if there else "the folder is empty or missing.")
    )


@dataclass(frozen=True)
class Named:
    """The tensors of a weights file, or of all its shards, by their names there."""

    path: Path
    tensors: Mapping[str, Tensor]
    format: str  # the claimed one
    weight_map: Mapping[str, str] | None = None  # of an index: shards by the names of their tensors
    shards: tuple[Path, ...] = ()  # of an index

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        return self.shards or (self.path,)


def by_suffix(path: Path) -> Container:
    """The container that a file's name speaks of; safetensors where it speaks of none."""
    return next((c for c in CONTAINERS if path.suffix == c.suffix or f"{c.suffix}." in path.name), SAFETENSORS)


def read_named(path: Path, container_of: Callable[[Path], Container] = by_suffix) -> Named:
    """Open a weights file or an index. Raises OSError for a missing file, ValueError for a damaged one."""
    if path.suffix != ".json":
        return Named(path, *container_of(path).read(path))
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{path} has no weight_map from tensor names to file names: it is not an index of shards.")
    names = set(weight_map.values())
    check_shard_names(names, by_suffix(path).suffix, str(path))
    shards = tuple(beside(path, name) for name in sorted(names))
    found: dict[str, Tensor] = {}
    claimed = "pt"
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{path} names the shard {shard.name}, which is not beside it: fetch it again.")
        check_stays(shard, str(path))
        tensors, claimed = container_of(shard).read(shard)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise ValueError(f"{path}: the tensor {twice[0]!r} is in {shard.name} and in another shard: save it again.")
        found.update(tensors)
    return Named(path, found, claimed, weight_map, shards)


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a file of one of the Hugging Face formats, or an index, and the configuration beside it.

    Raises as `read_named` does.
    """
    return as_checkpoint(read_named(path))


def as_checkpoint(named: Named, asked: Family | None = None) -> Checkpoint:
    """The tensors under their canonical names, in the format in which most names make sense.

    Of several members that make as much of them the one `asked` for, where the configuration does not say.
    """
    path, found = named.path, named.tensors
    config = beside(path, CONFIG_NAME)
    stored = AutoConfig.from_json_file(config) if config.is_file() else None
    family, fmt, parsed = recognise(found, named.format, family_of(stored) if stored else None, asked)
    pieces: dict[str, dict[int, Tensor]] = {}
    for native, known in parsed.items():
        own, (i, _) = pieces.setdefault(known.name, {}), known.piece
        if i in own:
            both = f"{own[i].source!r} and {native!r}"
            raise ValueError(f"{path} holds {known.name} twice, as {both}: remove one of them.")
        own[i] = checked_rank(path, native, found[native], known.rank).transposed(known.axes)
    tensors = {known.name: _joined(path, known, pieces[known.name]) for known in parsed.values()}
    if named.weight_map is not None:
        _check_complete(path, named.weight_map, found, tensors, fmt, family)
    unknown = {name: t for name, t in found.items() if name not in parsed}
    if stored is not None:
        check_layers(path, stored, found)
    return Checkpoint(path, fmt, family, tensors, unknown, stored, files=named.files)


def _joined(path: Path, known: Parsed, pieces: Mapping[int, Tensor]) -> Tensor:
    """The tensor that is in pieces, which must all be there."""
    _, count = known.piece
    if pieces.keys() != set(range(count)):
        there = ", ".join(repr(tensor.source) for tensor in pieces.values())
        raise ValueError(f"{path} holds {known.name} not whole or twice, as {there}: it has {count} parts there.")
    return below_each_other([pieces[i] for i in range(count)]) if count > 1 else pieces[0]


def check_layers(path: Path, config: ViTConfig, tensors: Collection[str]) -> None:
    """Refuse, with ValueError, a number of layers that is a mistake or an attack: a layer is at least one tensor."""
    for field in dict.fromkeys(row.layers for row in family_of(config).table):
        if (layers := getattr(config, field)) > max(len(tensors), _FEW_LAYERS):
            raise ValueError(
                f"{field} is {layers} in the configuration of {path}, which holds {len(tensors)} tensors in all: mend "
                f"the {CONFIG_NAME} beside it."
            )


def check_floats(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse, with ValueError, parameters that are stored as integers: those of a quantised model."""
    if integers := [name for name, tensor in tensors.items() if tensor.dtype.kind in "iub"]:
        raise ValueError(
            f"{path} holds {integers[0]} as {tensors[integers[0]].dtype}, and in all {len(integers)} parameters as "
            "integers, expected floating-point numbers: if they are quantised, load it with the library that quantised "
            "it, and save it dequantised."
        )


def checked_rank(path: Path, native: str, tensor: Tensor, rank: int) -> Tensor:
    """The tensor, when it has as many axes as the parameter its name stands for. Raises ValueError otherwise."""
    if len(tensor.shape) != rank:
        raise ValueError(
            f"{path} holds {native!r} of shape {tensor.shape}, expected {rank} axes: it is no ViT's, damaged, or of a "
            "training that shared it out, as DeepSpeed's ZeRO-3 does (its zero_to_fp32.py joins the parts)."
        )
    return tensor


def recognise(
    native_names: Collection[str], claimed: str, stated: Family | None = None, asked: Family | None = None
) -> tuple[Family, str, dict[str, Parsed]]:
    """The member and the format in which most names make sense, and what the names stand for.

    Of several that make as much of them, the member `asked` for, or the first, which is ViT, and the claimed format. A
    `stated` member is the only one that is tried.
    """
    best: tuple[Family, str, dict[str, Parsed]] | None = None
    for family in [stated] if stated else sorted(FAMILIES.values(), key=lambda family: family is not asked):
        for fmt in sorted(DIALECTS, key=lambda fmt: fmt != claimed):
            dialects = (DIALECTS[fmt], TORCH_V5) if fmt == "pt" else (DIALECTS[fmt],)
            parsed = parse_names(native_names, family, *dialects)
            if best is None or len(parsed) > len(best[2]):
                best = family, fmt, parsed
            if len(parsed) == len(native_names):
                return best  # no other can explain more
    assert best is not None
    return best


def _check_complete(
    index: Path,
    weight_map: Mapping[str, str],
    found: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    fmt: str,
    family: Family,
) -> None:
    """Every tensor the index promises must be in a shard, under its name or another name of the same parameter."""
    dialects = (DIALECTS[fmt], TORCH_V5) if fmt == "pt" else (DIALECTS[fmt],)

    def present(name: str) -> bool:
        if fmt == "flax":
            return name.replace("/", ".") in found  # msgpack indices join the path by slashes
        inner = name.partition("/")[2]  # TensorFlow's indices carry the outer name, its shards do not
        known = parse_name(name, family, *dialects) or parse_name(inner, family, *dialects)
        return name in found or inner in found or (known is not None and known.name in tensors)

    lost = sorted(name for name in weight_map if not present(name))
    if lost:
        raise ValueError(f"{index} promises tensors that no shard holds: {', '.join(lost)}: save it again.")


def check_container(container: Container, variant: str | None) -> None:
    """Refuse, with ValueError, to write files that nobody would read."""
    if variant and (".." in variant or not re.fullmatch(r"[A-Za-z0-9_.-]+", variant)):
        raise ValueError(
            f"variant must be letters, digits, '_', '.' and '-', which go into file names, got {variant!r}."
        )
    if variant and container.format != "pt":
        name, _ = container.names()
        raise ValueError(f"{name} has no variants: leave out variant={variant!r} or safe_serialization=False.")


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    specs: Mapping[str, Spec],
    architecture: str,
    *,
    format: str = "pt",
    container: Container = SAFETENSORS,
    max_shard_size: int | str = "5GB",
    variant: str | None = None,
) -> list[str]:
    """Write tensors, given by canonical name in PyTorch's layout, and return the names of the files.

    `max_shard_size` is in bytes, or a text such as "200MB"; beyond it the file is split and an index is written.
    """
    check_container(container, variant)
    native = as_native(tensors, specs, architecture, format, container)
    return write_native(folder, native, architecture, format, container, max_shard_size, variant)


def as_native(
    tensors: Mapping[str, Tensor], specs: Mapping[str, Spec], architecture: str, format: str, container: Container
) -> dict[str, Tensor]:
    """The tensors as a file of this format names them and lays them out."""
    dialect, prefixed = DIALECTS[format], has_head(spec.part for spec in specs.values())
    outer = f"{tf_outer_name(architecture)}/" if container is TF_H5 else ""
    return {
        outer + native_name(spec, dialect, prefixed): container.storable(
            tensors[name].transposed(dialect.permutation(spec.kind, spec.leaf))
        )
        for name, spec in specs.items()
    }


def write_native(
    folder: Path,
    native: Mapping[str, Tensor],
    architecture: str,
    format: str,
    container: Container,
    max_shard_size: int | str = "5GB",
    variant: str | None = None,
) -> list[str]:
    """Write tensors by their names in the file, or in shards and an index, and return the names of the files."""
    single, index = container.names(variant)
    files = split(native, single, max_shard_size)
    for file, names in files.items():
        container.write(folder / file, {name: native[name] for name in names}, format, len(files) > 1)
    if len(files) == 1:
        return list(files)
    outer = f"{tf_outer_name(architecture)}/" if format == "tf" and container is SAFETENSORS else ""
    names_in_index = {n: n.replace(".", "/") if container is FLAX_MSGPACK else outer + n for n in native}
    metadata = {"total_size": sum(tensor.nbytes for tensor in native.values())}
    if format == "pt":
        metadata["total_parameters"] = sum(tensor.nbytes // tensor.dtype.itemsize for tensor in native.values())
    weight_map = {names_in_index[name]: file for file, names in files.items() for name in names}
    content = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / index, content.encode())
    return [*files, index]


def split(tensors: Mapping[str, Tensor], single: str, max_shard_size: int | str) -> dict[str, list[str]]:
    """The names of the tensors by the file they go to: the single one, or shards numbered after it."""
    from huggingface_hub import split_state_dict_into_shards_factory

    stem, _, suffix = single.rpartition(".")
    try:
        split = split_state_dict_into_shards_factory(
            dict(tensors),
            get_storage_size=lambda tensor: tensor.nbytes,
            filename_pattern=f"{stem}{{suffix}}.{suffix}",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ValueError(f"max_shard_size must be bytes, or a text such as '200MB', got {max_shard_size!r}.") from error
    return dict(split.filename_to_tensors)
