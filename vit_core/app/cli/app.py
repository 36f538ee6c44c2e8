"""The `vit` command as typer has it. No framework is imported before it is used."""

from __future__ import annotations

import typer

from vit_core.app.cli.attend import attend
from vit_core.app.cli.classify import classify
from vit_core.app.cli.common import CONTEXT, Version, execute
from vit_core.app.cli.diff import diff
from vit_core.app.cli.embed import embed
from vit_core.app.cli.export import export
from vit_core.app.cli.finetune import finetune
from vit_core.app.cli.inspect import inspect
from vit_core.app.cli.pretrain import pretrain
from vit_core.app.cli.serve import serve
from vit_core.app.cli.similar import similar
from vit_core.app.cli.verify import verify

app = typer.Typer(name="vit", context_settings=CONTEXT, pretty_exceptions_enable=False, rich_markup_mode="rich")
for _command in (classify, embed, similar, inspect, attend, verify, diff, finetune, pretrain, export, serve):
    app.command()(_command)


@app.callback()
def vit(
    version: Version = False,
) -> None:
    """Vision Transformers in PyTorch, TensorFlow and JAX: classify, embed, find, inspect, compare, train, serve."""


def run(arguments: list[str] | None = None) -> int:
    """The command's exit code; errors and warnings are one line each on the standard error."""
    return execute(app, "vit", arguments)
