"""The `vit` command as typer has it. No framework is imported before it is used."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from vit_core.app.cli.attend import attend
from vit_core.app.cli.classify import classify
from vit_core.app.cli.common import execute
from vit_core.app.cli.embed import embed
from vit_core.app.cli.export import export
from vit_core.app.cli.inspect import inspect
from vit_core.app.cli.serve import serve
from vit_core.app.cli.similar import similar
from vit_core.app.cli.verify import verify

app = typer.Typer(name="vit", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
for _command in (classify, embed, similar, inspect, attend, verify, export, serve):
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vit-trio {version('vit-trio')}")
        raise typer.Exit


@app.callback()
def vit(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Vision Transformers in PyTorch, TensorFlow and JAX: classify, embed, find, inspect, attend, verify, serve."""


def run(arguments: list[str] | None = None) -> int:
    """The command's exit code; errors and warnings are one line each on the standard error."""
    return execute(app, "vit", arguments)
