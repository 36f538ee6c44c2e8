"""The msgpack container of Flax: nested maps of arrays, read with the plain msgpack library.

Agrees with `flax.serialization` (Flax 0.12): an array is an extension of type 1 whose payload is (shape, dtype name,
bytes in C order); arrays beyond 2**30 bytes are a map of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import numpy.typing as npt

from vit_core.files import LFS_POINTER, refuse_duplicates
from vit_core.safetensors_file import Tensor

Array = npt.NDArray[Any]

_ARRAY, _SCALAR = 1, 3  # extension types; 2, a complex number, is no weight
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def read_msgpack(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by their paths in the tree, joined by dots; a single top-level `params` is left out.

    Raises OSError when the file can't be opened, ImportError without msgpack, ValueError when it is damaged.
    """
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository.")
    try:
        tree = msgpack.unpackb(content, ext_hook=_decode, object_pairs_hook=refuse_duplicates, strict_map_key=True)
        if not isinstance(tree, dict):
            raise ValueError(f"it holds a {type(tree).__name__}, expected a map")
        tree = tree["params"] if list(tree) == ["params"] else tree
        return {name: replace(Tensor.of(array), source=name) for name, array in _leaves(tree, ())}
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"{path} is damaged or not a Flax file ({error}): fetch or save it again.") from error


def _decode(kind: int, payload: bytes) -> Array:
    if kind not in (_ARRAY, _SCALAR):
        raise ValueError(f"extension type {kind} is no array")
    shape, name, data = msgpack.unpackb(payload, raw=True)
    dtype = _DTYPES.get(name.decode())
    if dtype is None or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"an array of dtype {name!r} and shape {shape!r} is not supported")
    if len(data) != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ValueError(f"an array of shape {tuple(shape)} and dtype {dtype} has {len(data)} bytes")
    return np.frombuffer(bytearray(data), dtype).reshape(shape)  # a bytearray makes it writable


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Array]]:
    """(dotted path, array) of a decoded tree, chunked arrays joined."""
    if isinstance(node, dict) and _CHUNKED in node:
        chunks, shape = node["chunks"], node["shape"]
        flat = np.concatenate([chunks[str(i)] for i in range(len(chunks))])
        yield ".".join(path), flat.reshape([int(shape[str(i)]) for i in range(len(shape))])
    elif isinstance(node, dict):
        for name, child in node.items():
            if not isinstance(name, str) or not name or set(name) & set("./\\"):
                raise ValueError(f"{name!r} is no name of a parameter")
            yield from _leaves(child, (*path, name))
    elif isinstance(node, np.ndarray):
        yield ".".join(path), node
    else:
        raise ValueError(f"{'.'.join(path)} is a {type(node).__name__}, expected an array")
