"""A named array of a file that is read when asked for, and the memory it lies in."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_CACHE_LINE = 64  # bytes


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
        return math.prod(self.shape) * self.dtype.itemsize

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
    """The array in another dtype and C order, in memory of its own; see `aligned`."""
    found = aligned(array.shape, np.dtype(dtype))
    ordered = contiguous(array, found.reshape(-1).view(np.uint8) if found.dtype == array.dtype else None)
    if not np.may_share_memory(ordered, found):
        found[...] = ordered
    return found


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array that begins at a page, which TensorFlow and JAX take without a copy on a CPU.

    NumPy's own asks for huge pages, for which a system that has filled its memory looks longer than it saves.
    """
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8, size).view(dtype).reshape(shape)
