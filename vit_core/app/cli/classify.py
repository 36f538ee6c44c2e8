"""`vit classify`: labels and scores of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vit_core.app.classification import Predictions
from vit_core.app.cli.common import (
    DEFAULT_MODEL,
    DEMO,
    AsJson,
    Backend,
    BatchSize,
    Devices,
    Images,
    Model,
    Overwrite,
    Picture,
    Processor,
    Revision,
    complain,
    console,
    import_for,
    one_line,
    pictures,
    print_json,
)
from vit_core.app.cli.many import Failures, Work, as_documents, conclude, identity
from vit_core.app.cli.results import IDENTITY, WRITERS, Columns, Journal, check_target
from vit_core.app.pipeline import pipeline

Results = list[tuple[Picture, Predictions]]


def classify(
    images: Images,
    model: Model = None,
    backend: Backend = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, metavar="N", help="Labels for each picture.")] = 3,
    batch_size: BatchSize = 16,
    devices: Devices = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write results to a .csv, .jsonl or .parquet file; the same command goes on with a run that stopped.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    image_processor: Processor = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in pictures."""
    found = pictures(images)
    if out is not None:
        check_target(out, overwrite, "results.csv", WRITERS)
    elif overwrite:
        raise ValueError("--overwrite replaces the file of --out: name that too.")
    named = model or DEFAULT_MODEL
    import_for(backend, named, image_processor, revision)
    classifier = pipeline(
        model=named,
        backend=backend,
        image_processor=image_processor,
        revision=revision,
        device=devices.split(",") if devices is not None else None,
        top_k=top_k,
        batch_size=batch_size,
    )
    work = Work(classifier, "Classifying", "classified", _values)
    facts = {"model": named, "backend": classifier.backend}
    demo = model is None and not as_json
    if out is not None:
        settings = {**facts, IDENTITY: identity(classifier), "revision": revision, "top_k": top_k}
        with Journal(out, settings, columns(min(top_k, classifier.model.config.num_labels))) as journal:
            check_target(out, overwrite, "results.csv", WRITERS)  # another run may have written it meanwhile
            failures = work.write(found, journal, WRITERS[out.suffix.lower()], facts if as_json else None)
        if demo:
            complain(DEMO)
    else:
        failures = _show(work, found, facts if as_json else None, demo)
    conclude(failures, len(found))


def columns(labels: int) -> Columns:
    """label and score of the best, label_2 and score_2 of the next and so on."""
    ends = ["", *(f"_{i}" for i in range(2, labels + 1))]
    return {f"{name}{end}": kind for end in ends for name, kind in (("label", str), ("score", float))}


def _values(predictions: Predictions) -> list[Any]:
    return [value for each in predictions for value in (each["label"], each["score"])]


def _show(work: Work, found: list[Picture], facts: dict[str, str] | None, demo: bool) -> Failures:
    """Print the results, as JSON with these facts if there are any. Raises the error of a single picture."""
    results, failures = Results(), Failures()
    for picture, result in work.run(found):
        if not isinstance(result, Exception):
            results.append((picture, result))
        elif len(found) == 1:
            raise result
        else:
            failures.append((picture, str(result)))
    if facts is not None:
        images = [{"file": picture.name, "predictions": predictions} for picture, predictions in results]
        print_json({**facts, "images": images, "failed": as_documents(failures)})
    elif results:
        if demo:
            complain(DEMO)
        _print_table(results)
    return failures


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
