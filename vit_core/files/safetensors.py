"""The safetensors container: files read through a memory map, one tensor at a time, and written the same way.

The safetensors library checks every file (offsets, sizes, dtypes); the arrays handed out here are views of the mapped
file, so that reading costs no memory of its own. What is written equals the library's output byte for byte.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from vit_core.files.disk import LFS_POINTER, atomic_file, refuse_stand_in, same_file
from vit_core.files.documents import Document, parse_json_object
from vit_core.files.tensor import Tensor, mapped_tensor, raw_bytes

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
_MAX_HEADER = 100_000_000  # bytes, the library's own limit


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
        raise ValueError(
            f"{path}: tensor {name!r} has dtype {entry['dtype']!r}; expected one of {', '.join(_DTYPES)}: save it in "
            "one of them."
        )
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    return mapped_tensor(mapped, start + entry["data_offsets"][0], shape, dtype, name)


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
