"""`vit export`: a checkpoint as a file for another runtime, run there and compared."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vit_core.app.cli.common import (
    AsJson,
    Processor,
    Revision,
    clearing_up,
    complain,
    console,
    import_for,
    one_line,
    pictures,
    print_json,
    silence,
    telling,
    tolerance_option,
)
from vit_core.app.export import exporting
from vit_core.app.export.asking import DYNAMIC, INT8_TOLERANCE, TARGETS, TOLERANCES
from vit_core.app.export.exporting import ExportError, ExportReport
from vit_core.assets import DIGITS, is_digits
from vit_core.exports import INPUTS, OUTPUTS


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, weights file or hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File, or for saved-model a folder.")],
    to: Annotated[str, typer.Option("--to", metavar="|".join(TARGETS), help="Format.")],
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--pictures", metavar="IMAGE", help="Compare on these: files, folders.", show_default="two of noise"
        ),
    ] = None,
    input: Annotated[str, typer.Option(metavar="|".join(INPUTS), help="What the file takes.")] = "pixels",
    outputs: Annotated[str, typer.Option(metavar="|".join(OUTPUTS), help="What the file gives.")] = "logits",
    dynamic: Annotated[
        str, typer.Option(metavar=",".join(DYNAMIC), help="What of the input is free; none: one picture.")
    ] = "batch",
    dtype: Annotated[str, typer.Option(metavar="|".join(TOLERANCES), help="What is computed in.")] = "float32",
    int8: Annotated[
        str | None,
        typer.Option(
            metavar="PICTURES|dynamic",
            help="onnx, litert: linear layers in int8, calibrated on these pictures, or by each call.",
            show_default="not",
        ),
    ] = None,
    aoti: Annotated[bool, typer.Option("--aoti", help="pt2: compile for this machine by AOTInductor.")] = False,
    opset: Annotated[int | None, typer.Option(help="onnx: of its operators.", show_default="PyTorch's")] = None,
    triton: Annotated[bool, typer.Option("--triton", help="onnx: OUT is a model of Triton's repository.")] = False,
    tolerance: Annotated[float | None, tolerance_option(TOLERANCES | {"int8": INT8_TOLERANCE})] = None,
    image_processor: Processor = None,
    revision: Revision = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at OUT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint for another runtime, run it there, and keep it if it agrees with the model."""
    if to not in TARGETS:
        raise ValueError(f"--to must be one of {', '.join(TARGETS)}, got {to!r}.")
    found = pictures(images or ([str(DIGITS / "pictures")] if is_digits(model) else []))
    calibration = int8 if int8 is None or int8 == "dynamic" else [picture.source for picture in pictures([int8])]
    with clearing_up(), telling() as tell:
        tell(f"Importing {TARGETS[to].backend}")
        import_for(TARGETS[to].backend, model, image_processor, revision, "Model")
        try:
            with silence() if TARGETS[to].backend == "tf" else nullcontext():
                report = exporting.export(
                    model,
                    out,
                    to,
                    input=input,
                    outputs=outputs,
                    dynamic=[name for name in dynamic.split(",") if name not in ("", "none")],
                    dtype=dtype,
                    int8=calibration,
                    aoti=aoti,
                    opset=opset,
                    triton=triton,
                    pictures=[picture.source for picture in found],
                    tolerance=tolerance,
                    image_processor=image_processor,
                    overwrite=overwrite,
                    tell=tell,
                    revision=revision,
                )
        except ExportError as error:
            report, wrong = error.report, str(error)
        else:
            wrong = ""
    if as_json:
        print_json({"model": model, **report.to_dict()})
    else:
        _show(report, bool(found or (report.int8 and report.int8.calibrated_on)))
    if wrong:
        complain(wrong)
        raise typer.Exit(1)


def _show(report: ExportReport, real: bool) -> None:
    out = console()
    table = Table("Output", "Difference", "Relative", "Allowed", "", box=SIMPLE)
    for column in table.columns[1:4]:
        column.justify = "right"
    for each in report.differences:
        table.add_row(Text(one_line(each.output)), *each.figures, "ok" if each.ok else Text("differs", style="red"))
    out.print(table)
    same = "" if report.agreement is None else f", top-1 the same on {report.same_label} ({report.agreement:.1%})"
    on = f"{report.pictures} picture{'s' * (report.pictures > 1)}{'' if real else ' of noise'}"
    out.print(Text(f"{report.target}, written by {report.backend}, on {on}{same}", style="bold"), soft_wrap=True)
    if report.int8:
        layers = f"{report.int8.quantised} of {report.int8.linear_layers} linear layers"
        on = f"calibrated on {report.int8.calibrated_on} pictures" if report.int8.calibrated_on else "dynamic"
        out.print(Text(f"int8: {layers}, {on}"), soft_wrap=True)
    if report.ok:
        written = f"{report.path}: {report.size / 1e6:.1f} MB in {', '.join(report.files)}"
        out.print(Text(written), soft_wrap=True)
        out.print(Text("It takes {}: {}.".format(*INPUTS[report.input])), soft_wrap=True)
