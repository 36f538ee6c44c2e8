"""The results of many pictures in one file, a row each: CSV, JSON lines or Parquet, written when all are there.

Until then each is a line of a journal beside that file, `results.csv.part`, whose first line holds the settings. A run
that was stopped is taken up again from it, however it was stopped.
"""

from __future__ import annotations

import csv
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from itertools import islice
from os import SEEK_END
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vit_core.app.cli.common import check_out
from vit_core.files.disk import atomic_file, is_at, lock
from vit_core.files.documents import parse_json_object

Array = NDArray[Any]
Row = dict[str, Any]
Columns = dict[str, type | int]  # by name: str, float, or how many float32 numbers a vector has


class Table(NamedTuple):
    """Rows to write, of which so many are of pictures that could be read: their error is None, as nothing else is."""

    columns: Columns
    rows: Iterator[Row]
    whole: int


Writer = Callable[[IO[bytes], Table], None]

IDENTITY = "identity"  # of a journal's settings: what the model is, whatever it is called
_ROWS = 4096  # of a Parquet file that are in memory at once
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a text begins that spreadsheets run


def check_target(out: Path, overwrite: bool, example: str, suffixes: Collection[str]) -> None:
    """Raise ValueError, FileExistsError or ImportError for a path that results can't be written to."""
    check_out(out, example, suffixes)
    if out.exists() and not overwrite:
        raise FileExistsError(f"--out {out} is there already: write elsewhere, or pass --overwrite to replace it.")
    if out.suffix.lower() == ".parquet":
        pyarrow()


class Journal:
    """The rows of pictures, on disk as they come; without any, the journal is gone at the end of its block.

    settings: what the rows depend on. columns: what a row has between the name of the file and the error.
    """

    def __init__(self, out: Path, settings: Row, columns: Columns) -> None:
        """Take up the journal of `out`, if there is one.

        Raises ValueError when that has other settings, BlockingIOError when another run is writing it.
        """
        self.out, self.path = out, out.with_name(f"{out.name}.part")
        self._settings: Row = settings
        self._columns: Columns = {"file": str, **columns, "error": str}
        self._places: dict[str, int] = {}  # where in the file the row of a picture begins
        self._failed: set[str] = set()  # pictures that this run could not read
        self._file = _alone(self.path)
        try:
            self._take_up()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        empty = self._file.seek(0, SEEK_END) == 0
        if empty and os.name == "posix":  # before the lock goes: another run may have opened it
            self.path.unlink()
        self._file.close()
        if empty and os.name != "posix":  # where an open file can't be removed
            self.path.unlink()

    def __contains__(self, name: str) -> bool:
        """Whether a picture is done; one that an earlier run could not read is not."""
        return _text(name) in self._places

    def add(self, name: str, result: Sequence[Any] | Exception) -> None:
        """Append what a picture gave: the values of its columns, or why it can't be read."""
        row: Row = dict.fromkeys(self._columns)
        if isinstance(result, Exception):
            row["error"] = _text(str(result))
            self._failed.add(_text(name))
        else:
            values = (_text(value) if isinstance(value, str) else value for value in result)
            row.update(zip(list(self._columns)[1:-1], values, strict=True))
        row["file"] = _text(name)
        self._places[row["file"]] = self._append(row)

    def finish(self, names: Iterable[str], write: Writer) -> None:
        """Write the file with a row for each picture named, in that order, and remove the journal."""
        found = [_text(name) for name in names]
        rows = (self._row(self._places[name]) for name in found)
        with atomic_file(self.out) as file:
            write(file, Table(self._columns, rows, sum(name not in self._failed for name in found)))
        self._file.truncate(0)

    def _take_up(self) -> None:
        """Read what is there, and drop a last line that is torn."""
        self._file.seek(0)
        first = self._file.readline()
        if first:
            self._check(first)
        end = len(first)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            row = parse_json_object(line, f"A line of {self.path}")
            if row.keys() != self._columns.keys() or not all(_fits(row[name], self._columns[name]) for name in row):
                raise ValueError(f"{self.path} is no journal of results: move it away, or write elsewhere.")
            if row["error"] is None:
                self._places[row["file"]] = end
            end += len(line)
        self._file.truncate(end)

    def _check(self, first: bytes) -> None:
        """Raise ValueError when the first line holds other settings, or none."""
        found: dict[str, Any] = {}
        with suppress(ValueError):
            found = parse_json_object(first, str(self.path))
        if found.keys() != self._settings.keys():
            raise ValueError(f"{self.path} is no journal of results: move it away, or write elsewhere.")
        settings = {name: value for name, value in self._settings.items() if name != IDENTITY}.items()
        if other := [f"{name}: {found[name]!r}, not {value!r}" for name, value in settings if found[name] != value]:
            raise ValueError(
                f"{self.path} is the journal of a run with {', '.join(other)}: repeat that run's command to go on with "
                "it, or delete the file to begin anew."
            )
        if found[IDENTITY] != self._settings[IDENTITY]:
            raise ValueError(
                f"{self.path} is the journal of a run with the same model before its weights, configuration or image "
                "processor changed: delete the file to begin anew."
            )

    def _append(self, row: Row) -> int:
        """Where in the file the row begins."""
        if (place := self._file.seek(0, SEEK_END)) == 0:
            place = self._file.write(json_line(self._settings))
        self._file.write(json_line(row, _encoded))
        self._file.flush()
        return place

    def _row(self, place: int) -> Row:
        self._file.seek(place)
        row: Row = json.loads(self._file.readline())
        vectors = [name for name, kind in self._columns.items() if isinstance(kind, int) and row[name] is not None]
        return {**row, **{name: np.frombuffer(b64decode(row[name]), "<f4") for name in vectors}}


def _alone(path: Path) -> IO[bytes]:
    """The journal, open, for this process alone as long as it is open. Raises BlockingIOError when another has it."""
    while True:
        file = path.open("a+b")
        try:
            if not lock(file):
                raise BlockingIOError(f"Another run is writing {path}: wait until it has ended, or write elsewhere.")
            if is_at(path, file.fileno()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # the run that had it has ended meanwhile, and has removed it


def _fits(value: Any, kind: type | int) -> bool:
    """Whether a value of a line is one of a column, a vector in base64 of its float32 numbers; None is."""
    if isinstance(kind, int):
        return value is None or (isinstance(value, str) and len(value) == len(_encoded(np.empty(kind))))
    return value is None or isinstance(value, kind)


def _encoded(vector: Array) -> str:
    return b64encode(vector.astype("<f4").tobytes()).decode()


def json_line(row: Row, default: Callable[[Array], Any] = np.ndarray.tolist) -> bytes:
    """A line of JSON, whose vectors are what `default` makes of them. Raises ValueError for what is not finite."""
    return json_bytes(row, allow_nan=False, default=default)


def json_bytes(document: Row, **options: Any) -> bytes:
    """A document as JSON in UTF-8; bytes of a path that are no text become `\\udc80` and the like, which JSON has."""
    return json.dumps(document, ensure_ascii=False, **options).encode(errors="backslashreplace") + b"\n"


def _text(value: str) -> str:
    """What UTF-8 can hold: bytes of a file's name that are no text become `\\udc80` and the like."""
    return value.encode(errors="backslashreplace").decode()


# ---- formats -------------------------------------------------------------------------------------------------------


def _csv(file: IO[bytes], table: Table) -> None:
    """A text that a spreadsheet would run begins with an apostrophe, which makes it show the text."""
    text = TextIOWrapper(file, encoding="utf-8", newline="")
    plain, quoted = (
        csv.DictWriter(text, table.columns, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    plain.writeheader()
    for row in table.rows:
        shown = {k: f"'{v}" if isinstance(v, str) and v.startswith(_FORMULA) else v for k, v in row.items()}
        # By itself the module leaves a carriage return bare, which its reader takes for the end of a row.
        (quoted if any("\r" in str(value) for value in row.values()) else plain).writerow(shown)
    text.detach()


def write_json_lines(file: IO[bytes], table: Table) -> None:
    """A JSON object in each line."""
    file.writelines(map(json_line, table.rows))


def write_parquet(file: IO[bytes], table: Table, metadata: Mapping[bytes, bytes] | None = None) -> None:
    """Apache Parquet, with this metadata in its schema.

    A vector is a list of any length, since pyarrow before 26 writes no lists of one length of which some are null.
    """
    arrow = pyarrow()
    kinds = {str: arrow.string(), float: arrow.float64()}
    fields = [
        (name, arrow.list_(arrow.float32()) if isinstance(kind, int) else kinds[kind])
        for name, kind in table.columns.items()
    ]
    schema = arrow.schema(fields, metadata=metadata)
    with arrow.parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(table.rows, _ROWS)):
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))


def pyarrow() -> Any:
    """The library, with its parts for arithmetic and for Parquet. Raises ImportError that says what to install."""
    try:
        import_module("pyarrow.compute")
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError as error:
        raise ImportError(f'A .parquet file needs pyarrow ({error}): pip install "vit-trio[parquet]"') from error


WRITERS: dict[str, Writer] = {".csv": _csv, ".jsonl": write_json_lines, ".parquet": write_parquet}
