"""The results of many pictures in one file: CSV, JSON lines or Parquet, written when all are there.

Until then each is a line of a journal beside that file, `results.csv.part`, whose first line holds the settings. A run
that was stopped is taken up again from it, however it was stopped.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from itertools import islice
from os import SEEK_END
from pathlib import Path
from typing import IO, Any, Self

from vit_core.app.cli.common import check_out
from vit_core.app.pipeline import Result
from vit_core.files.disk import atomic_file, is_at, lock
from vit_core.files.documents import parse_json_object

Row = dict[str, Any]
Columns = dict[str, type]  # str or float, by name

IDENTITY = "identity"  # of a journal's settings: what the model is, whatever it is called
_ROWS = 4096  # of a Parquet file that are in memory at once
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a text begins that spreadsheets run


def check_target(out: Path, overwrite: bool) -> None:
    """Raise ValueError, FileExistsError or ImportError for a path that results can't be written to."""
    check_out(out, "results.csv", _WRITERS)
    if out.exists() and not overwrite:
        raise FileExistsError(f"--out {out} is there already: write elsewhere, or pass --overwrite to replace it.")
    if out.suffix.lower() == ".parquet":
        _pyarrow()


class Journal:
    """The rows of pictures, on disk as they come; without any, the journal is gone at the end of its block.

    settings: what the rows depend on. labels: how many a row has, the best first.
    """

    def __init__(self, out: Path, settings: Row, labels: int) -> None:
        """Take up the journal of `out`, if there is one.

        Raises ValueError when that has other settings, BlockingIOError when another run is writing it.
        """
        self.out, self.path = out, out.with_name(f"{out.name}.part")
        self._settings, self._columns = settings, _columns(labels)
        self._places: dict[str, int] = {}  # where in the file the row of a picture begins
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

    def add(self, name: str, result: Result) -> None:
        """Append what a picture gave."""
        row: Row = dict.fromkeys(self._columns)
        if isinstance(result, Exception):
            row["error"] = _text(str(result))
        else:
            values = (value for each in result for value in (_text(each["label"]), each["score"]))
            row.update(zip(list(self._columns)[1:-1], values, strict=True))
        row["file"] = _text(name)
        self._places[row["file"]] = self._append(row)

    def finish(self, names: Iterable[str]) -> None:
        """Write the file with a row for each picture named, in that order, and remove the journal."""
        rows = (self._row(self._places[_text(name)]) for name in names)
        with atomic_file(self.out) as file:
            _WRITERS[self.out.suffix.lower()](file, self._columns, rows)
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
            if row.keys() != self._columns.keys() or not isinstance(row["file"], str):
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
        if other := [f"{name}={found[name]!r}, not {value!r}" for name, value in settings if found[name] != value]:
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
            place = self._file.write(_line(self._settings))
        self._file.write(_line(row))
        self._file.flush()
        return place

    def _row(self, place: int) -> Row:
        self._file.seek(place)
        row: Row = json.loads(self._file.readline())
        return row


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


def _columns(labels: int) -> Columns:
    """file, label and score of the best, label_2 and score_2 of the next and so on, error."""
    ends = ["", *(f"_{i}" for i in range(2, labels + 1))]
    pairs = {f"{name}{end}": kind for end in ends for name, kind in (("label", str), ("score", float))}
    return {"file": str, **pairs, "error": str}


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _text(value: str) -> str:
    """What UTF-8 can hold: bytes of a file's name that are no text become `\\udc80` and the like."""
    return value.encode(errors="backslashreplace").decode()


# ---- formats -------------------------------------------------------------------------------------------------------


def _csv(file: IO[bytes], columns: Columns, rows: Iterator[Row]) -> None:
    """A text that a spreadsheet would run begins with an apostrophe, which makes it show the text."""
    text = TextIOWrapper(file, encoding="utf-8", newline="")
    plain, quoted = (
        csv.DictWriter(text, columns, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    plain.writeheader()
    for row in rows:
        shown = {k: f"'{v}" if isinstance(v, str) and v.startswith(_FORMULA) else v for k, v in row.items()}
        # By itself the module leaves a carriage return bare, which its reader takes for the end of a row.
        (quoted if any("\r" in str(value) for value in row.values()) else plain).writerow(shown)
    text.detach()


def _jsonl(file: IO[bytes], _: Columns, rows: Iterator[Row]) -> None:
    file.writelines(map(_line, rows))


def _parquet(file: IO[bytes], columns: Columns, rows: Iterator[Row]) -> None:
    arrow = _pyarrow()
    kinds = {str: arrow.string(), float: arrow.float64()}
    schema = arrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with arrow.parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, _ROWS)):
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))


def _pyarrow() -> Any:
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError as error:
        raise ImportError(f'A .parquet file needs pyarrow ({error}): pip install "vit-trio[parquet]"') from error


_WRITERS: dict[str, Callable[[IO[bytes], Columns, Iterator[Row]], None]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
