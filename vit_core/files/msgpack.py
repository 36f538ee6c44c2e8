"""The msgpack container of Flax: nested maps of arrays, read and written with the plain msgpack library.

Agrees with `flax.serialization` (Flax 0.12): an array is an extension of type 1 whose payload is (shape, dtype name,
bytes in C order); arrays beyond 2**30 bytes are a map of chunks. Arrays stay in the mapped file until they are used.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import msgpack
import numpy as np

from vit_core.files.disk import atomic_file, refuse_stand_in
from vit_core.files.tensor import Array, Tensor, in_turn, mapped_tensor, raw_bytes

_ARRAY, _SCALAR = 1, 3  # extension types; 2, a complex number, is no weight
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK = 2**30  # bytes beyond which Flax splits an array
_DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
    )
}
_BIN, _FIXEXT, _EXT = 0xC4, 0xD4, 0xC7  # the first of 3, 5 and 3 codes
_MAPS = {*range(0x80, 0x90), 0xDE, 0xDF}
_WINDOW = 4096  # bytes that are looked at for a key, a shape or the length of a map
_MAX_NAME = 256  # characters of a dotted name, which bounds the depth as well
_MAX_DIMENSIONS = 32


def read_msgpack(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by their paths in the tree, joined by dots; a top-level `params` is left out of them.

    Numbers and texts beside the arrays, as in a file of Flax's TrainState, are passed over.

    An array is read when it is used: as a private, writable view of the mapped file where its bytes allow that,
    otherwise as a copy. Raises OSError when the file can't be opened, ImportError without msgpack, ValueError when it
    is damaged.
    """
    with path.open("rb") as file:
        refuse_stand_in(path, file.read(_WINDOW))
        try:
            reader = _Reader(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            tree = reader.value("")
            if reader.position != len(reader.mapped):
                raise ValueError(f"{len(reader.mapped) - reader.position} bytes follow its end")
            if not isinstance(tree, dict):
                raise ValueError(f"it holds a {type(tree).__name__}, expected a map")
            params = tree.pop("params") if isinstance(tree.get("params"), dict) else {}
            found = dict(_leaves(params)) | dict(_leaves(tree))
            if tree and not found:
                raise ValueError("it holds no array")
            return found
        except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
            raise ValueError(f"{path} is damaged or not a Flax file ({error}): fetch or save it again.") from error


class _Reader:
    """Walks through a mapped file. Nothing is copied from it but the keys and what describes an array."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self.mapped, self.position = mapped, 0

    def value(self, name: str) -> Any:
        """The value that begins here: a map as a dict, an array as a Tensor. `name` is its path, joined by dots."""
        code = self.mapped[self.position] if self.position < len(self.mapped) else -1
        if code in _MAPS:
            return self._map(name)
        if code in range(_FIXEXT, _FIXEXT + 5) or code in range(_EXT, _EXT + 3):
            return self._array(name, code)
        return self._small()

    def _map(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self._small("read_map_header")):
            key = self._small()
            if not isinstance(key, str):
                raise ValueError(f"{key!r} is no name of a parameter")
            if len(name) + len(key) >= _MAX_NAME:
                raise ValueError(f"a name that begins with {(name or key)[:40]!r} exceeds {_MAX_NAME} characters")
            _check_part(key)
            if key in found:
                raise ValueError(f"the name {key!r} occurs twice")
            found[key] = self.value(f"{name}.{key}" if name else key)
        return found

    def _array(self, name: str, code: int) -> Tensor:
        length = self._length(_EXT, code) if code < _FIXEXT else 1 << (self._byte() - _FIXEXT)
        kind, end = self._byte(), self.position + length
        if kind not in (_ARRAY, _SCALAR):
            raise ValueError(f"extension type {kind - 256 if kind > 127 else kind} is no array")
        if self._small("read_array_header") != 3:
            raise ValueError(f"{name} is not described by a shape, a dtype and bytes")
        shape, described = self._small(), self._small()
        dtype = _DTYPES.get(described) if isinstance(described, str) else None
        counts = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        if dtype is None or not counts or len(shape) > _MAX_DIMENSIONS:
            raise ValueError(f"an array of dtype {described!r} and shape {shape!r} is not supported")
        size, begin = self._length(_BIN, self.mapped[self.position]), self.position
        if size != math.prod(shape) * dtype.itemsize or math.prod(n or 1 for n in shape) >= 1 << 60:
            raise ValueError(f"an array of shape {tuple(shape)} and dtype {dtype} has {size} bytes")
        self.position += size
        if self.position != end or end > len(self.mapped):
            raise ValueError(f"{name} is not all there")
        return mapped_tensor(self.mapped, begin, tuple(shape), dtype, name)

    def _small(self, method: str = "unpack") -> Any:
        """What the library reads here, when it ends within the window."""
        unpacker = msgpack.Unpacker(max_buffer_size=_WINDOW, strict_map_key=True)
        unpacker.feed(self.mapped[self.position : self.position + _WINDOW])
        value = getattr(unpacker, method)()
        self.position += unpacker.tell()
        return value

    def _byte(self) -> int:
        self.position += 1
        return self.mapped[self.position - 1]

    def _length(self, first: int, code: int) -> int:
        """The length that follows a code in 1, 2 or 4 bytes, as the code is the first, second or third of its kind."""
        if code not in range(first, first + 3):
            raise ValueError("an array has no bytes")
        begin, self.position = self.position + 1, self.position + 1 + (1 << (code - first))
        return int.from_bytes(self.mapped[begin : self.position], "big")


def _leaves(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """(dotted path, array) of a tree, chunked arrays joined."""
    for part, child in node.items():
        here = (*path, part)
        name = ".".join(here)
        if isinstance(child, dict) and _CHUNKED in child:
            yield name, _joined(name, child)
        elif isinstance(child, dict):
            yield from _leaves(child, here)
        elif isinstance(child, Tensor):
            yield name, child


def _check_part(name: str) -> None:
    if not name or set(name) & set("./\\"):
        raise ValueError(f"{name!r} is no name of a parameter")


def _joined(name: str, node: dict[str, Any]) -> Tensor:
    """An array that is stored in chunks."""
    if not isinstance(node.get("chunks"), dict) or not isinstance(node.get("shape"), dict):
        raise ValueError(f"{name} has no chunks or no shape")
    chunks = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
    shape = tuple(node["shape"][str(i)] for i in range(len(node["shape"])))
    if not chunks or not all(
        isinstance(c, Tensor) and c.shape[1:] == () and c.dtype == chunks[0].dtype for c in chunks
    ):
        raise ValueError(f"the chunks of {name} are not arrays of one dimension and dtype")
    counts, promised = all(type(n) is int and n >= 0 for n in shape), sum(math.prod(chunk.shape) for chunk in chunks)
    if not counts or len(shape) > _MAX_DIMENSIONS or math.prod(shape) != promised:
        raise ValueError(f"the chunks of {name} do not make up an array of shape {shape}")

    def read() -> Array:
        return np.concatenate([chunk.read() for chunk in chunks]).reshape(shape)

    return Tensor(shape, chunks[0].dtype, read, name, in_turn(chunk.release for chunk in chunks))


# ---- writing -----------------------------------------------------------------------------------------------------


def write_msgpack(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file, whole or not at all, as `flax.serialization` does, holding one tensor in memory at a time.

    The dots of the names make the maps. Raises ValueError for a dtype that is not among those that are read and for a
    name that is none, OSError when the disk is full.
    """
    unknown = sorted(f"{name} ({t.dtype})" for name, t in tensors.items() if t.dtype not in _DTYPES.values())
    if unknown:
        raise ValueError(f"flax_model.msgpack can't hold {', '.join(unknown)}: expected one of {', '.join(_DTYPES)}.")
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *outer, last = name.split(".")
        node: Any = tree
        for part in outer:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node
        for part in (*outer, last):
            _check_part(part)
        if not isinstance(node, dict) or last in node:
            raise ValueError(f"{name!r} is the name of an array, and that of a map of others: rename one of them.")
        node[last] = tensor
    with atomic_file(path) as file:
        _write(file, tree)


def _write(file: IO[bytes], node: Mapping[str, Any] | Tensor) -> None:
    if isinstance(node, Tensor):
        _write_array(file, node)
        return
    file.write(msgpack.Packer().pack_map_header(len(node)))
    for name in sorted(node):
        file.write(msgpack.packb(name))
        _write(file, node[name])


def _write_array(file: IO[bytes], tensor: Tensor) -> None:
    data, itemsize = raw_bytes(tensor), tensor.dtype.itemsize
    if len(data) <= _CHUNK:
        _write_ext(file, tensor.shape, tensor.dtype.name, data)
    else:
        step = max(1, _CHUNK // itemsize) * itemsize
        parts = [data[begin : begin + step] for begin in range(0, len(data), step)]
        shape = {str(i): n for i, n in enumerate(tensor.shape)}
        file.write(b"\x83" + msgpack.packb(_CHUNKED) + msgpack.packb(True))
        file.write(msgpack.packb("shape") + msgpack.packb(shape))
        file.write(msgpack.packb("chunks") + msgpack.Packer().pack_map_header(len(parts)))
        for i, part in enumerate(parts):
            file.write(msgpack.packb(str(i)))
            _write_ext(file, (len(part) // itemsize,), tensor.dtype.name, part)
    tensor.release()


def _write_ext(file: IO[bytes], shape: tuple[int, ...], dtype: str, data: memoryview) -> None:
    described = b"\x93" + msgpack.packb(shape) + msgpack.packb(dtype) + _header(_BIN, len(data))
    length = len(described) + len(data)
    fixed = length.bit_count() == 1 and length <= 16
    file.write(bytes([_FIXEXT + length.bit_length() - 1]) if fixed else _header(_EXT, length))
    file.write(bytes([_ARRAY]) + described)
    file.write(data)


def _header(first: int, length: int) -> bytes:
    """A code and a length in as few bytes as hold it."""
    size = 0 if length < 1 << 8 else 1 if length < 1 << 16 else 2
    return bytes([first + size]) + length.to_bytes(1 << size, "big")
