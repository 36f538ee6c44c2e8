"""The safetensors container: files read through a memory map, one tensor at a time, and written the same way.

The safetensors library checks every file (offsets, sizes, dtypes); the arrays handed out here are views of the mapped
file, so that reading costs no memory of its own. What is written equals the library's output byte for byte.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from vit_core.files.disk import LFS_POINTER, atomic_file, refuse_stand_in, same_file
from vit_core.files.documents import Document, parse_json_object

Array = npt.NDArray[Any]

_DTYPES: dict[str, npt.DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_CACHE_LINE = 64  # bytes
_MAX_HEADER = 100_000_000  # bytes, the library's own limit


@dataclass(frozen=True)
class Tensor:
    """An array that is read when asked for. `shape` and `dtype` are known before.

    `release` gives back the memory that reading took where the array is a view of a mapped file: for callers that have
    copied it and keep no view. `verify` raises ValueError when its file has a checksum of it, which is another; it
    reads the bytes, and is for callers that read them all, before they write to any.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]
    source: str = ""  # its name in the file it comes from
    release: Callable[[], None] = lambda: None
    changes: tuple[tuple[str, Any], ...] = ()  # what reading does to the array in the file, in order
    verify: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, array: Array) -> Tensor:
        """A tensor whose array is already there."""
        return cls(array.shape, array.dtype, lambda: array)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """The array, read now, as NumPy's functions ask for it. Raises ValueError for another dtype without a copy."""
        array = self.read()
        if copy is False and dtype is not None and array.dtype != dtype:
            raise ValueError(f"{self.source or 'the tensor'} is {array.dtype}: {dtype} can't be had without a copy.")
        return array.astype(array.dtype if dtype is None else dtype, copy=bool(copy))

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def transposed(self, axes: tuple[int, ...] | None) -> Tensor:
        """The same tensor with its axes permuted; reading it gives a view."""
        if axes is None:
            return self
        return self.changed(
            ("transpose", axes), lambda array: array.transpose(axes), shape=tuple(self.shape[i] for i in axes)
        )

    def reshaped(self, shape: tuple[int, ...]) -> Tensor:
        """The same elements in C order under another shape."""
        return (
            self if shape == self.shape else self.changed(("reshape", shape), lambda a: a.reshape(shape), shape=shape)
        )

    def astype(self, dtype: npt.DTypeLike) -> Tensor:
        """The same tensor cast to another dtype when it is read."""
        wanted = np.dtype(dtype)
        return self if wanted == self.dtype else self.changed(("cast", wanted.name), lambda a: a.astype(wanted), wanted)

    def changed(
        self,
        change: tuple[str, Any],
        function: Callable[[Array], Array],
        dtype: np.dtype[Any] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Tensor:
        """The tensor that `function` makes of this one's array when it is read; `change` says in short how."""
        return replace(
            self,
            shape=self.shape if shape is None else shape,
            dtype=dtype or self.dtype,
            read=lambda: function(self.read()),
            changes=(*self.changes, change),
        )


def in_turn(functions: Iterable[Callable[[], None]]) -> Callable[[], None]:
    """The function that calls all of them."""
    called = tuple(functions)

    def call() -> None:
        for function in called:
            function()

    return call


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, by name, and its metadata.

    The arrays are private, writable views of the mapped file: nothing is read before it is used, and writing to one
    never reaches the file. Raises OSError when the file can't be opened, ValueError when it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}: check the path.")
    with path.open("rb") as file:
        header, start = _header(path, file)
        try:
            with safe_open(same_file(file, path), framework="np"):
                pass  # opening checks that the offsets are what the shapes and the size of the file demand
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged or not a safetensors file ({error}): fetch or save it again."
            ) from error
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    metadata = header.object("__metadata__")  # which may be null
    header.pop("__metadata__", None)
    return {name: _tensor(path, mapped, start, name, entry) for name, entry in header.items()}, metadata


def _header(path: Path, file: IO[bytes]) -> tuple[Document, int]:
    """The header, and the offset at which the data begins."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(len(LFS_POINTER))
    refuse_stand_in(path, first)
    length = int.from_bytes(first[:8], "little")
    if size < 8 or length > min(_MAX_HEADER, size - 8):
        raise ValueError(
            f"{path} is damaged or not a safetensors file: its {size} bytes begin with a header length of "
            f"{length}: fetch or save it again."
        )
    file.seek(8)
    return parse_json_object(file.read(length), f"The header of {path}"), 8 + length


def _tensor(path: Path, mapped: mmap.mmap, start: int, name: str, entry: dict[str, Any]) -> Tensor:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{path}: tensor {name!r} has dtype {entry['dtype']!r}; expected one of {', '.join(_DTYPES)}.")
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    return mapped_tensor(mapped, start + entry["data_offsets"][0], shape, dtype, name)


def mapped_tensor(mapped: mmap.mmap, begin: int, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> Tensor:
    """What begins at an offset of a file that is mapped with ACCESS_COPY, in C order. The caller has checked its end.

    Reading gives a private, writable view of the map where the data is aligned, otherwise a copy.
    """
    size = math.prod(shape) * dtype.itemsize

    def read() -> Array:
        array = np.frombuffer(mapped, np.uint8, size, begin).view(dtype).reshape(shape)
        return array if array.flags.aligned else array.copy()

    return Tensor(shape, dtype, read, name, lambda: release_pages(mapped, begin, begin + size))


def release_pages(mapped: mmap.mmap, begin: int, end: int) -> None:
    """Give back the memory of a part of a mapped file, where the system can do that, and what was written to it."""
    if hasattr(mapped, "madvise") and end > begin:
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, end - first)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in C order, without a copy where its array lies in that order."""
    return contiguous(tensor.read()).reshape(-1).view(np.uint8).data


def contiguous(array: Array, buffer: Array | None = None) -> Array:
    """The array in C order: itself where it lies so, otherwise a copy, in a `buffer` of bytes if one is given.

    A transposed matrix is copied a cache line of each row at a time, two to six times as fast as NumPy copies it.
    """
    if array.ndim != 2 or array.flags.c_contiguous or not array.flags.f_contiguous:
        return np.ascontiguousarray(array).reshape(array.shape)
    memory = np.empty(array.nbytes, np.uint8) if buffer is None else buffer[: array.nbytes]
    copy, columns = memory.view(array.dtype).reshape(array.shape), max(1, _CACHE_LINE // array.dtype.itemsize)
    for i in range(0, array.shape[1], columns):
        copy[:, i : i + columns] = array[:, i : i + columns]
    return copy


def own(array: Array, dtype: npt.DTypeLike) -> Array:
    """The array in another dtype and C order, in memory of its own."""
    ordered = contiguous(array)
    return ordered.astype(dtype, copy=np.may_share_memory(ordered, array))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, whole or not at all, holding one tensor in memory at a time.

    Raises ValueError for a dtype the format has no code for, OSError when the disk is full.
    """
    unknown = sorted(f"{name} ({t.dtype})" for name, t in tensors.items() if t.dtype not in _CODES)
    if unknown:
        raise ValueError(f"safetensors can't hold {', '.join(unknown)}: expected one of {', '.join(_DTYPES)}.")
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        code, shape = _CODES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(raw_bytes(tensors[name]))
            tensors[name].release()
