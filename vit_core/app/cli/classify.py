"""`vit classify`: labels and scores of pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from xxhash import xxh3_128

from vit_core.app.cli.common import (
    DEFAULT_MODEL,
    AsJson,
    Backend,
    Model,
    Picture,
    Processor,
    Revision,
    complain,
    console,
    import_quietly,
    one_line,
    pictures,
    print_json,
)
from vit_core.app.cli.results import IDENTITY, Journal, check_target
from vit_core.app.pipeline import ImageClassificationPipeline, Predictions, Result, pipeline
from vit_core.files.tensor import raw_bytes

Results = list[tuple[Picture, Predictions]]
Failures = list[tuple[Picture, str]]


def classify(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Files, folders, patterns, http(s) addresses, or - for stdin."),
    ],
    model: Model = DEFAULT_MODEL,
    backend: Backend = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, metavar="N", help="Labels for each picture.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures the model sees at once.")] = 16,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Where torch runs, a copy of the model on each: cuda:0,cuda:1.",
            show_default="CUDA where there is any",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write results to a .csv, .jsonl or .parquet file; the same command goes on with a run that stopped.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")] = False,
    image_processor: Processor = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in pictures."""
    found = pictures(images)
    if out is not None:
        check_target(out, overwrite)
    elif overwrite:
        raise ValueError("--overwrite replaces the file of --out: name that too.")
    import_quietly(backend)
    classifier = pipeline(
        model=model,
        backend=backend,
        image_processor=image_processor,
        revision=revision,
        device=devices.split(",") if devices is not None else None,
        top_k=top_k,
        batch_size=batch_size,
    )
    facts = {"model": model, "backend": classifier.backend}
    if out is not None:
        settings = {**facts, IDENTITY: identity(classifier), "revision": revision, "top_k": top_k}
        with Journal(out, settings, min(top_k, classifier.model.config.num_labels)) as journal:
            check_target(out, overwrite)  # another run may have written it meanwhile
            failures = _write(classifier, found, journal, facts if as_json else None)
    else:
        failures = _show(classifier, found, facts if as_json else None)
    for _, error in failures:
        complain(error)
    if failures:
        complain(f"{len(failures)} of {len(found)} pictures could not be read.")
        raise typer.Exit(1)


def identity(classifier: ImageClassificationPipeline) -> str:
    """A number of what results depend on: configuration, image processor and every weight."""
    documents = (classifier.model.config.to_dict(), classifier.image_processor.to_dict())
    found = xxh3_128(json.dumps(documents, sort_keys=True, default=str).encode())
    for name, tensor in sorted(classifier.model.to_tensors().items()):
        found.update(name.encode())
        found.update(raw_bytes(tensor))
    return found.hexdigest()


def _show(classifier: ImageClassificationPipeline, found: list[Picture], facts: dict[str, str] | None) -> Failures:
    """Print the results, as JSON with these facts if there are any. Raises the error of a single picture."""
    results, failures = Results(), Failures()
    for picture, result in _run(classifier, found):
        if not isinstance(result, Exception):
            results.append((picture, result))
        elif len(found) == 1:
            raise result
        else:
            failures.append((picture, str(result)))
    if facts is not None:
        images = [{"file": picture.name, "predictions": predictions} for picture, predictions in results]
        print_json({**facts, "images": images, "failed": _document(failures)})
    elif results:
        _print_table(results)
    return failures


def _write(
    classifier: ImageClassificationPipeline, found: list[Picture], journal: Journal, facts: dict[str, str] | None
) -> Failures:
    """Bring the journal to its end; print a summary, as JSON with these facts if there are any."""
    failures, left = Failures(), [picture for picture in found if picture.name not in journal]
    start = perf_counter()
    for picture, result in _run(classifier, left, len(found)):
        journal.add(picture.name, result)
        if isinstance(result, Exception):
            failures.append((picture, str(result)))
    rate = len(left) / (perf_counter() - start)
    journal.finish(picture.name for picture in found)
    classified, earlier = len(left) - len(failures), len(found) - len(left)
    if facts is not None:
        numbers = {"classified": classified, "earlier": earlier, "pictures_per_second": rate}
        print_json({**facts, "out": str(journal.out), **numbers, "failed": _document(failures)})
    else:
        before = f", {earlier} by an earlier run" if earlier else ""
        failed = f", {len(failures)} could not be read" if failures else ""
        speed = f", {rate:.0f} a second" if left else ""
        print(f"{classified} classified{before}{failed}{speed}: {one_line(journal.out)}")
    return failures


def _run(
    classifier: ImageClassificationPipeline, left: list[Picture], total: int | None = None
) -> Iterator[tuple[Picture, Result]]:
    """The pictures with their results, the last of `total` pictures."""
    total = len(left) if total is None else total
    with Progress(
        TextColumn("Classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=total == 1 or not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("", total=total, completed=total - len(left))
        for picture, result in zip(left, classifier.stream(each.source for each in left), strict=True):
            yield picture, result
            progress.advance(task)


def _document(failures: Failures) -> list[dict[str, str]]:
    return [{"file": picture.name, "error": error} for picture, error in failures]


def _print_table(results: Results) -> None:
    table = Table("File", "Label", "Score", "", box=SIMPLE)
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    table.columns[2].justify, table.columns[2].no_wrap = "right", True
    for picture, predictions in results:
        for i, best in enumerate(predictions):
            score = best["score"]
            table.add_row(
                Text("" if i else one_line(picture.name)),
                Text(one_line(best["label"]), style="" if i else "bold"),
                f"{100 * score:.1f} %",
                ProgressBar(total=1, completed=min(max(score, 0), 1), width=12),
                end_section=0 < i == len(predictions) - 1,
            )
    console().print(table)
