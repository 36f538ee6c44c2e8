"""The `vit-convert` command: any ViT checkpoint into any other. No framework is imported unless it verifies."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from conversion.converting import convert
from conversion.report import Entry, Report, Verification
from conversion.targets import TARGETS
from vit_core.app.backends import BACKENDS, is_installed
from vit_core.app.cli.common import (
    CONTEXT,
    AsJson,
    Version,
    complain,
    console,
    execute,
    import_quietly,
    one_line,
    print_json,
)
from vit_core.app.cli.inspect import by, config_facts, ranges, size_in_bytes
from vit_core.config import AutoConfig
from vit_core.loading import COMPUTE_DTYPES
from vit_core.position import KERNELS

PROGRAM = "vit-convert"
_READING, _MODEL, _WRITING, _SHOWING = "What is read", "What is changed", "What is written", "What is shown"
_SHOWN = 6

app = typer.Typer(name=PROGRAM, pretty_exceptions_enable=False, rich_markup_mode="rich")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 when a verification found a difference, 2 for bad input."""
    try:
        return execute(app, PROGRAM, arguments)
    except KeyboardInterrupt:
        return 130


def _text(panel: str, metavar: str, text: str) -> Any:
    """What typer is to know of an option that takes a value."""
    return typer.Option(metavar=metavar, help=text, rich_help_panel=panel)


def _flag(panel: str, text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


@app.command(context_settings=CONTEXT)
def vit_convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder, weights file or hub id.")] = "",
    target: Annotated[str, typer.Argument(metavar="DST", help="Folder, or file with the format's suffix.")] = "",
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Format to write: " + ", ".join(TARGETS) + ".",
            autocompletion=lambda: [*TARGETS],
        ),
    ] = "",
    revision: Annotated[str | None, _text(_READING, "NAME", "Branch, tag or commit of a hub id.")] = None,
    subfolder: Annotated[str, _text(_READING, "NAME", "Folder within SRC.")] = "",
    filename: Annotated[str | None, _text(_READING, "NAME", "Weights file within SRC.")] = None,
    key: Annotated[str | None, _text(_READING, "NAME", "State dict, in a file that holds several.")] = None,
    prefix: Annotated[str | None, _text(_READING, "TEXT", "What the names of SRC's model begin with.")] = None,
    variant: Annotated[str | None, _text(_READING, "NAME", "As in model.VARIANT.safetensors.")] = None,
    heads: Annotated[int | None, _text(_READING, "N", "Number of heads, where SRC does not say.")] = None,
    stored_image_size: Annotated[
        str | None, _text(_READING, "SIZE", "Size of the pictures, where SRC does not say.")
    ] = None,
    ignore_unknown: Annotated[bool, _flag(_READING, "Leave out tensors that no ViT has.", "--ignore-unknown")] = False,
    image_size: Annotated[
        str | None, _text(_MODEL, "SIZE", "Resize position embeddings for pictures of 224 or 224x384 (height x width).")
    ] = None,
    position_kernel: Annotated[
        str | None, _text(_MODEL, "|".join(KERNELS), "How they are resized, if not as the configuration says.")
    ] = None,
    num_labels: Annotated[int | None, _text(_MODEL, "N", "Labels; another number gets a new classifier.")] = None,
    labels: Annotated[Path | None, _text(_MODEL, "FILE", "Names of the classes: a line each, or JSON.")] = None,
    num_channels: Annotated[int | None, _text(_MODEL, "N", "Channels; sums or repeats the patch projection.")] = None,
    head: Annotated[str, _text(_MODEL, "keep|drop", "The classifier, or the decoder.")] = "keep",
    pooler: Annotated[str, _text(_MODEL, "keep|drop", "The pooler.")] = "keep",
    fold_layer_scale: Annotated[
        bool, _flag(_MODEL, "Multiply layer scales into the layers before them, which rounds.", "--fold-layer-scale")
    ] = False,
    hidden_act: Annotated[str | None, _text(_MODEL, "NAME", "Correct the activation in the configuration.")] = None,
    layer_norm_eps: Annotated[float | None, _text(_MODEL, "EPS", "Correct the LayerNorm's epsilon there.")] = None,
    container: Annotated[
        str | None, _text(_WRITING, "KIND", "Kind of file, where a format has several, see --list.")
    ] = None,
    dtype: Annotated[
        str | None, _text(_WRITING, "|".join(COMPUTE_DTYPES), "Cast all tensors; by default each keeps its own.")
    ] = None,
    max_shard_size: Annotated[
        str | None, _text(_WRITING, "SIZE", "Split larger files, such as 200MB; by default those of 5GB.")
    ] = None,
    verify: Annotated[
        bool, _flag(_WRITING, "Read the target again; compare tensors, and outputs in every backend.", "--verify")
    ] = False,
    no_sync: Annotated[
        bool, _flag(_WRITING, "Do not wait for the disk: faster, but a power cut may lose the files.", "--no-sync")
    ] = False,
    overwrite: Annotated[bool, _flag(_WRITING, "Replace another model that DST holds.", "--overwrite")] = False,
    dry_run: Annotated[bool, _flag(_SHOWING, "Show the plan and write nothing.", "--dry-run")] = False,
    every: Annotated[
        bool, _flag(_SHOWING, "List each tensor of the plan, not one line for all layers.", "--all")
    ] = False,
    formats: Annotated[bool, _flag(_SHOWING, "Show the formats.", "--list")] = False,
    quiet: Annotated[bool, _flag(_SHOWING, "Print errors and warnings only.", "--quiet", "-q")] = False,
    as_json: AsJson = False,
    version: Version = False,
) -> None:
    """Convert a Vision Transformer's checkpoint, of any format, to FORMAT."""
    if formats:
        print_json({"formats": _formats()}) if as_json else console().print(_format_table())
        return
    if not (source and target and to):
        raise ValueError(f"SRC, DST and --to are needed, as in `{PROGRAM} SRC DST --to torch`; see --list and --help.")
    if verify and not dry_run:
        _import_backends()
    with _progress(visible=not (as_json or quiet or dry_run)) as progress:
        report = convert(
            source,
            target,
            to=to,
            container=container,
            dtype=dtype,
            max_shard_size=int(max_shard_size)
            if max_shard_size is not None and max_shard_size.isdecimal()
            else max_shard_size,
            image_size=_pixels(image_size, "--image-size"),
            position_kernel=position_kernel,
            num_labels=num_labels,
            labels=_labels(labels),
            num_channels=num_channels,
            head=head,
            pooler=pooler,
            hidden_act=hidden_act,
            layer_norm_eps=layer_norm_eps,
            ignore_unknown=ignore_unknown,
            overwrite=overwrite,
            dry_run=dry_run,
            verify=verify,
            sync=not no_sync,
            progress=progress,
            filename=filename,
            key=key,
            prefix=prefix,
            variant=variant,
            num_attention_heads=heads,
            stored_image_size=_pixels(stored_image_size, "--stored-image-size"),
            fold_layer_scale=fold_layer_scale,
            revision=revision,
            subfolder=subfolder,
        )
    if as_json:
        print_json(report.to_dict())
    elif not quiet:
        _show(report, every)
    if not report.ok:
        complain(f"{target} does not agree with {source}; it stays for you to look at.", PROGRAM)
        raise typer.Exit(1)


def _import_backends() -> None:
    """Import what a verification runs, before anything is written: a framework that can't be imported ends it here."""
    for name in filter(is_installed, BACKENDS):
        import_quietly(name)


def _pixels(text: str | None, option: str) -> int | tuple[int, int] | None:
    """224 or (224, 384) for "224" or "224x384"."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise ValueError(f"{option} must be pixels, as 224 or as 224x384 (height x width), got {text!r}.")
    return (int(match[1]), int(match[2])) if match[2] else int(match[1])


def _labels(file: Path | None) -> list[str] | None:
    """The names in a file: a line for each, or JSON, a list of them or an object by their numbers."""
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"--labels {file}: there is no such file.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--labels {file} is no text in UTF-8 (byte {error.start}): save it as UTF-8.") from error
    if not text.lstrip().startswith(("[", "{")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            found = found.get("id2label", found)
            found = [found[str(number)] for number in range(len(found))]
        if all(isinstance(name, str) for name in found):
            return list(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"--labels {file}: expected a JSON list of names, or an object of names by the numbers from 0.")


@contextmanager
def _progress(visible: bool) -> Iterator[Callable[[Entry, int, int], None] | None]:
    """What `convert` tells its progress to: a bar on the standard error, where that is a terminal."""
    if not (visible and sys.stderr.isatty()):
        yield None
        return
    name = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn(), name)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(entry: Entry, done: int, total: int) -> None:
            name = one_line(entry.target) if done < total else "finishing"
            progress.update(task, description=name, completed=done, total=total)

        yield show


# ---- the report ----------------------------------------------------------------------------------------------------


def _show(report: Report, every: bool) -> None:
    """The plan of a dry run, the summary, the notes and the verification."""
    out = console()
    if report.dry_run:
        out.print(_every_entry(report.entries) if every else _plan(report.entries))
    out.print(_summary(report))
    for note in report.notes:
        out.print(Text(f"note: {one_line(note)}"), soft_wrap=True)
    if report.dry_run:
        out.print(Text("dry run: nothing is written"))
    if report.verification is not None:
        _show_verification(out, report.verification)


def _summary(report: Report) -> Table:
    titles = {target.format: target.title for target in TARGETS.values()}
    files = ", ".join(report.files[:_SHOWN])
    more = f", ... ({len(report.files)} in all)" if len(report.files) > _SHOWN else ""
    sizes: Counter[str] = Counter()
    for entry in report.entries:
        sizes[entry.dtype] += prod(entry.shape) * np.dtype(entry.dtype).itemsize
    dtypes = ", ".join(f"{size_in_bytes(size)} of {name}" for name, size in sizes.items())
    facts = {
        "source": f"{titles[report.source_format]}, {report.source}",
        "target": f"{TARGETS[report.target_format].title}, {report.target}",
        "files": files + more,
        "tensors": f"{len(report.entries)}, {dtypes}",
        **config_facts(AutoConfig.from_dict(report.config)),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(one_line(value), overflow="fold"))
    return table


def _show_verification(out: Console, found: Verification) -> None:
    for name in found.unequal[:_SHOWN]:
        out.print(Text(f"not the same to the bit: {one_line(name)}", style="red"))
    if len(found.unequal) > _SHOWN:
        out.print(Text(f"... and {len(found.unequal) - _SHOWN} more, see --json", style="red"))
    if found.differences:
        table = Table("Backend", "Output", "Difference", "Relative", "Allowed", "", box=SIMPLE)
        for each in found.differences:
            verdict = "ok" if each.ok else Text("differs", style="red")
            numbers = (f"{number:.2g}" for number in (each.absolute, each.relative, each.tolerance))
            table.add_row(each.backend, each.output, *numbers, verdict)
        for column in table.columns[2:5]:
            column.justify = "right"
        out.print(table)
    backends = ", ".join(dict.fromkeys(each.backend for each in found.differences))
    outputs = f", outputs in {backends}" if backends else ""
    skipped = f"; not installed: {', '.join(found.skipped)}" if found.skipped else ""
    verdict = "agreed" if found.ok else "DISAGREE"
    out.print(Text(f"{verdict}: {found.tensors} tensors{outputs}{skipped}", style="bold"), soft_wrap=True)


# ---- tables of the plan and of the formats -------------------------------------------------------------------------

# The number of a layer in a name of any format; Keras leaves that of the first out.
_NUMBER = re.compile(
    r"(?<!decoder[./])(?<=[._/])\d+(?=[./])|(?<=^layer )\d+|(?<=/vi_t_layer)(?=/)|(?<=/vi_t_encoder_block)(?=/)"
)
_WORD = re.compile(r"\blayer \d+|[^\s,;()]+")
_NAME_OF_LAYER = re.compile(r"[^\s,]*?\{\}")
_Line = tuple[str, str, str, str, str]  # target, source, transform, shape and dtype, with {} for a layer's number


def _plan(entries: list[Entry]) -> Table:
    """One line a tensor, with layers that are all alike shown once, below a line that says which."""
    table = _columns()
    for layers, lines in _blocks(entries):
        if not layers:
            table.add_row(*map(_Names, lines[0]))
            continue
        numbers = ranges(layers)
        target, source = ((_NAME_OF_LAYER.search(name) or [""])[0] for name in lines[0][:2])
        above = f"{target} x {len(layers)}", source
        table.add_row(*(_Names(name.replace("{}", numbers)) for name in above), style="bold")
        for line in lines:
            names = (
                re.sub(rf"{re.escape(name)}[./]", "", text)
                for name, text in zip((target, source), line[:2], strict=True)
            )
            cells = (text.replace("{}", numbers) for text in (*names, *line[2:]))
            table.add_row(*(_Names(cell, indent=2 * (i < 2)) for i, cell in enumerate(cells)))
    return table


def _every_entry(entries: list[Entry]) -> Table:
    table = _columns()
    for entry in entries:
        table.add_row(*map(_Names, _line(entry)))
    return table


def _columns() -> Table:
    return Table("Target", "Source", "Transform", "Shape", "Dtype", box=SIMPLE, collapse_padding=True, pad_edge=False)


@dataclass(frozen=True)
class _Names:
    """Names in a cell, which a narrow table breaks after their separators."""

    text: str
    indent: int = 0

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(16, len(self.text)) + self.indent, len(self.text) + self.indent)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text, width = one_line(self.text), options.max_width - self.indent
        lines = [text]
        if len(text) > width:
            some = f".{{1,{max(1, width - 2)}}}"
            lines = re.findall(rf"{some}(?:(?<=[ ./])|$)|{some}", text)
        for i, line in enumerate(lines):
            yield Text(" " * (self.indent + 2 * (i > 0)) + line)


def _line(entry: Entry) -> _Line:
    return entry.target, entry.source, entry.transform, by(entry.shape), entry.dtype


def _blocks(entries: list[Entry]) -> Iterator[tuple[list[int], list[_Line]]]:
    """The lines in the order of the target, in blocks: of layers that are alike, with their numbers, or of none."""
    blocks: list[tuple[int | None, list[_Line]]] = []
    by_layer: dict[int, list[_Line]] = {}
    for entry in entries:
        line, layer = _unnumbered(entry)
        if layer in by_layer:
            by_layer[layer].append(line)
            continue
        blocks.append((layer, [line]))
        if layer is not None:
            by_layer[layer] = blocks[-1][1]
    alike: dict[tuple[_Line, ...], list[int]] = {}
    for number, lines in by_layer.items():
        alike.setdefault(tuple(lines), []).append(number)
    for layer, lines in blocks:
        numbers = [] if layer is None else alike[tuple(lines)]
        if not numbers or numbers[0] == layer:
            yield numbers, lines


def _unnumbered(entry: Entry) -> tuple[_Line, int | None]:
    """A line with `{}` for its layer's number in every name, and the number; None where there is no such number."""
    numbers: set[int] = set()

    def number(match: re.Match[str]) -> str:
        numbers.add(int(match[0] or 0))
        return "{}" if match[0] else "_{}"

    def without(text: str) -> str:
        return _WORD.sub(lambda word: _NUMBER.sub(number, word[0], count=1), text)

    whole = _line(entry)
    line = (without(whole[0]), without(whole[1]), without(whole[2]), *whole[3:])
    return (line, numbers.pop()) if len(numbers) == 1 else (whole, None)


def _formats() -> list[dict[str, Any]]:
    """What there is to know of each format; eps and activation are None where its configuration states them."""
    return [
        {
            "name": name,
            "title": target.title,
            "containers": {kind: container.names()[0] for kind, container in target.containers.items()},
            "read": True,
            "write": True,
            "layer_norm_eps": None if target.fmt is None or target.fmt.states_eps else target.fmt.layer_norm_eps,
            "hidden_act": target.fmt.hidden_act if target.fmt and target.fmt.fixed_act else None,
        }
        for name, target in TARGETS.items()
    ]


def _format_table() -> Table:
    table = Table("Format", "", "Container", "File", "Eps", "Activation", box=SIMPLE)
    table.caption = "Every format is read as well, told apart by its content. Eps: of the LayerNorms. -: as configured."
    for each in _formats():
        eps, act = each["layer_norm_eps"], each["hidden_act"]
        table.add_row(
            Text(each["name"], style="bold"),
            each["title"],
            "\n".join(each["containers"]),
            "\n".join(each["containers"].values()),
            "-" if eps is None else f"{eps:g}",
            act or "-",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
