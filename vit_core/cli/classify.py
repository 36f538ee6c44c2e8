"""`vit classify`: labels and scores of pictures."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vit_core.cli.common import (
    DEFAULT_MODEL,
    AsJson,
    Backend,
    Model,
    Picture,
    Revision,
    complain,
    console,
    import_quietly,
    one_line,
    pictures,
    print_json,
)
from vit_core.pipeline import ImageClassificationPipeline, Predictions, pipeline

Results = list[tuple[Picture, Predictions]]
Failures = list[tuple[Picture, Exception]]


def classify(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Files, folders, patterns, http(s) addresses, or - for stdin."),
    ],
    model: Model = DEFAULT_MODEL,
    backend: Backend = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, metavar="N", help="Labels for each picture.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures the model sees at once.")] = 16,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in pictures."""
    found = pictures(images)
    import_quietly(backend)
    classifier = pipeline(model=model, backend=backend, revision=revision, top_k=top_k, batch_size=batch_size)
    results, failures = _run(classifier, found)
    if failures and len(found) == 1:
        raise failures[0][1]
    if as_json:
        _print_json(model, classifier.backend, results, failures)
    elif results:
        _print_table(results)
    for _, error in failures:
        complain(str(error))
    if failures:
        complain(f"{len(failures)} of {len(found)} pictures could not be read.")
        raise typer.Exit(1)


def _run(classifier: ImageClassificationPipeline, found: list[Picture]) -> tuple[Results, Failures]:
    """The predictions for every picture that can be read, and why the others can't."""
    results, failures = Results(), Failures()
    with Progress(
        TextColumn("Classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=len(found) == 1 or not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("", total=len(found))
        for picture, result in zip(found, classifier.stream(each.source for each in found), strict=True):
            if isinstance(result, Exception):
                failures.append((picture, result))
            else:
                results.append((picture, result))
            progress.advance(task)
    return results, failures


def _print_json(model: str, backend: str, results: Results, failures: Failures) -> None:
    print_json(
        {
            "model": model,
            "backend": backend,
            "images": [{"file": picture.name, "predictions": predictions} for picture, predictions in results],
            "failed": [{"file": picture.name, "error": str(error)} for picture, error in failures],
        }
    )


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
