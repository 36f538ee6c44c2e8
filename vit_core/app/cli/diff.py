"""`vit diff`: two checkpoints of any formats, tensor by tensor, and what they give for the same pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vit_core.app.backends import first_installed
from vit_core.app.cli.common import (
    AsJson,
    Backend,
    Picture,
    console,
    import_quietly,
    one_line,
    pictures,
    print_json,
    telling,
)
from vit_core.app.cli.comparing import (
    Comparison,
    architecture_of,
    compare,
    documents_of,
    load,
    pixels_of,
    table_of,
    without_tf32,
)
from vit_core.app.cli.inspect import by, ordered
from vit_core.app.differences import Difference
from vit_core.files.names import CONFIG_NAME
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import Checkpoint
from vit_core.formats.reading import read

Array = NDArray[Any]
Fields = dict[str, tuple[Any, Any]]  # what A and B say
_Source = tuple[str, str | None]  # name and revision

_ONE, _OTHER = _PAIR = ("A", "B")
_SHOWN = 4  # labels
_BLOCK = 1 << 20  # numbers of a tensor that are in memory in float64 at once
_OF_THE_FILE = ("dtype", "transformers_version")  # fields that are nothing of the model
_ALIKE = ("image_size", "patch_size", "num_channels", "num_hidden_layers")  # for both to take the same pixels


@dataclass(frozen=True)
class _Compared:
    """A tensor of A and that of B; None where only one has it."""

    name: str
    tensors: tuple[Tensor | None, Tensor | None]
    difference: Difference | None  # None where shapes differ, or only one has it

    @property
    def ok(self) -> bool:
        return self.difference is not None and self.difference.ok

    @property
    def same(self) -> bool:
        """Whether there is nothing to tell: neither values nor dtypes differ."""
        return self.ok and self.difference is not None and not self.difference.absolute and len(set(self.dtypes)) == 1

    @property
    def shapes(self) -> list[tuple[int, ...] | None]:
        return [tensor.shape if tensor else None for tensor in self.tensors]

    @property
    def dtypes(self) -> list[str | None]:
        return [tensor.dtype.name if tensor else None for tensor in self.tensors]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; lists are of A and of B."""
        numbers = self.difference.numbers if self.difference else {"absolute": None, "relative": None}
        return {"name": self.name, "shapes": self.shapes, "dtypes": self.dtypes, **numbers, "ok": self.ok}


def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="Folder, weights file or hub id.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another, of any format.")],
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, metavar="SIZE", help="Allowed difference, relative to a tensor's or output's largest value."
        ),
    ] = 0.0,
    images: Annotated[
        list[str] | None,
        typer.Option("--pictures", metavar="IMAGE", help="Compare outputs on these too: files, folders, patterns."),
    ] = None,
    backend: Backend = None,
    revisions: Annotated[
        list[str] | None,
        typer.Option(
            "--revision",
            metavar="NAME",
            help="Branch, tag or commit of a hub id: once for A and B, or one of each.",
            show_default="main",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints tensor by tensor, and with --pictures by their outputs.

    The exit code is 1 where values, shapes, names or the configuration differ; a dtype alone is shown.
    """
    if backend is not None and not images:
        raise ValueError("--backend runs the models on --pictures: name some, or leave it out.")
    if len(revisions or ()) > 2:
        raise ValueError(f"--revision is that of A and of B: pass it once for both, or twice, got {revisions}.")
    ours, theirs = (revisions[0], revisions[-1]) if revisions else (None, None)
    sources = (one, ours), (other, theirs)
    found = pictures(images or [])
    checkpoints: list[Checkpoint] = [read(name, revision=revision) for name, revision in sources]
    runs = _runs(checkpoints) if found else None
    with telling() as tell:
        tell("Comparing tensors")
        compared = list(_tensors(checkpoints, tolerance))
        fields = _fields(checkpoints)
        result = Comparison()
        if runs is not None:
            backend = backend or first_installed()
            tell(f"Comparing outputs in {backend}")
            result = _outputs(sources, runs, backend, found, tolerance)
    ok = all(each.ok for each in compared) and not fields and result.ok is not False
    if as_json:
        document = {
            "a": one,
            "b": other,
            "tolerance": tolerance,
            "agree": ok,
            "compared": len(compared),
            "tensors": [each.to_dict() for each in compared if not each.same],
            "config": None if fields is None else {name: list(said) for name, said in fields.items()},
        }
        if runs is not None:
            differences = [{"output": each.output, **each.numbers, "ok": each.ok} for each in result.differences]
            seen = documents_of(result, [picture.name for picture in found])
            document["outputs"] = {"backend": backend, **seen, "differences": differences}
        print_json(document)
    else:
        _show(compared, fields, result, tolerance)
    if not ok:
        raise typer.Exit(1)


# ---- what is compared ----------------------------------------------------------------------------------------------


def _tensors(checkpoints: list[Checkpoint], tolerance: float) -> Iterator[_Compared]:
    """Every tensor of either, in the order of the model, and then those that no model of the family has."""
    ours, theirs = ({**ordered(each), **each.unknown} for each in checkpoints)
    for name in ours | theirs:
        pair = ours.get(name), theirs.get(name)
        yield _Compared(name, pair, _apart(name, *pair, tolerance))


def _apart(name: str, one: Tensor | None, other: Tensor | None, tolerance: float) -> Difference | None:
    """How far two tensors of one shape are apart, in float64. Infinities and NaNs of both are no difference."""
    if one is None or other is None or one.shape != other.shape:
        return None
    found = Difference(_PAIR, name, tolerance)
    ours, theirs = np.atleast_1d(one.read()), np.atleast_1d(other.read())
    rows = max(1, _BLOCK * len(ours) // max(ours.size, 1))
    for first in range(0, len(ours), rows):
        a, b = (each[first : first + rows].astype(np.float64) for each in (ours, theirs))
        odd = ~np.isfinite(a) & ((a == b) | (np.isnan(a) & np.isnan(b)))
        a[odd] = b[odd] = 0
        found.add(a, b)
    one.release()
    other.release()
    return found


def _fields(checkpoints: list[Checkpoint]) -> Fields | None:
    """The fields of the configurations that differ, of those that say what a model is; None where one has none."""
    configs = [each.config.to_dict() for each in checkpoints if each.config]
    if len(configs) < 2:
        return None
    ours, theirs = configs
    said = {name: (ours.get(name), theirs.get(name)) for name in ours | theirs if name not in _OF_THE_FILE}
    return {name: pair for name, pair in said.items() if pair[0] != pair[1]}


def _runs(checkpoints: list[Checkpoint]) -> list[tuple[str, dict[str, bool], bool]]:
    """What `architecture_of` finds of each. Raises ValueError for two whose outputs can't be compared."""
    found = [architecture_of(each) for each in checkpoints]
    if found[0][0] != found[1][0]:
        raise ValueError(f"--pictures compares the outputs of one class, but A is a {found[0][0]}, B a {found[1][0]}.")
    ours, theirs = (each.config for each in checkpoints)
    for name in _ALIKE:
        if (a := getattr(ours, name)) != (b := getattr(theirs, name)):
            raise ValueError(f"--pictures gives both the same pixels, but {name} is {a} in A and {b} in B.")
    return found


def _outputs(
    sources: tuple[_Source, _Source],
    runs: list[tuple[str, dict[str, bool], bool]],
    backend: str,
    found: list[Picture],
    tolerance: float,
) -> Comparison:
    """What both give for the pictures, as A's preprocessor makes them."""
    import_quietly(backend)
    models = {
        letter: load(backend, architecture, name, revision=revision, dtype="float32", **arguments)
        for letter, (name, revision), (architecture, arguments, _) in zip(_PAIR, sources, runs, strict=True)
    }
    with without_tf32([backend]):
        masked = all(each[2] for each in runs)
        return compare(models, pixels_of(found, models[_ONE], *sources[0]), "float32", tolerance, masked)


# ---- what is shown -------------------------------------------------------------------------------------------------


def _show(compared: list[_Compared], fields: Fields | None, result: Comparison, tolerance: float) -> None:
    out = console()
    told = [each for each in compared if not each.same]
    if told:
        out.print(_table(told))
    if fields:
        table = Table("Configuration", *_PAIR, box=SIMPLE)
        for name, said in fields.items():
            table.add_row(name, *(Text(one_line(value), overflow="fold") for value in _short(*said)))
        out.print(table)
    if result.differences:
        out.print(table_of(result.differences, "Checkpoints"))
    if fields is None:
        out.print(Text(f"no {CONFIG_NAME} beside one of them: configurations are not compared"))
    wrong = sum(not each.ok for each in compared)
    parts = {
        f"{wrong} of {len(compared)} tensors": wrong > 0,
        f"{len(fields or ())} field{'s' * (len(fields or ()) != 1)} of the configuration": bool(fields),
        "outputs": result.ok is False,
    }
    differ = ", ".join(part for part, differs in parts.items() if differs)
    within = f" within {tolerance:g}" if tolerance else ""
    outputs = ", outputs" if result.differences else ""
    configured = "" if fields is None else ", the configuration"
    verdict = f"DIFFER: {differ}" if differ else f"the same{within}: {len(compared)} tensors{configured}{outputs}"
    out.print(Text(verdict, style="bold"), soft_wrap=True)


def _short(one: Any, other: Any) -> tuple[Any, Any]:
    """Two values of a field; of labels, the first that differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one, other
    differ = [key for key in one | other if one.get(key) != other.get(key)]
    more = f", ... ({len(differ)} in all)" if len(differ) > _SHOWN else ""
    ours, theirs = (
        ", ".join(f"{key}: {each.get(key, '-')}" for key in differ[:_SHOWN]) + more for each in (one, other)
    )
    return ours, theirs


def _table(told: list[_Compared]) -> Table:
    table = Table("Tensor", "Shape", "Dtype", "Difference", "Relative", "", box=SIMPLE)
    table.columns[0].overflow = "fold"
    for column in table.columns[3:5]:
        column.justify = "right"
    for each in told:
        shapes = [by(shape) if shape is not None else None for shape in each.shapes]
        if None in each.shapes:
            verdict = f"only in {_OTHER if each.shapes[0] is None else _ONE}"
        else:
            verdict = "ok" if each.ok else "differs"
        figures = each.difference.figures[:2] if each.difference else ("", "")
        style = "" if each.ok else "red"
        table.add_row(
            Text(one_line(each.name)), _both(shapes), _both(each.dtypes), *figures, Text(verdict, style=style)
        )
    return table


def _both(said: list[str | None]) -> str:
    """What A and B say, once where it is the same or only one says it."""
    return ", ".join(dict.fromkeys(each for each in said if each is not None))
