"""`vit inspect`: what is in a checkpoint, read from its headers alone, without a framework."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vit_core.app.cli.common import AsJson, Revision, console, one_line, print_json
from vit_core.config import ViTConfig
from vit_core.family import ARCHITECTURES, Family, ViTMAEConfig, parted
from vit_core.files.names import CONFIG_NAME
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import Checkpoint
from vit_core.formats.reading import read
from vit_core.loading import fit

_SHOWN_LABELS = 4


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, weights file or hub id.")],
    every: Annotated[bool, typer.Option("--all", help="List each parameter, not one line for all layers.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read all tensors, and check what checksums there are.")
    ] = False,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show the configuration, the parameters and the size of a checkpoint."""
    checkpoint: Checkpoint = read(model, revision=revision)
    config = checkpoint.config
    if check:
        for tensor in (*checkpoint.tensors.values(), *checkpoint.unknown.values()):
            tensor.verify()
            tensor.read()
            tensor.release()
    summary = summarise(checkpoint, config)
    if as_json:
        print_json(summary)
        return
    out = console()
    out.print(_facts(summary, config))
    out.print(_every_parameter(summary) if every else _modules(checkpoint))
    for name, kind in (("missing", "red"), ("unexpected", "yellow"), ("mismatched", "red")):
        for line in summary[name]:
            shown = line if isinstance(line, str) else "{name}: {file} in the file, {model} in the model".format(**line)
            out.print(Text(f"{name}: {one_line(shown)}", style=kind))
    for note in summary["notes"]:
        out.print(Text(f"note: {one_line(note)}"), soft_wrap=True)


def summarise(checkpoint: Checkpoint, config: ViTConfig | None) -> dict[str, Any]:
    """Everything there is to know without reading a tensor, ready for JSON.

    `missing`, `unexpected` and `mismatched` are by the architecture that config.json names; without one, only what is
    no parameter of a ViT at all is unexpected.
    """
    named = config.architectures[0] if config and config.architectures else None
    tensors = ordered(checkpoint)
    summary: dict[str, Any] = {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "architecture": named,
        "num_parameters": sum(_count(tensor) for tensor in tensors.values()),
        "bytes_on_disk": sum(file.stat().st_size for file in checkpoint.files),
        "dtypes": checkpoint.dtypes,
        "missing": [],
        "unexpected": sorted(checkpoint.unknown),
        "mismatched": [],
        "notes": [*checkpoint.notes, *checkpoint.doubts],
        "config": config.to_dict() if config else None,
        "parameters": [
            {"name": n, "in_file": t.source, "shape": list(t.shape), "dtype": t.dtype.name, "number": _count(t)}
            for n, t in tensors.items()
        ],
    }
    if config and named and named in checkpoint.family.models:
        parts = checkpoint.family.models[named]
        _, report = fit(checkpoint, config, parts, stored_grid=config.grid, ignore_mismatched_sizes=True)
        wrong = [{"name": n, "file": list(a), "model": list(b)} for n, a, b in report.mismatched_keys]
        summary |= {"missing": report.missing_keys, "unexpected": report.unexpected_keys, "mismatched": wrong}
    return summary


def _count(tensor: Tensor) -> int:
    return tensor.nbytes // tensor.dtype.itemsize


def ordered(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors in the order of the model."""
    return dict(sorted(checkpoint.tensors.items(), key=lambda item: _place(item[0], checkpoint.family)))


def _place(name: str, family: Family) -> tuple[int, int, int, bool]:
    """Where a parameter stands in the model: the layers one after the other, modules in the order of the table."""
    rows, row, (template, layer) = list(family.rows), family.row_of(name), parted(name)
    assert row is not None
    place, leaf, above = rows.index(row.name), name.rpartition(".")[2], template.partition("{}")[0]
    first = min(i for i, each in enumerate(rows) if each.startswith(above)) if layer else place
    return first, int(layer or 0), place, leaf == "bias"


# ---- tables ------------------------------------------------------------------------------------------------------


def _facts(summary: dict[str, Any], config: ViTConfig | None) -> Table:
    """What the checkpoint is, in a few lines."""
    table = Table.grid(padding=(0, 2))
    total = sum(summary["dtypes"].values()) or 1
    facts = {
        "file": summary["path"],
        "format": f"{summary['format']}, {size_in_bytes(summary['bytes_on_disk'])} on disk",
        "parameters": f"{summary['num_parameters']:,}",
        "stored as": ", ".join(f"{name} {100 * n / total:.4g} %" for name, n in summary["dtypes"].items()),
        **(config_facts(config) if config else {"config": f"no {CONFIG_NAME} beside the weights"}),
    }
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(one_line(value), overflow="fold"))
    return table


def config_facts(config: ViTConfig) -> dict[str, Any]:
    labels = [config.id2label[i] for i in range(config.num_labels)]
    more = f", ... ({len(labels)} in all)" if len(labels) > _SHOWN_LABELS else ""
    named = (config.architectures or ["none named"])[0]
    return {
        "architecture": named if named in ARCHITECTURES else f"{named}: parameters are not checked against it",
        "image": f"{by(config.image_size)} px, {config.num_channels} channels, patches of {by(config.patch_size)}",
        "encoder": f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads, width {config.hidden_size},"
        f" mlp {config.intermediate_size}, {config.hidden_act}, layer norm eps {config.layer_norm_eps:g}",
        **_decoder_facts(config),
        "labels": ", ".join(labels[:_SHOWN_LABELS]) + more,
    }


def _decoder_facts(config: ViTConfig) -> dict[str, str]:
    if not isinstance(config, ViTMAEConfig):
        return {}
    return {
        "decoder": f"{config.decoder_num_hidden_layers} layers, {config.decoder_num_attention_heads} heads, width "
        f"{config.decoder_hidden_size}, mlp {config.decoder_intermediate_size}, mask ratio {config.mask_ratio:g}"
    }


def _every_parameter(summary: dict[str, Any]) -> Table:
    table = Table("Parameter", "Shape", "Dtype", "Number", box=SIMPLE)
    table.columns[0].overflow, table.columns[3].justify = "fold", "right"
    for each in summary["parameters"]:
        table.add_row(each["name"], by(each["shape"]), each["dtype"], f"{each['number']:,}")
    return table


@dataclass(frozen=True)
class _Module:
    """A line of the table: a module's weight, or a bare array, and its bias."""

    name: str
    weight: str
    bias: str
    dtype: str
    number: int


def _modules(checkpoint: Checkpoint) -> Table:
    """One line a module, with layers that are all alike shown once."""
    table = Table("Module", "Weight", "Bias", "Dtype", "Parameters", box=SIMPLE, show_footer=True)
    table.columns[0].overflow, table.columns[4].justify = "fold", "right"
    total = 0
    for above, layers, modules in _folded(checkpoint):
        if layers:
            table.add_row(f"[bold]{above}{ranges(layers)}[/] x {len(layers)}")
        for module in modules:
            number = module.number * max(1, len(layers))
            total += number
            name = "  " + module.name if layers else module.name
            table.add_row(name, module.weight, module.bias, module.dtype, f"{number:,}")
    table.columns[0].footer, table.columns[4].footer = "all", f"{total:,}"
    return table


def _folded(checkpoint: Checkpoint) -> Iterator[tuple[str, list[int], list[_Module]]]:
    """The modules in the order of the model, in blocks: of layers, with their place and numbers, or of none."""
    blocks: dict[tuple[int, str, str], dict[str, dict[str, Tensor]]] = {}
    for name, tensor in ordered(checkpoint).items():
        template, layer = parted(name)
        above, _, inner = template.rpartition("{}.")
        module, _, leaf = inner.rpartition(".")
        bare = leaf not in ("weight", "bias")
        block = blocks.setdefault((_place(name, checkpoint.family)[0], above, layer), {})
        block.setdefault(inner if bare else module, {})["weight" if bare else leaf] = tensor
    alike: dict[tuple[str, tuple[_Module, ...]], list[str]] = {}
    for (_, above, layer), block in blocks.items():
        alike.setdefault((above, tuple(_module(*item) for item in block.items())), []).append(layer)
    for (above, modules), layers in alike.items():
        yield above, [int(layer) for layer in layers if layer], list(modules)


def _module(name: str, leaves: dict[str, Tensor]) -> _Module:
    shapes = {leaf: by(tensor.shape) for leaf, tensor in leaves.items()}
    dtypes = ", ".join(sorted({tensor.dtype.name for tensor in leaves.values()}))
    return _Module(name, shapes.get("weight", ""), shapes.get("bias", ""), dtypes, sum(map(_count, leaves.values())))


def ranges(numbers: list[int]) -> str:
    """Ascending numbers as "0-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def by(size: Any) -> str:
    """A shape, or the size of a square, as "16x24"."""
    return "x".join(map(str, size)) if isinstance(size, list | tuple) else f"{size}x{size}"


def size_in_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
