"""Vectors of pictures in files: .npy, .jsonl or .parquet, each with what the vectors were made with.

Parquet has that in its metadata; beside x.npy or x.jsonl it stands in x.npy.json or x.jsonl.json, that of .npy with the
names of the pictures, in the order of the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
from xxhash import xxh3_128

from vit_core.app.cli.results import (
    IDENTITY,
    Array,
    Columns,
    Row,
    Table,
    Writer,
    json_bytes,
    pyarrow,
    write_json_lines,
    write_parquet,
)
from vit_core.files.disk import write_atomically
from vit_core.files.documents import Document, parse_json_object

_VECTOR = "embedding"  # the column
_KEY = b"vit_embed"  # of Parquet's metadata
_CONTENT = "content"  # a number of names and vectors, by which a file and what stands beside it know each other


@dataclass(frozen=True)
class Vectors:
    """The pictures of a file that could be read, their vectors (n, D), and the settings of the run that made them."""

    names: list[str]
    values: Array
    settings: Document


def columns(width: int) -> Columns:
    """Of a file of vectors of this width, beside name and error."""
    return {_VECTOR: width}


def writer(out: Path, settings: Row) -> Writer:
    """What writes vectors to a file of its suffix, with what they were made with."""
    return partial(_FORMATS[out.suffix.lower()][0], out, settings)


def read_vectors(path: Path) -> Vectors:
    """What `writer` wrote. Raises OSError or ValueError, which name the file, for anything else."""
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"{path} must end in one of {', '.join(_FORMATS)}, as what `vit embed` writes does.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: write it with `vit embed PICTURES --out {path}`.")
    names, values, settings = _FORMATS[suffix][1](path)
    expected = (len(names), settings["dimensions"])
    if values.dtype != np.float32 or values.shape != expected or not np.isfinite(values).all():
        raise ValueError(
            f"{path} must hold finite float32 numbers of shape {expected}, got {values.dtype} {values.shape}: embed "
            "the pictures again."
        )
    if _CONTENT in settings:
        seen = _Seen()
        for name, vector in zip(names, values, strict=True):
            seen.add(name, vector)
        if seen.content() != settings[_CONTENT]:
            raise ValueError(f"{path} is not the file that {_beside(path)} was written for: embed the pictures again.")
    if not names:
        raise ValueError(f"{path} holds no vectors: none of its pictures could be read.")
    return Vectors(names, values, settings)


class _Seen:
    """The rows that went by: names of the pictures that could be read, the others, and a number of the content."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.failed: list[Row] = []
        self._content = xxh3_128()

    def add(self, name: str, vector: Array) -> None:
        self.files.append(name)
        self._content.update(f"{name}\0".encode())
        self._content.update(vector.astype("<f4").tobytes())

    def passing(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows as they are."""
        for row in rows:
            if row["error"] is None:
                self.add(row["file"], row[_VECTOR])
            else:
                self.failed.append({"file": row["file"], "error": row["error"]})
            yield row

    def content(self) -> str:
        return self._content.hexdigest()


def _beside(path: Path) -> Path:
    """Where that stands of which a file itself says nothing."""
    return path.with_name(f"{path.name}.json")


def _write_beside(out: Path, document: Row) -> None:
    write_atomically(_beside(out), json_bytes(document, indent=2))


def _read_beside(path: Path) -> Document:
    beside = _beside(path)
    if not beside.is_file():
        raise FileNotFoundError(
            f"There is no {beside}, which says what {path} was made with: `vit embed` writes both, keep them together."
        )
    return _settings(beside.read_bytes(), beside)


def _settings(text: bytes, source: Path) -> Document:
    """The settings in a document. Raises ValueError for one that `vit embed` did not write."""
    found = parse_json_object(text, str(source))
    layers, width = found.get("layers"), found.get("dimensions")
    fits = all(isinstance(found.get(name), str) for name in (IDENTITY, "model", "pool"))
    numbers = isinstance(layers, list) and all(type(layer) is int for layer in layers)
    if not (fits and numbers and type(width) is int and width > 0):
        raise ValueError(f"{source} does not say what the vectors were made with, as what `vit embed` writes does.")
    return found


# ---- formats -----------------------------------------------------------------------------------------------------


def _write_npy(out: Path, settings: Row, file: IO[bytes], table: Table) -> None:
    """Rows of the pictures that could be read alone; beside them their names, and the pictures that could not."""
    seen, shape = _Seen(), (table.whole, settings["dimensions"])
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for row in seen.passing(table.rows):
        if row["error"] is None:
            file.write(row[_VECTOR].tobytes())
    _write_beside(out, {**settings, _CONTENT: seen.content(), "files": seen.files, "failed": seen.failed})


def _read_npy(path: Path) -> tuple[list[str], Array, Document]:
    settings = _read_beside(path)
    try:
        return settings.texts("files"), np.lib.format.open_memmap(path, mode="r"), settings
    except (ValueError, TokenError) as error:  # which NumPy's reading of a header ends in
        raise ValueError(f"{path} is no array that NumPy can read ({error}): embed the pictures again.") from error


def _write_jsonl(out: Path, settings: Row, file: IO[bytes], table: Table) -> None:
    seen = _Seen()
    write_json_lines(file, table._replace(rows=seen.passing(table.rows)))
    _write_beside(out, {**settings, _CONTENT: seen.content()})


def _read_jsonl(path: Path) -> tuple[list[str], Array, Document]:
    settings, names, vectors = _read_beside(path), list[str](), list[Array]()
    width = settings["dimensions"]
    with path.open("rb") as file, np.errstate(over="ignore"):
        for number, line in enumerate(file, 1):
            source = f"Line {number} of {path}"
            row = parse_json_object(line, source)
            if row.get("error") is not None:
                continue
            vector = row.get(_VECTOR)
            if not (isinstance(vector, list) and len(vector) == width and {*map(type, vector)} <= {float, int}):
                raise ValueError(
                    f"{source} must have a list of {width} numbers in {_VECTOR!r}: embed the pictures again."
                )
            names.append(row.text("file", ""))
            vectors.append(np.array(vector, np.float32))
    return names, np.array(vectors, np.float32).reshape(len(names), width), settings


def _write_parquet(_: Path, settings: Row, file: IO[bytes], table: Table) -> None:
    write_parquet(file, table, {_KEY: json.dumps(settings).encode()})


def _read_parquet(path: Path) -> tuple[list[str], Array, Document]:
    arrow = pyarrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            settings = _settings((schema.metadata or {}).get(_KEY, b"{}"), path)
            width = settings["dimensions"]
            wanted = {"file": arrow.string(), _VECTOR: arrow.list_(arrow.float32())}
            lists = (wanted[_VECTOR], arrow.list_(arrow.float32(), width))  # the second as older files have it
            found = [schema.field(name).type if name in schema.names else None for name in wanted]
            if found[0] != wanted["file"] or found[1] not in lists:
                raise ValueError(
                    f"{path} must have the columns {wanted}, got {schema.names}: embed the pictures again."
                )
            rows = file.read([*wanted])
    except arrow.ArrowException as error:
        raise ValueError(
            f"{path} is no Parquet file that pyarrow can read ({error}): embed the pictures again."
        ) from error
    rows = rows.filter(rows[_VECTOR].is_valid())
    vectors = rows[_VECTOR].combine_chunks()
    if {*arrow.compute.list_value_length(vectors).to_pylist()} - {width}:
        raise ValueError(f"{path} must have lists of {width} numbers in {_VECTOR!r}: embed the pictures again.")
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    return rows["file"].to_pylist(), flat.reshape(len(rows), width), settings


_Read = Callable[[Path], tuple[list[str], Array, Document]]
_FORMATS: dict[str, tuple[Callable[[Path, Row, IO[bytes], Table], None], _Read]] = {
    ".npy": (_write_npy, _read_npy),
    ".jsonl": (_write_jsonl, _read_jsonl),
    ".parquet": (_write_parquet, _read_parquet),
}
SUFFIXES = tuple(_FORMATS)
