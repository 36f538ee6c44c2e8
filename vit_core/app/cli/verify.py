"""`vit verify`: one checkpoint in every backend on the same pictures, and how far their outputs are apart."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from numpy.typing import NDArray
from rich.text import Text

from vit_core.app.backends import BACKENDS, first_installed, is_installed
from vit_core.app.cli.common import (
    AsJson,
    Revision,
    console,
    import_quietly,
    pictures,
    print_json,
    telling,
    tolerance_option,
)
from vit_core.app.cli.comparing import (
    Comparison,
    architecture_of,
    compare,
    complain_of,
    documents_of,
    load,
    pixels_of,
    table_of,
    without_tf32,
)
from vit_core.assets import DIGITS, is_digits
from vit_core.formats.huggingface import Checkpoint
from vit_core.formats.reading import read

Array = NDArray[Any]

# What rounding may make of one function, relative to the largest value of an output.
_TOLERANCES = {"float32": 1e-5, "float64": 1e-10}


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, weights file or hub id.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PICTURE",
            help="Files, folders, patterns, http(s) addresses, or - for stdin.",
            show_default="two of noise",
        ),
    ] = None,
    backends: Annotated[
        str | None, typer.Option(metavar=",".join(BACKENDS), help="Frameworks.", show_default="all that are installed")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="|".join(_TOLERANCES), help="What is computed in; float64 shows the same function.")
    ] = "float32",
    tolerance: Annotated[float | None, tolerance_option(_TOLERANCES)] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Compare what a checkpoint gives in every framework, output by output."""
    names, skipped = _chosen(backends)
    if dtype not in _TOLERANCES:
        raise ValueError(f"--dtype must be one of {', '.join(_TOLERANCES)}, got {dtype!r}.")
    allowed = _TOLERANCES[dtype] if tolerance is None else tolerance
    checkpoint: Checkpoint = read(model, revision=revision)
    architecture, arguments, masked = architecture_of(checkpoint)
    found = pictures(images or ([str(DIGITS / "pictures")] if is_digits(model) else []))
    with telling() as tell:
        for name in names:
            tell(f"Importing {name}")
            import_quietly(name)
        models: dict[str, Any] = {}
        for name in names:
            tell(f"Loading {name}")
            models[name] = load(name, architecture, model, dtype=dtype, revision=revision, **arguments)
        pixels = pixels_of(found, models[names[0]], model, revision)
        tell("Comparing")
        with without_tf32(names):
            result = compare(models, pixels, dtype, allowed, masked)
    shown = [picture.name for picture in found] or ["noise 1", "noise 2"]
    if as_json:
        facts = {"model": model, "architecture": architecture, "dtype": dtype, "tolerance": allowed}
        print_json(
            facts
            | {"backends": names, "skipped": skipped}
            | documents_of(result, shown)
            | {"differences": [each.to_dict() for each in result.differences]}
        )
    else:
        on = f"{len(shown)} picture{'s' * (len(shown) > 1)}{'' if found else ' of noise'}"
        _show(result, names, skipped, f"{architecture} in {dtype} on {on}")
    if result.ok is False:
        complain_of(result.differences)
        raise typer.Exit(1)


# ---- what is compared ----------------------------------------------------------------------------------------------


def _chosen(wanted: str | None) -> tuple[list[str], list[str]]:
    """The backends to run, and those left out because they are not installed.

    Raises ImportError for one that was asked for, and when there is none.
    """
    names = list(dict.fromkeys(wanted.split(","))) if wanted is not None else []
    if any(name not in BACKENDS for name in names):
        raise ValueError(f"--backends must be some of {','.join(BACKENDS)}, with commas between, got {wanted!r}.")
    if names:
        return names, []
    first_installed()
    names = [name for name in BACKENDS if is_installed(name)]
    return names, [name for name in BACKENDS if name not in names]


# ---- what is shown -------------------------------------------------------------------------------------------------


def _show(result: Comparison, names: list[str], skipped: list[str], what: str) -> None:
    out = console()
    if result.differences:
        out.print(table_of(result.differences))
    missing = f"; not installed: {', '.join(skipped)}" if skipped else ""
    if result.ok is None:
        out.print(Text(f"nothing to compare: {names[0]} is the only backend{missing}", style="bold"), soft_wrap=True)
        return
    same = sum(len(set(each.values())) == 1 for each in result.labels)
    labels = f", top-1 labels the same on {same}" if result.labels else ""
    verdict = "agreed" if result.ok else "DISAGREE"
    out.print(Text(f"{verdict}: {', '.join(names)}, {what}{labels}{missing}", style="bold"), soft_wrap=True)
