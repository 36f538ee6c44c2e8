"""The HDF5 container of TensorFlow's models (`tf_model.h5`), read and written with h5py alone.

Agrees with what transformers 4.57 writes through tf_keras 2.21. A whole model is grouped by layer, with the
names of its weights in attributes; a shard holds weights by their names, without the model's own name in front.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import ml_dtypes
import numpy as np

from vit_core.files.disk import atomic_file, is_at, refuse_stand_in, same_file
from vit_core.files.elsewhere import elsewhere
from vit_core.files.tensor import Array, Tensor, mapped_tensor

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)  # no number of HDF5: Keras 3 stores two bytes and says so in an attribute
_DTYPES = (
    *map(np.dtype, ("float64", "float32", "float16", "int64", "int32", "int16", "int8")),
    *map(np.dtype, ("uint64", "uint32", "uint16", "uint8", "bool")),
    _BFLOAT16,
)


class Described(NamedTuple):
    """A dataset, as one process describes it to another."""

    name: str
    place: str  # its path in the file
    shape: Sequence[int]
    dtype: str  # name of the native one, its own where its bytes are no number of HDF5
    stored: str  # NumPy's name of the one in the file
    begin: int | None  # where its bytes lie in the file, where they lie there as NumPy has them


_TEXT = h5py.string_dtype("ascii")
_TOP_LEVEL = "top_level_model_weights"  # the group of weights that belong to no layer: a ViT has none
_KERAS = "2.21.0"  # whose layout it is; Keras takes a file that does not say for one of Keras 1
_ATTRIBUTE_LIMIT = 64512  # bytes of names beyond which Keras splits an attribute
_EXPANSION = 1100  # more than deflate ever makes of a byte


def read_h5(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by the names of their variables, without the model's own name that stands first.

    An array is read when it is used: as a private, writable view of the mapped file where it lies there as it is,
    otherwise as a copy. Nothing outside the file is ever opened. What the library does not get through is found out in
    another process, which can be stopped.
    Raises OSError when the file can't be opened, ValueError when it is damaged.
    """
    return described_tensors(path, weights_in)


def weights_in(path: str) -> list[Described]:
    """What a `tf_model.h5` holds, for `described_tensors`."""
    return describe(path, "tf_model.h5", _weights)


def described_tensors(path: Path, function: Callable[[str], list[Described]]) -> dict[str, Tensor]:
    """The tensors of a file as a function of it describes them in another process. Raises as `read_h5` does."""
    with path.open("rb") as opened:
        refuse_stand_in(path, opened.read(512))
        described = [Described(*fields) for fields in elsewhere(function, path)]
        if not is_at(path, opened.fileno()):
            raise ValueError(f"{path} was replaced while it was read: read it again.")
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) if described else None
        chunked = any(each.begin is None for each in described)
        file = h5py.File(same_file(opened, path), "r") if chunked else None
    return {each.name: _tensor(path, mapped, file, each) for each in described}


def describe(
    path: str, kind: str, find: Callable[[h5py.File], Iterator[tuple[str, h5py.Group | h5py.Dataset]]]
) -> list[Described]:
    """What `find` yields by name. `kind` is what the file should be.

    Raises ValueError for what is damaged, lies in another file, is no array of numbers, or is yielded twice.
    """
    found: dict[str, Described] = {}
    with opened_h5(path, kind) as file:
        for name, dataset in find(file):
            if name in found:
                raise ValueError(f"the name {name!r} occurs twice")
            found[name] = _described(name, dataset)
    return list(found.values())


@contextmanager
def opened_h5(path: str, kind: str) -> Iterator[h5py.File]:
    """The open file. What goes wrong in the block is raised as ValueError that names the file and its `kind`."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise ValueError(f"{path} is damaged or not a {kind} ({error}): fetch or save it again.") from error


def _weights(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """(name, dataset) of everything the attributes list. What they do not list is no weight."""
    layers = _names(file, "layer_names")
    for layer in [*layers, *([_TOP_LEVEL] if _has(file, _TOP_LEVEL) else [])]:
        found = member(file, layer)
        if not isinstance(found, h5py.Group):
            yield layer, found
            continue
        for name in _names(found, "weight_names"):
            yield name.partition("/")[2] or name, member(found, name)


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """The texts of an attribute, which stand in numbered parts where they are many."""
    numbered = (f"{attribute}{i}" for i in count())
    parts = [attribute] if attribute in group.attrs else list(takewhile(group.attrs.__contains__, numbered))
    if not parts:
        raise ValueError(f"{group.name} has no attribute {attribute}")
    texts = [text for part in parts for text in np.ravel(_attribute(group, part))]
    if not all(isinstance(text, str | bytes) for text in texts):
        raise ValueError(f"the attribute {attribute} of {group.name} does not hold names")
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def _attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """The value of an attribute, None where it is not there. Raises ValueError for one that exceeds its file."""
    if name not in item.attrs:
        return None
    stored = item.attrs.get_id(name)
    if math.prod(stored.shape) * stored.get_type().get_size() > item.file.id.get_filesize():
        raise ValueError(f"the attribute {name} of {item.name} has the shape {stored.shape}, more than the file holds")
    return item.attrs[name]


def _has(group: h5py.Group, name: str) -> bool:
    """Whether a group has a member of this name; unlike `name in group`, this follows no link."""
    return bool(group.id.links.exists(name.encode()))


def member(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    """What lies at a path below a group. Raises ValueError for a link, which might lead out of the file."""
    node = group
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise ValueError(f"{path!r} is no name of a weight")
        if not isinstance(node, h5py.Group) or not _has(node, part):
            raise ValueError(f"it lists {path!r}, which is not there")
        if node.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{path!r} below {group.name} is a link, which is never followed")
        node = node[part]
    return node


def _described(name: str, dataset: h5py.Dataset) -> Described:
    """A dataset, when all its data is in the file."""
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name!r} is no array")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{name!r} has its data in another file, which is never opened")
    named = dataset.dtype == "V2" and _attribute(dataset, "dtype") == _BFLOAT16.name
    dtype = _BFLOAT16 if named else dataset.dtype.newbyteorder("=")
    if dtype not in _DTYPES or dataset.shape is None:
        raise ValueError(f"{name!r} has dtype {dataset.dtype} and shape {dataset.shape}, expected an array of numbers")
    stored, promised = dataset.id.get_storage_size(), dataset.size * dataset.id.get_type().get_size()
    plain = promised and h5py.h5t.py_create(dataset.dtype) == dataset.id.get_type()
    begin = dataset.id.get_offset() if plain else None
    beyond = begin is not None and begin + promised > dataset.file.id.get_filesize()
    if beyond or stored * (_EXPANSION if dataset.chunks else 1) < promised:  # chunks may be compressed
        raise ValueError(f"the data of {name!r} is not all there")
    return Described(
        name,
        dataset.name,
        dataset.shape,
        dtype.name,
        dtype.name if named else dataset.dtype.str,
        begin,
    )


def _tensor(path: Path, mapped: mmap.mmap | None, file: h5py.File, described: Described) -> Tensor:
    """A dataset of the mapped file as a tensor; one that does not lie there as it is, in the library's open file."""
    shape, native, stored = tuple(described.shape), *map(_dtype, (described.dtype, described.stored))
    if mapped is not None and described.begin is not None:
        raw = mapped_tensor(mapped, described.begin, shape, stored, described.name)
        return replace(raw, dtype=native, read=lambda: np.require(raw.read(), native))

    def read() -> Array:
        try:
            array = np.asarray(file[described.place][()])
        except (OSError, KeyError) as error:
            raise ValueError(f"{path} is damaged in {described.name!r} ({error}): fetch or save it again.") from error
        return array.view(native) if native == _BFLOAT16 else array.astype(native, copy=False)

    return Tensor(shape, native, read, described.name)


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def storable(tensor: Tensor) -> Tensor:
    """The tensor as HDF5 can hold it: it has no bfloat16, every value of which is a float32."""
    return tensor.astype(np.float32) if tensor.dtype == ml_dtypes.bfloat16 else tensor


def write_h5(path: Path, tensors: Mapping[str, Tensor], *, shard: bool = False) -> None:
    """Write a whole model or one shard of it, whole or not at all, holding one tensor in memory at a time.

    The names are those of the variables, the model's own name first; what is bfloat16 becomes float32. Raises
    ValueError for a dtype that is no number's, OSError when the disk is full.
    """
    stored = {name: storable(tensor) for name, tensor in tensors.items()}
    with atomic_h5(path, "tf_model.h5", stored) as file:
        (_write_shard if shard else _write_layers)(file, stored)


@contextmanager
def atomic_h5(path: Path, kind: str, tensors: Mapping[str, Tensor]) -> Iterator[h5py.File]:
    """A file to be written that appears at `path`, whole, when the block ends without an error.

    Raises ValueError for a dtype of a tensor that is no number's, OSError when the disk is full.
    """
    unknown = sorted(f"{name} ({t.dtype})" for name, t in tensors.items() if t.dtype not in _DTYPES)
    if unknown:
        expected = ", ".join(map(str, _DTYPES))
        raise ValueError(f"{kind} can't hold {', '.join(unknown)}: expected one of {expected}.")
    try:
        with (
            atomic_file(path) as file,
            os.fdopen(os.dup(file.fileno()), "r+b") as both_ways,  # HDF5 also reads what it wrote
            h5py.File(both_ways, "w", libver="earliest") as h5,
        ):
            yield h5
    except SystemError as error:  # what h5py makes on Python 3.13 of an error that it has set aside
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


def _write_layers(file: h5py.File, tensors: Mapping[str, Tensor]) -> None:
    layers: dict[str, list[str]] = {}
    for name in tensors:
        layers.setdefault(name.split("/")[1], []).append(name)
    _write_names(file, "layer_names", list(layers))
    file.attrs.create("backend", "tensorflow", dtype=_TEXT)
    file.attrs.create("keras_version", _KERAS, dtype=_TEXT)
    for layer, names in layers.items():
        group = file.create_group(layer)
        _write_names(group, "weight_names", names)
        for name in names:
            write_dataset(group, name, tensors[name])
    _write_names(file.create_group(_TOP_LEVEL), "weight_names", [])


def _write_shard(file: h5py.File, tensors: Mapping[str, Tensor]) -> None:
    names = {name: name.partition("/")[2] for name in sorted(tensors)}
    for name, inner in names.items():
        write_dataset(file, inner, tensors[name])
    _write_names(file, "layer_names", list(names.values()))


def write_dataset(group: h5py.Group, name: str, tensor: Tensor) -> None:
    """Write one tensor and release it; what is bfloat16 as Keras 3 does."""
    dataset = group.create_dataset(name, data=tensor.read())
    if tensor.dtype == _BFLOAT16:
        dataset.attrs["dtype"] = _BFLOAT16.name
    tensor.release()


def _write_names(group: h5py.Group, attribute: str, names: Sequence[str]) -> None:
    if not names:
        group.attrs.create(attribute, np.zeros(0))
        return
    longest, parts = max(len(name.encode()) for name in names), 1
    while -(-len(names) // parts) * longest > _ATTRIBUTE_LIMIT:
        parts += 1
    for i, part in enumerate(np.array_split(names, parts)):
        group.attrs.create(attribute if parts == 1 else f"{attribute}{i}", part.tolist(), dtype=_TEXT)
