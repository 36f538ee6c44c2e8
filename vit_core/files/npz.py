"""NumPy's `.npz`, in which Google publishes ViT, read and written without pickles, one tensor at a time.

Agrees with `np.savez` and `np.load(allow_pickle=False)` of NumPy 2.4. bfloat16, for which the format has no name, is
two bytes of no type, as NumPy writes it. Arrays that are not compressed stay in the mapped file until they are used;
their checksums are for `Tensor.verify` to check, those of compressed arrays are checked when they are read.
"""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from vit_core.files.disk import atomic_file, refuse_stand_in
from vit_core.files.tensor import Array, Tensor, mapped_tensor, raw_bytes, release_pages
from vit_core.files.zip import check_entry, zip_entries

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DTYPES = (
    *map(np.dtype, ("float64", "float32", "float16", "int64", "int32", "int16", "int8")),
    *map(np.dtype, ("uint64", "uint32", "uint16", "uint8", "bool")),
    _BFLOAT16,
)
_MAX_HEADER = 4096  # bytes that describe an array; NumPy writes 128
_MAX_DIMENSIONS = 32
_SLACK = 1 << 30  # bytes by which what a file unpacks to may exceed its size
_STEP = 1 << 14  # bytes that are unpacked at a time, to at most 1032 times as many


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by the names of their entries, without `.npy`, in native byte order and C order.

    An array is read when it is used: as a private, writable view of the mapped file where its bytes allow that,
    otherwise as a copy. Raises OSError when the file can't be opened, ValueError when it is damaged, unpacks to more
    than its size and 1 GiB, or holds anything but numbers.
    """
    with path.open("rb") as file:
        refuse_stand_in(path, file.read(512))
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            entries = _entries(file, mapped)
            unpacked = sum(info.file_size for info, _ in entries)
            if unpacked > len(mapped) + _SLACK:
                raise ValueError(f"its {len(mapped)} bytes unpack to {unpacked}")
            return {info.filename[:-4]: _tensor(path, mapped, info, begin) for info, begin in entries}
        except (ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error, struct.error, OSError) as error:
            raise ValueError(f"{path} is damaged or not an .npz file ({error}): fetch or save it again.") from error


def _entries(file: IO[bytes], mapped: mmap.mmap) -> list[tuple[zipfile.ZipInfo, int]]:
    """Each entry of the zip archive, and where its data begins."""
    entries = list(zip_entries(file, mapped).values())
    for info, _ in entries:
        name = info.filename
        if not name.endswith(".npy"):
            raise ValueError(f"the entry {name!r} is no array")
        _check_name(name[:-4])
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"the entry {name!r} is packed in a way that NumPy does not use")
    return entries


def _check_name(name: str) -> None:
    if "\\" in name or not name.isprintable() or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise ValueError(f"{name!r} is no name of an array")


def _tensor(path: Path, mapped: mmap.mmap, info: zipfile.ZipInfo, begin: int) -> Tensor:
    """The array of an entry, of which only the header is read."""
    name, stored = info.filename[:-4], info.compress_type == zipfile.ZIP_STORED
    start = mapped[begin : begin + min(_MAX_HEADER, info.compress_size)]
    start = start if stored else zlib.decompressobj(-15).decompress(start, _MAX_HEADER)
    shape, fortran, dtype, offset = _header(name, BytesIO(start))
    if math.prod(shape) * dtype.itemsize != info.file_size - offset:
        raise ValueError(f"{name!r} of shape {shape} and dtype {dtype} has {info.file_size - offset} bytes")
    laid_out = shape[::-1] if fortran else shape

    def unpacked() -> Array:
        return _unpacked(path, mapped, info, begin)[offset:].view(dtype).reshape(laid_out)

    raw, end = mapped_tensor(mapped, begin + offset, laid_out, dtype, name), begin + info.compress_size
    if stored:
        raw = replace(raw, verify=cache(partial(check_entry, path, mapped, begin, info.file_size, info.CRC, name)))
    else:
        raw = replace(raw, read=unpacked, release=lambda: release_pages(mapped, begin, end))
    native = dtype.newbyteorder("=")

    def read() -> Array:
        return np.require(raw.read().T if fortran else raw.read(), native, ["C", "A"])

    return replace(raw, shape=shape, dtype=native, read=read)


def _header(name: str, file: BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, dtype and the offset of the data of an `.npy` file."""
    try:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its version is {version}")
        parse = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = parse(file, max_header_size=_MAX_HEADER)
    except Exception as error:  # NumPy evaluates the text, which fails in as many ways as there are texts
        raise ValueError(f"the header of {name!r} can't be read: {error}") from error
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects, which are never unpickled")
    dtype = _BFLOAT16 if dtype == "V2" else dtype
    if dtype.newbyteorder("=") not in _DTYPES:
        raise ValueError(f"{name!r} has dtype {dtype}, expected numbers")
    if len(shape) > _MAX_DIMENSIONS or min(shape, default=0) < 0 or math.prod(n or 1 for n in shape) >= 1 << 60:
        raise ValueError(f"{name!r} has the shape {shape}")
    return shape, fortran, dtype, file.tell()


def _unpacked(path: Path, mapped: mmap.mmap, info: zipfile.ZipInfo, begin: int) -> Array:
    """The bytes of a compressed entry. Raises ValueError when they are not as many, or not those, that are promised."""
    result, filled, engine = np.empty(info.file_size, np.uint8), 0, zlib.decompressobj(-15)
    end = begin + info.compress_size
    try:
        for at in range(begin, end, _STEP):
            part = np.frombuffer(engine.decompress(mapped[at : min(at + _STEP, end)]), np.uint8)
            result[filled : filled + len(part)] = part  # raises ValueError when it does not fit
            filled += len(part)
        if filled != len(result) or not engine.eof or zlib.crc32(result.data) != info.CRC:
            raise ValueError("its length or checksum is wrong")
    except (ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged in {info.filename[:-4]!r} ({error}): fetch or save it again.") from error
    return result


def write_npz(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file, whole or not at all, as `np.savez` does, holding one tensor in memory at a time.

    The names may contain "/". Raises ValueError for what is no number and for a name that is none, OSError when the
    disk is full.
    """
    unknown = sorted(f"{name} ({t.dtype})" for name, t in tensors.items() if t.dtype not in _DTYPES)
    if unknown:
        expected = ", ".join(map(str, _DTYPES))
        raise ValueError(f"An .npz file can't hold {', '.join(unknown)}: expected one of {expected}.")
    for name in tensors:
        _check_name(name)
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, tensor in tensors.items():
            described = {"descr": npy.dtype_to_descr(tensor.dtype), "fortran_order": False, "shape": tensor.shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:  # for every size, as NumPy does
                npy.write_array_header_1_0(entry, described)
                entry.write(raw_bytes(tensor))
            tensor.release()
