"""What `vit finetune`, `vit pretrain` and the training scripts of examples/ share: their flags, which are settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout, suppress
from importlib import import_module
from inspect import Parameter, Signature, signature
from typing import Any, TypeVar, get_type_hints

from vit_core.app.backends import first_installed
from vit_core.app.cli.common import hidden, import_quietly, print_json, script
from vit_core.app.training.loop import Place, Training, run
from vit_core.training import Settings

C = TypeVar("C", bound=Callable[..., None])


def with_flags_of(settings: type[Settings]) -> Callable[[C], C]:
    """Let a command, which takes them as `**flags`, have the flags that are the fields of settings."""

    def decorate(command: C) -> C:
        fields, own = (_parameters(each) for each in (settings, command))
        command.__signature__ = Signature([*fields, *own])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameters(described: Callable[..., Any]) -> list[Parameter]:
    """The parameters that have names, all by keyword, with what typer is to know of them."""
    hints = get_type_hints(described, include_extras=True)
    named = [p for p in signature(described).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    return [p.replace(annotation=hints[p.name], kind=Parameter.KEYWORD_ONLY) for p in named]


def train(
    kind: Callable[[Any, str, Place], Training[Any]], settings: Settings, backend: str | None, as_json: bool
) -> None:
    """Run a training to its end; its lines go to the standard error where the output is to be JSON."""
    backend = backend or first_installed()
    import_quietly(backend)
    _import_writer()
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        found = run(kind, settings, backend)
    if as_json and found is not None:
        print_json({"backend": backend, **found})


def training_script(main: Callable[[Any], None], settings: type[Settings]) -> None:
    """Run a training script, `main` of its settings, and end the process as `vit` does."""

    @with_flags_of(settings)
    def command(**flags: Any) -> None:
        _import_writer()
        main(settings(**flags))

    command.__doc__ = main.__doc__
    script(command)


def _import_writer() -> None:
    """Import tensorboardX, which imports PyTorch wherever it is installed, for the type of an argument alone."""
    with hidden("torch"), suppress(ImportError):  # the training says what is not installed
        import_module("tensorboardX")
