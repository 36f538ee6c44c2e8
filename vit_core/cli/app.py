"""The `vit` command as typer has it, and what becomes of errors. No framework is imported before it is used."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import version
from typing import Annotated, Any

import typer

from vit_core.cli.attend import attend
from vit_core.cli.classify import classify
from vit_core.cli.common import complain
from vit_core.cli.inspect import inspect

app = typer.Typer(name="vit", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
for _command in (classify, inspect, attend):
    app.command()(_command)

# Whatever is wrong with a command line: the root of typer's usage errors, which has moved between its versions.
_UsageError: Any = typer.BadParameter.__mro__[2]


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
    """Vision Transformers in PyTorch, TensorFlow and JAX: classify pictures, inspect checkpoints, see attention."""


def run(arguments: list[str] | None = None) -> int:
    """The command's exit code; errors and warnings are one line each on the standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line says what failed, without those of every retry
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_: complain(f"warning: {message}")
        try:
            code = app(arguments or ["--help"], prog_name="vit", standalone_mode=False)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except typer.Abort:
            return 130
        except _UsageError as error:
            complain(error.format_message())
            return 2
        except (OSError, ValueError, ImportError) as error:
            complain(str(error))
            return 2
    return code or 0
