"""Many pictures through a pipeline: a bar of progress, a journal that is taken up again, what could not be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from xxhash import xxh3_128

from vit_core.app.base import ImagePipeline
from vit_core.app.cli.common import Picture, complain, one_line, print_json
from vit_core.app.cli.results import Journal, Writer
from vit_core.files.tensor import raw_bytes

Failures = list[tuple[Picture, str]]
_SHOWN = 10  # failures


def identity(pipe: ImagePipeline[Any]) -> str:
    """A number of what results depend on: configuration, image processor and every weight. It is every backend's."""
    documents = (pipe.model.config.to_dict(), pipe.image_processor.to_dict())
    found = xxh3_128(json.dumps(documents, sort_keys=True, default=str).encode())
    for name, tensor in sorted(pipe.model.to_tensors().items()):
        found.update(name.encode())
        found.update(raw_bytes(tensor))
    return found.hexdigest()


@dataclass(frozen=True)
class Work:
    """What is done to pictures: by which pipeline, in what words, and the values of a row that a result gives."""

    pipe: ImagePipeline[Any]
    doing: str  # "Classifying"
    done: str  # "classified"
    values: Callable[[Any], Sequence[Any]]

    def run(self, left: list[Picture], total: int | None = None) -> Iterator[tuple[Picture, Any]]:
        """The pictures with their results, the last of `total` pictures."""
        total = len(left) if total is None else total
        with Progress(
            TextColumn(self.doing),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=total == 1 or not sys.stderr.isatty(),
        ) as progress:
            task = progress.add_task("", total=total, completed=total - len(left))
            for picture, result in zip(left, self.pipe.stream(each.source for each in left), strict=True):
                yield picture, result
                progress.advance(task)

    def write(
        self, found: list[Picture], journal: Journal, writer: Writer, facts: dict[str, Any] | None = None
    ) -> Failures:
        """Bring the journal to its end; print a summary, as JSON with these facts if there are any.

        After a Ctrl-C, say where it stopped and how it goes on, and raise that.
        """
        failures, left = Failures(), [picture for picture in found if picture.name not in journal]
        start = perf_counter()
        try:
            for picture, result in self.run(left, len(found)):
                error = isinstance(result, Exception)
                journal.add(picture.name, result if error else self.values(result))
                if error:
                    failures.append((picture, str(result)))
        except KeyboardInterrupt:
            if kept := sum(picture.name in journal for picture in found):
                where = f"{kept} of {len(found)} pictures {self.done}"
                complain(f"stopped, {where}: the same command goes on from {journal.path}.")
            raise
        rate = len(left) / (perf_counter() - start)
        journal.finish((picture.name for picture in found), writer)
        done, earlier = len(left) - len(failures), len(found) - len(left)
        if facts is not None:
            numbers = {self.done: done, "earlier": earlier, "pictures_per_second": rate}
            print_json({**facts, "out": str(journal.out), **numbers, "failed": as_documents(failures)})
        else:
            before = f", {earlier} by an earlier run" if earlier else ""
            failed = f", {len(failures)} could not be read" if failures else ""
            speed = f", {rate:.0f} a second" if left else ""
            print(f"{done} {self.done}{before}{failed}{speed}: {one_line(journal.out)}")
        return failures


def conclude(failures: Failures, total: int) -> None:
    """Say which of all pictures could not be read, the first of many, and end with 1 where there are any."""
    for _, error in failures[:_SHOWN]:
        complain(error)
    if failures:
        rest = f": above are the first {_SHOWN}, --json lists all" if len(failures) > _SHOWN else ""
        complain(f"{len(failures)} of {total} pictures could not be read{rest}.")
        raise typer.Exit(1)


def as_documents(failures: Failures) -> list[dict[str, str]]:
    """The pictures that could not be read, for JSON."""
    return [{"file": picture.name, "error": error} for picture, error in failures]
